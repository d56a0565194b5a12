"""How a reconstruction compares with the CT that was projected: on its own grid, and on the reconstruction's."""

import math

import numpy as np
import torch
from torch import Tensor

from medsynth.core import metrics
from medsynth.physics.ct import attenuation, relative_residual
from medsynth.scans import inplane
from medsynth.tasks.sparse_ct import AIR_HU
from medsynth.verbs import methods
from medsynth.verbs.intake import Intake
from medsynth.verbs.picture import TOP_HU

SOFT_HU = (-160.0, 240.0)  # of the reference: where MAE is measured besides
SLAB = 8  # slices whose SSIM is computed at a time: a scan of 512 x 512 voxels then takes half a gigabyte, whatever its length


def on_grid(taken: Intake, measured: Tensor, image_hu: Tensor, device: torch.device) -> dict[str, float]:
    """Of the reference on the reconstruction's grid: what it leaves unexplained (noise, and what that grid cannot hold), and PSNR there."""
    operator, unexplained, error = taken.acquisition.operator(device), 0.0, 0.0
    has_matrix = methods.has_matrix(taken.acquisition)
    with torch.no_grad():
        for first in range(0, len(measured), methods.BATCH):
            own = slice(first, first + methods.BATCH)
            part = measured[own].to(device)
            truth_hu = torch.from_numpy(inplane.onto(taken.in_planes, taken.grid, own))
            if has_matrix:
                residual = relative_residual(operator, attenuation(truth_hu.to(device)), part)
                unexplained += float((residual.square() * part.square().sum((1, 2))).sum())
            a, b = (image.clamp(AIR_HU, TOP_HU) for image in (truth_hu, image_hu[own]))
            error += float((a - b).square().sum())
    span = TOP_HU - metrics.LOW_HU
    psnr = 10 * math.log10(span**2 * image_hu.numel() / max(error, 1e-30))
    residual = {"residual": math.sqrt(unexplained / max(float(measured.square().sum()), 1e-30))} if has_matrix else {}
    return {"psnr_db": psnr, **residual}


def on_scan(reference_hu: np.ndarray, result_hu: np.ndarray) -> dict[str, float]:
    """Figures over all voxels, in a span of 4096 HU; what is below air in the reference, padding, counts as air.

    They are those of `core.metrics`, summed up over slices and slabs, whose copies in double precision are small.
    """
    squares, absolute, soft_voxels = 0.0, 0.0, 0
    for k in range(reference_hu.shape[2]):
        reference, result = (np.maximum(array[:, :, k], AIR_HU).astype(np.float64) for array in (reference_hu, result_hu))
        squares += float(np.square(np.minimum(reference, TOP_HU) - np.minimum(result, TOP_HU)).sum())
        soft = (reference >= SOFT_HU[0]) & (reference <= SOFT_HU[1])
        absolute += float(np.abs(reference - result)[soft].sum())
        soft_voxels += int(np.count_nonzero(soft))
    span = TOP_HU - metrics.LOW_HU
    figures = {
        "psnr_db": 10 * math.log10(span**2 * reference_hu.size / squares) if squares else math.inf,
        "ssim": _ssim(reference_hu, result_hu),
        "mae_soft_hu": absolute / soft_voxels if soft_voxels else math.nan,
        "span_hu": span,
    }
    return {name: round(value, 6) for name, value in figures.items() if math.isfinite(value)}


def _ssim(reference_hu: np.ndarray, result_hu: np.ndarray) -> float:
    """Mean over all windows; NaN if none fits. Slabs overlap by what a window reaches, so that each window is whole in one of them."""
    if min(reference_hu.shape) < metrics.WINDOW:
        return math.nan
    total, windows = 0.0, reference_hu.shape[2] - 2 * metrics.BORDER
    for start in range(0, windows, SLAB):
        slab = slice(start, start + SLAB + 2 * metrics.BORDER)
        reference, result = (np.maximum(array[:, :, slab], AIR_HU) for array in (reference_hu, result_hu))
        mean = metrics.ssim(reference, result, np.ones(reference.shape, dtype=bool), top_hu=TOP_HU)
        total += mean * (reference.shape[2] - 2 * metrics.BORDER)
    return total / windows
