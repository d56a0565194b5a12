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
    """Figures over all voxels, in a span of 4096 HU; what is below air in the reference, padding, counts as air."""
    reference, result = (np.maximum(array, AIR_HU) for array in (reference_hu, result_hu))
    everywhere = np.ones(reference.shape, dtype=bool)
    soft = (reference >= SOFT_HU[0]) & (reference <= SOFT_HU[1])
    figures = {
        "psnr_db": metrics.psnr(reference, result, everywhere, top_hu=TOP_HU),
        "ssim": metrics.ssim(reference, result, everywhere, top_hu=TOP_HU),
        "mae_soft_hu": metrics.mae(reference, result, soft) if soft.any() else math.nan,
        "span_hu": TOP_HU - metrics.LOW_HU,
    }
    return {name: round(value, 6) for name, value in figures.items() if math.isfinite(value)}
