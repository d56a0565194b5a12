"""Filtered backprojection: the ramp filter and the pixel-driven backprojection (Kak and Slaney 1988, sections 3.3 and 3.4).

A flat detector is dealt with as one at the isocentre. Each pixel looks up where it falls on the detector and interpolates linearly there.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from medsynth.physics.geometry import Geometry, ImageGrid
from medsynth.physics.joseph import BYTES_PER_ENTRY, cell_positions_mm, csr

Window = Literal["ram-lak", "hann", "hann-pixel"]


def filtered(sinogram: Float[Tensor, "s v d"], geometry: Geometry, pixel_mm: float, window: Window) -> Float[Tensor, "s v d"]:
    """The sinogram, weighted for the fan's obliqueness and convolved with the ramp filter along the detector; 1/mm."""
    length = 1 << (2 * geometry.detectors - 1).bit_length()  # no wrap-around
    response = _response(length, geometry.pitch_at_isocentre_mm, pixel_mm, window).to(sinogram.device)
    spectrum = torch.fft.rfft(sinogram * _obliqueness(geometry).to(sinogram.device), length)
    return torch.fft.irfft(spectrum * response, length)[..., : geometry.detectors]


@torch.inference_mode(False)
def backprojection(geometry: Geometry, grid: ImageGrid, views: Sequence[int]) -> Tensor:
    """Of the given views, as a float32 CSR matrix on the CPU: rows [y, x], columns [view, cell]. All views' sum is the image.

    Each line is measured once in half a turn of parallel rays and twice in a full turn: both give every view a weight of pi / views.
    """
    size, cells = grid.size, geometry.detectors
    axis = (torch.arange(size, dtype=torch.float32) - (size - 1) / 2) * grid.pixel_mm
    angles = torch.tensor([geometry.angles_rad[view] for view in views], dtype=torch.float64)
    cosine, sine = angles.cos().float(), angles.sin().float()
    towards_source = (axis[:, None, None] * sine + axis[:, None] * cosine).flatten(0, 1)
    sideways = (axis[:, None, None] * cosine - axis[:, None] * sine).flatten(0, 1)
    weight = torch.full_like(sideways, math.pi / geometry.views)
    if geometry.beam == "fan":
        magnified = geometry.source_to_isocentre_mm / (geometry.source_to_isocentre_mm - towards_source)
        sideways *= magnified
        weight *= magnified.square_()
    offset = geometry.detector_offset_mm / geometry.magnification
    position = (sideways - offset) / geometry.pitch_at_isocentre_mm + (cells - 1) / 2
    below = position.floor()
    upper_share = position - below
    cell = below.int()[..., None] + torch.tensor([0, 1], dtype=torch.int32)
    weights = torch.stack([(1 - upper_share) * weight, upper_share * weight], dim=2)
    weights *= (cell >= 0) & (cell < cells)
    columns = cell.clamp_(0, cells - 1) + (torch.arange(len(views), dtype=torch.int32) * cells)[:, None]
    row_start = torch.arange(size**2 + 1) * (2 * len(views))
    return csr(row_start, columns.flatten(), weights.flatten(), (size**2, len(views) * cells))


def backprojection_bytes(grid: ImageGrid, views: int) -> int:
    """Memory of the matrix for so many views."""
    return BYTES_PER_ENTRY * grid.size**2 * 2 * views


@cache
@torch.inference_mode(False)
def _obliqueness(geometry: Geometry) -> Float[Tensor, " d"]:
    """Cosine between each cell's ray and the middle one."""
    if geometry.beam == "parallel":
        return torch.ones(geometry.detectors)
    distance = geometry.source_to_detector_mm
    return (distance / (distance**2 + cell_positions_mm(geometry).square()).sqrt()).float()


@cache
@torch.inference_mode(False)
def _response(length: int, pitch_mm: float, pixel_mm: float, window: Window) -> Float[Tensor, " f"]:
    """The ramp filter's response to each frequency up to the detector's Nyquist, in 1/mm; float32.

    From the band-limited kernel in space, since a ramp sampled in frequency loses the mean (Kak and Slaney, eq. 61 of chapter 3). ram-lak:
    the ramp as it is. hann: falls to 0 at the detector's Nyquist; hann-pixel: at the image's, often coarser than the cells.
    """
    tap = torch.arange(length)
    tap = torch.where(tap > length // 2, tap - length, tap)
    odd = tap % 2 != 0
    kernel = torch.zeros(length, dtype=torch.float64)
    kernel[0] = 1 / (4 * pitch_mm**2)
    kernel[odd] = -1 / (math.pi * tap[odd].double() * pitch_mm) ** 2
    ramp = torch.fft.rfft(kernel).real * pitch_mm
    if window == "ram-lak":
        return ramp.float()
    cutoff = min(1.0, pitch_mm / pixel_mm) if window == "hann-pixel" else 1.0
    frequency = (torch.arange(length // 2 + 1) / (length // 2) / cutoff).clamp(max=1)
    return (ramp * (1 + torch.cos(math.pi * frequency)) / 2).float()
