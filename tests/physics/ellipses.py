"""Ellipses whose image and line integrals are both known by formula; written from the conventions, not from the operator's code."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medsynth.physics.geometry import Geometry, ImageGrid

WATER = 0.0192


class Ellipse(NamedTuple):
    """Centre and half axes in mm, turned from +x to +y, and what it adds to mu in 1/mm."""

    x: float
    y: float
    a: float
    b: float
    turn_deg: float
    mu: float


BODY = (
    Ellipse(0, 3, 104, 82, 4, WATER),
    Ellipse(38, -8, 26, 38, 15, -0.6 * WATER),
    Ellipse(-42, -5, 24, 36, -8, -0.6 * WATER),
    Ellipse(2, 55, 15, 13, 0, 0.5 * WATER),
    Ellipse(-3, -40, 12, 9, 30, 0.06 * WATER),
)


def image(grid: ImageGrid, ellipses: tuple[Ellipse, ...] = BODY, oversampling: int = 8) -> Tensor:
    """float32 [1 y x], mu in 1/mm, means over the pixels."""
    n = grid.size * oversampling
    axis = (np.arange(n) - (n - 1) / 2) * grid.pixel_mm / oversampling
    fine = np.zeros((n, n), dtype=np.float32)
    for e in ellipses:
        p, q = _own_axes(e, axis[None, :] - e.x, axis[:, None] - e.y)
        fine[p**2 + q**2 <= 1] += e.mu
    return torch.from_numpy(fine.reshape(grid.size, oversampling, grid.size, oversampling).mean((1, 3)))[None]


def sinogram(geometry: Geometry, ellipses: tuple[Ellipse, ...] = BODY) -> Tensor:
    """float32 [1 v d]: chord lengths times mu."""
    beta = np.deg2rad(np.array(geometry.angles_deg))[:, None]
    u = (np.arange(geometry.detectors) - (geometry.detectors - 1) / 2) * geometry.pitch_mm + geometry.detector_offset_mm
    if geometry.beam == "fan":
        behind = geometry.source_to_detector_mm - geometry.source_to_isocentre_mm
        start = geometry.source_to_isocentre_mm * np.cos(beta), geometry.source_to_isocentre_mm * np.sin(beta)
        end = -behind * np.cos(beta) - u * np.sin(beta), -behind * np.sin(beta) + u * np.cos(beta)
    else:
        start = -u * np.sin(beta) + 500 * np.cos(beta), u * np.cos(beta) + 500 * np.sin(beta)
        end = start[0] - 1000 * np.cos(beta), start[1] - 1000 * np.sin(beta)
    length = np.hypot(end[0] - start[0], end[1] - start[1])
    total = np.zeros((geometry.views, geometry.detectors))
    for e in ellipses:
        p0, q0 = _own_axes(e, start[0] - e.x, start[1] - e.y)
        p1, q1 = _own_axes(e, end[0] - e.x, end[1] - e.y)
        dp, dq = p1 - p0, q1 - q0
        square, half, rest = dp**2 + dq**2, p0 * dp + q0 * dq, p0**2 + q0**2 - 1
        total += e.mu * length * 2 * np.sqrt(np.maximum(half**2 - square * rest, 0)) / square
    return torch.from_numpy(total.astype(np.float32))[None]


def inside(grid: ImageGrid, ellipse: Ellipse, shrunk: float = 0.95) -> Tensor:
    """bool [y x]: pixels well within an ellipse."""
    axis = (np.arange(grid.size) - (grid.size - 1) / 2) * grid.pixel_mm
    p, q = _own_axes(ellipse, axis[None, :] - ellipse.x, axis[:, None] - ellipse.y)
    return torch.from_numpy(p**2 + q**2 <= shrunk**2)


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a - b).norm() / b.norm())


def _own_axes(e: Ellipse, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along the ellipse's axes, in half axes."""
    turn = np.deg2rad(e.turn_deg)
    return (x * np.cos(turn) + y * np.sin(turn)) / e.a, (-x * np.sin(turn) + y * np.cos(turn)) / e.b
