"""What is measured of a method's images: how true they are, how sharp, and how real."""

import numpy as np
from scipy import ndimage, stats

from medsynth.core import metrics

from .judge import Judge, features, kid
from .problem import Pairs

TOP_HU = 3000  # of the profile synthrad2023
MARGIN = 1  # voxels at a patch's border, beyond which the filter does not see
SOFT_HU = (-20.0, 100.0)
FLAT_HU = 15.0  # range within 3^3 voxels of the CT without texture


def measure(predicted_hu: np.ndarray, pairs: Pairs, judge: Judge) -> dict[str, float]:
    """Figures of the predictions [n x y z] for the pairs, inside the body.

    mae_hu, psnr_db, ssim: means over patches, profile synthrad2023; mae_clean_hu: to the CT without texture. sharpness: energy above half
    of the grid's limit, prediction over target; soft_texture: the same where the CT without texture is flat soft tissue.
    soft_wasserstein_hu: between the histograms of soft tissue. kid, kid_error: of the judge's features, x 1000.
    """
    real = pairs.textured.astype(np.float32)
    rows = [_fidelity(*patch) for patch in zip(real, predicted_hu, pairs.clean.astype(np.float32), pairs.inside, strict=True)]
    of_real, owners = features(judge, real, pairs.inside)
    distance = kid(of_real, features(judge, predicted_hu, pairs.inside)[0], owners)
    soft = pairs.inside & (pairs.clean > SOFT_HU[0]) & (pairs.clean < SOFT_HU[1])
    energy = np.array([_energies(*patch) for patch in zip(real, predicted_hu, pairs.clean, pairs.inside, strict=True)]).sum(0)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {
        "sharpness": float(energy[1] / energy[0]),
        "soft_texture": float(energy[3] / energy[2]),
        "soft_wasserstein_hu": float(stats.wasserstein_distance(real[soft], predicted_hu[soft])),
        "kid": 1000 * distance.value,
        "kid_error": 1000 * distance.error,
    }


def above_half_limit(image: np.ndarray) -> np.ndarray:
    """The image [x y z] without its low frequencies: along an axis, half of the amplitude passes at half of Nyquist's.

    What a binomial filter of 3^3 voxels leaves out; one that cuts off sharply would ring from bone far into soft tissue.
    """
    smooth = image.astype(np.float64)
    for axis in range(3):
        smooth = ndimage.convolve1d(smooth, (0.25, 0.5, 0.25), axis=axis, mode="nearest")
    return image - smooth


def flat_soft(clean_hu: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """bool [x y z]: soft tissue whose neighbours are like it, so that energy there is texture and no edge."""
    steady = ndimage.maximum_filter(clean_hu, 3).astype(np.float32) - ndimage.minimum_filter(clean_hu, 3) < FLAT_HU
    return inside & steady & (clean_hu > SOFT_HU[0]) & (clean_hu < SOFT_HU[1])


def _fidelity(real: np.ndarray, predicted: np.ndarray, clean: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    return {
        "mae_hu": metrics.mae(real, predicted, inside),
        "mae_clean_hu": metrics.mae(clean, predicted, inside),
        "psnr_db": metrics.psnr(real, predicted, inside, top_hu=TOP_HU),
        "ssim": metrics.ssim(real, predicted, inside, top_hu=TOP_HU),
    }


def _energies(real: np.ndarray, predicted: np.ndarray, clean: np.ndarray, inside: np.ndarray) -> list[float]:
    """Energy above half of the limit: real and predicted in the body, real and predicted in flat soft tissue."""
    inner = np.zeros_like(inside)
    inner[(slice(MARGIN, -MARGIN),) * 3] = True
    squares = [above_half_limit(image) ** 2 for image in (real, predicted)]
    return [float(square[mask & inner].sum()) for mask in (inside, flat_soft(clean, inside)) for square in squares]
