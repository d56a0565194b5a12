"""Image metrics of synthetic CT, by the recipe of each profile; arrays [x y z] in HU, masks bool of the same shape.

The same pair scores .67 to .99 under five "SSIM"s, so each function is one recipe, ranges are arguments, and every figure is named with its
profile (SynthRAD2023, Huijben 2024; SynthRAD2025). The recipes are re-derived from their description and reproduce the challenges' figures.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

LOW_HU = -1024.0
WINDOW = 7  # voxels on a side of SSIM's uniform window
K1, K2 = 0.01, 0.03  # Wang 2004
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang 2003
MS_SMALLEST = 97  # voxels an axis needs for five scales
BONE_HU = 250.0
# Tissue by HU of the reference: lower and upper end.
BANDS_HU = {"air": (-np.inf, -400.0), "fat": (-400.0, -30.0), "soft": (-30.0, 250.0), "bone": (250.0, np.inf)}


class _Terms(NamedTuple):
    luminance: np.ndarray
    contrast: np.ndarray
    structure: np.ndarray


def mae(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute error in HU inside the mask, values as they are."""
    return float(np.abs(reference[mask] - predicted[mask]).mean())


def psnr(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray, *, top_hu: float | int) -> float:
    """Peak signal-to-noise ratio in dB inside the mask; both clipped to [-1024, top_hu], whose width is the peak. inf for equal images."""
    a, b = (np.clip(x[mask], LOW_HU, top_hu) for x in (reference, predicted))
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10((top_hu - LOW_HU) ** 2 / error))


def ssim(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray, *, top_hu: float | int) -> float:
    """SSIM of SynthRAD2023: 3-D, uniform 7^3 window, outside the mask -1024 HU, 3 voxels cut at each border, mean inside the mask."""
    a, b = (_prepared(x, mask, top_hu) for x in (reference, predicted))
    terms = _terms(a, b, top_hu - LOW_HU)
    product = terms.luminance * terms.contrast * terms.structure
    return float(product[_inner(mask)].mean())


def ms_ssim(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray, *, top_hu: float | int) -> float:
    """MS-SSIM of SynthRAD2025: the product over five scales of the mean of (luminance x contrast x structure)^weight.

    Luminance is weighted at every scale, unlike Wang 2003; a scale is made by a 2^3 mean that looks back and sees zeros beyond the border.
    """
    return _multi_scale(reference, predicted, mask, top_hu, luminance_at_every_scale=True)


def ms_ssim_corrected(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray, *, top_hu: float | int) -> float:
    """As `ms_ssim`, with luminance at the coarsest scale only (Wang 2003)."""
    return _multi_scale(reference, predicted, mask, top_hu, luminance_at_every_scale=False)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two bool arrays; NaN if both are empty."""
    total = int(a.sum() + b.sum())
    return float(2 * (a & b).sum() / total) if total else float("nan")


def band_errors(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Bias (mean error) and MAE in HU by the reference's tissue band, for the bands that are present."""
    wanted, got = reference[mask], predicted[mask]
    figures: dict[str, float] = {}
    for name, (low, high) in BANDS_HU.items():
        inside = (wanted >= low) & (wanted < high)
        if inside.any():
            error = got[inside] - wanted[inside]
            figures |= {f"bias_{name}_hu": float(error.mean()), f"mae_{name}_hu": float(np.abs(error).mean())}
    return figures


def through_plane_energy(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray) -> float:
    """Energy of the difference between neighbouring slices along z inside the mask, prediction over reference; 1 is equal coherence."""
    both = mask[:, :, 1:] & mask[:, :, :-1]
    energy = [float((np.diff(x, axis=2)[both] ** 2).sum()) for x in (predicted, reference)]
    return energy[0] / energy[1] if energy[1] > 0 else float("nan")


def _multi_scale(
    reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray, top_hu: float | int, *, luminance_at_every_scale: bool
) -> float:
    padding = [(0, max(0, MS_SMALLEST - n)) for n in mask.shape]
    mask = np.pad(mask, padding, mode="edge")
    a, b = (_prepared(np.pad(x, padding, mode="edge"), mask, top_hu) for x in (reference, predicted))
    result = 1.0
    for scale, weight in enumerate(MS_WEIGHTS):
        terms = _terms(a, b, top_hu - LOW_HU)
        product = np.clip(terms.contrast, 0, None) * np.clip(terms.structure, 0, None)
        if luminance_at_every_scale or scale == len(MS_WEIGHTS) - 1:
            product = product * np.clip(terms.luminance, 0, None)
        inside = _inner(mask)
        result *= float((product[inside] ** weight).mean()) if inside.any() else 1.0
        a, b = (ndimage.uniform_filter(x, 2, mode="constant")[::2, ::2, ::2] for x in (a, b))
        mask = mask[::2, ::2, ::2]
    return result


def _prepared(x: np.ndarray, mask: np.ndarray, top_hu: float | int) -> np.ndarray:
    """Clipped, the lowest value outside the mask, shifted to begin at zero."""
    return np.where(mask, np.clip(x.astype(np.float64), LOW_HU, top_hu), LOW_HU) - LOW_HU


def _terms(a: np.ndarray, b: np.ndarray, span_hu: float | int) -> _Terms:
    """Luminance, contrast and structure (Wang 2004) with unbiased local moments, without the border that the window does not fill."""
    border = WINDOW // 2
    inner = (slice(border, -border),) * 3

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(x, WINDOW)[inner]

    unbiased = WINDOW**3 / (WINDOW**3 - 1)
    mean_a, mean_b = mean(a), mean(b)
    variance_a = np.clip(unbiased * (mean(a * a) - mean_a**2), 0, None)
    variance_b = np.clip(unbiased * (mean(b * b) - mean_b**2), 0, None)
    covariance = unbiased * (mean(a * b) - mean_a * mean_b)
    c1, c2 = (K1 * span_hu) ** 2, (K2 * span_hu) ** 2
    spread = np.sqrt(variance_a * variance_b)
    return _Terms(
        luminance=(2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1),
        contrast=(2 * spread + c2) / (variance_a + variance_b + c2),
        structure=(covariance + c2 / 2) / (spread + c2 / 2),
    )


def _inner(mask: np.ndarray) -> np.ndarray:
    border = WINDOW // 2
    return mask[border:-border, border:-border, border:-border]
