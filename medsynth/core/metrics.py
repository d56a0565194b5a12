"""Image metrics of synthetic CT, by the recipe of each profile; arrays [x y z] in HU, masks bool of the same shape, not empty.

The same pair scores .67 to .99 under five "SSIM"s, so each function is one recipe, ranges are arguments, and every figure is named with its
profile (SynthRAD2023, Huijben 2024; SynthRAD2025). The recipes are re-derived from their description and reproduce the challenges' figures.
A figure that is not defined (no window fits, no such tissue) is NaN.
"""

from collections.abc import Callable, Container
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy import ndimage

LOW_HU = -1024.0
WINDOW = 7  # voxels on a side of SSIM's uniform window
BORDER = WINDOW // 2
SLAB = 32  # slices whose windows are computed at a time, which bounds the memory
K1, K2 = 0.01, 0.03  # Wang 2004
MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang 2003
MS_SMALLEST = 97  # voxels an axis needs for five scales
BONE_HU = 250.0
# Tissue by HU of the reference: lower and upper end.
BANDS_HU = {"air": (-np.inf, -400.0), "fat": (-400.0, -30.0), "soft": (-30.0, 250.0), "bone": (250.0, np.inf)}


class _Terms(NamedTuple):
    """SSIM's three factors at the windows centred inside the mask, [n]."""

    luminance: np.ndarray
    contrast: np.ndarray
    structure: np.ndarray


def mae(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute error in HU inside the mask, values as they are."""
    return float(np.abs(_inside(reference, mask) - _inside(predicted, mask)).mean())


def psnr(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray, *, top_hu: float | int) -> float:
    """Peak signal-to-noise ratio in dB inside the mask; both clipped to [-1024, top_hu], whose width is the peak. inf for equal images."""
    a, b = (np.clip(_inside(x, mask), LOW_HU, top_hu) for x in (reference, predicted))
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10((top_hu - LOW_HU) ** 2 / error))


def ssim(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray, *, top_hu: float | int) -> float:
    """SSIM of SynthRAD2023: 3-D, uniform 7^3 window, outside the mask -1024 HU, 3 voxels cut at each border, mean inside the mask."""
    reach = _reach(mask, step=1, margin=BORDER)
    a, b = (_prepared(x[reach], mask[reach], top_hu) for x in (reference, predicted))
    return _mean_inside(a, b, mask[reach], top_hu - LOW_HU, lambda terms: terms.luminance * terms.contrast * terms.structure)


def ms_ssim(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray, *, top_hu: float | int) -> float:
    """MS-SSIM of SynthRAD2025: the product over five scales of the mean of (luminance x contrast x structure)^weight.

    Luminance is weighted at every scale, unlike Wang 2003; a scale is made by a 2^3 mean that looks back and sees zeros beyond the border.
    """
    return _multi_scale(reference, predicted, mask, top_hu, luminance_at=range(len(MS_WEIGHTS)))


def ms_ssim_corrected(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray, *, top_hu: float | int) -> float:
    """As `ms_ssim`, with luminance at the coarsest scale only (Wang 2003)."""
    return _multi_scale(reference, predicted, mask, top_hu, luminance_at=(len(MS_WEIGHTS) - 1,))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two bool arrays; NaN if both are empty."""
    total = int(a.sum() + b.sum())
    return float(2 * (a & b).sum() / total) if total else float("nan")


def band_errors(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Bias (mean error) and MAE in HU by the reference's tissue band, for the bands that are present."""
    wanted, got = _inside(reference, mask), _inside(predicted, mask)
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
    energy = [float((_inside(np.diff(x, axis=2), both) ** 2).sum()) for x in (predicted, reference)]
    return energy[0] / energy[1] if energy[1] > 0 else float("nan")


def _multi_scale(
    reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray, top_hu: float | int, *, luminance_at: Container[int]
) -> float:
    padding = [(0, max(0, MS_SMALLEST - n)) for n in mask.shape]
    mask = np.pad(mask, padding, mode="edge")
    coarsest = 2 ** (len(MS_WEIGHTS) - 1)
    reach = _reach(mask, step=coarsest, margin=(BORDER + 1) * coarsest)
    a, b = (_prepared(np.pad(x, padding, mode="edge")[reach], mask[reach], top_hu) for x in (reference, predicted))
    mask = mask[reach]
    result = 1.0
    for scale, weight in enumerate(MS_WEIGHTS):
        power = partial(_power, weight=weight, luminance_weight=weight if scale in luminance_at else 0.0)
        result *= _mean_inside(a, b, mask, top_hu - LOW_HU, power)
        a, b = (ndimage.uniform_filter(x, 2, mode="constant")[::2, ::2, ::2] for x in (a, b))
        mask = mask[::2, ::2, ::2]
    return result


def _power(terms: _Terms, *, weight: float, luminance_weight: float) -> np.ndarray:
    """Factors to the power of their weights; structure below zero counts as none, for a power needs it."""
    luminance, contrast, structure = (np.clip(term, 0, None) for term in terms)
    return luminance**luminance_weight * (contrast * structure) ** weight


def _reach(mask: np.ndarray, *, step: int, margin: int) -> tuple[slice, ...]:
    """The mask's box and a margin, in whole steps from the first voxel: beyond it, both images are alike and no window sees the mask."""
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    return tuple(slice(max(0, (side.start - margin) // step * step), -(-(side.stop + margin) // step) * step) for side in box)


def _prepared(x: np.ndarray, mask: np.ndarray, top_hu: float | int) -> np.ndarray:
    """Clipped, the lowest value outside the mask, shifted to begin at zero."""
    return np.where(mask, np.clip(x, LOW_HU, top_hu) - LOW_HU, 0)


def _inside(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return x[mask].astype(np.float64)


def _mean_inside(a: np.ndarray, b: np.ndarray, mask: np.ndarray, span_hu: float | int, value: Callable[[_Terms], np.ndarray]) -> float:
    """Mean of value(terms) over the windows that are centred inside the mask and fit into the image; NaN if there are none."""
    total, count = 0.0, 0
    for start in range(0, mask.shape[2] - 2 * BORDER, SLAB):
        slab = (..., slice(start, start + SLAB + 2 * BORDER))
        values = value(_terms(a[slab].astype(np.float64), b[slab].astype(np.float64), mask[slab], span_hu))
        total += float(values.sum())
        count += values.size
    return total / count if count else float("nan")


def _terms(a: np.ndarray, b: np.ndarray, mask: np.ndarray, span_hu: float | int) -> _Terms:
    """Luminance, contrast and structure (Wang 2004) with unbiased local moments, without the border that the window does not fill."""
    inner = (slice(BORDER, -BORDER),) * 3
    inside = mask[inner]

    def mean(x: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(x, WINDOW)[inner][inside]

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
