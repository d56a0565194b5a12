"""What a scanner would have measured of a CT: line integrals of its slices from few views, with the noise of counted photons.

Simulated on a grid finer than the reconstruction's (`physics.geometry.FINER`). The noise of a slice depends on the seed, the case's name
and the slice alone, and is drawn on the CPU: other cases, batches and devices do not change it.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medsynth.core.volume import Volume
from medsynth.physics.ct import Projector, attenuation
from medsynth.physics.geometry import FINER, Geometry, ImageGrid
from medsynth.physics.joseph import most_bytes
from medsynth.physics.noise import expected_relative_noise, photon_noise
from medsynth.scans.inplane import PlaneGrid, onto

BATCH = 8  # slices that are columns of one product
I0 = 1e6
MATRIX_BYTES = 2e9  # that the views simulated at once may take with their transposed matrix, which is not built: half of it


@dataclass(frozen=True, kw_only=True)
class Noise:
    """i0: photons that a cell counts without an object; None: no noise. seed: of the run."""

    i0: float | None = I0
    seed: int = 0

    @property
    def described(self) -> dict[str, Any]:
        """For the record."""
        return {"noiseless": True} if self.i0 is None else {"i0": self.i0, "seed": self.seed}


@torch.no_grad()
def project(scan: Volume, grid: PlaneGrid, geometry: Geometry, noise: Noise, device: torch.device) -> Float[Tensor, "s v d"]:
    """Line integrals of a CT in nearest RAS+ order, on the CPU, slices from feet to head, of any number of views.

    Raises UsageError E-GEOMETRY if the source would turn within the scan.
    """
    count, fine = scan.shape[2], ImageGrid(size=grid.size * FINER, pixel_mm=grid.pixel_mm / FINER)
    measured = torch.empty(count, geometry.views, geometry.detectors)
    block = max(1, int(MATRIX_BYTES * geometry.views / most_bytes(geometry, fine)))
    for view in range(0, geometry.views, block):
        views = slice(view, view + block)
        operator = _operator(geometry.model_copy(update={"angles_deg": geometry.angles_deg[views]}), fine, device)
        for first in range(0, count, BATCH):
            slices_hu = torch.from_numpy(onto(scan, grid, slice(first, first + BATCH), finer=FINER))
            measured[first : first + BATCH, views] = operator.forward(attenuation(slices_hu.to(device))).cpu()
    for number, true in enumerate(measured):
        measured[number] = _noisy(true, noise, scan.origin.case, number)
    return measured


def expected_noise(sinogram: Float[Tensor, "s v d"], i0: float) -> float:
    """||noise|| / ||sinogram|| of a whole scan that i0 photons lead to: the residual that the truth itself would leave."""
    signal = sinogram.square().sum((1, 2))
    return float(((expected_relative_noise(sinogram, i0).square() * signal).sum() / signal.sum().clamp(min=1e-30)).sqrt())


def _noisy(true: Float[Tensor, "v d"], noise: Noise, case: str, number: int) -> Float[Tensor, "v d"]:
    if noise.i0 is None:
        return true
    digest = hashlib.sha256(f"{noise.seed}/{case}/{number}".encode()).digest()
    return photon_noise(true, noise.i0, torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1))


@lru_cache(maxsize=1)
def _operator(geometry: Geometry, grid: ImageGrid, device: torch.device) -> Projector:
    """The operator that simulates: only the last one is kept, since its matrix is four times that of the reconstruction's."""
    return Projector(geometry, grid, device)
