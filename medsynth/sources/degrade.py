"""What a scanner does to an ideal MR: bias field, blur, thick slices, Rician noise, blanked air, gamma, a cut field of view."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Patch = tuple[int, int, int]


class Degradation(NamedTuple):
    """Parameters of one scan.

    bias: fine and coarse nodes [1 i j k] of the log of the field. blur_sigma, slice_voxels: voxels. noise, air_below: relative to the
    brightest tissue. cuts: (axis, voxels), positive from the low end, negative from the high end.
    """

    bias: tuple[np.ndarray, np.ndarray]
    blur_sigma: float
    slice_axis: int
    slice_voxels: float
    slice_averaged: bool
    noise: float
    air_below: float
    gamma: float
    gain: float
    cuts: tuple[tuple[int, int], ...]


def draw_degradation(rng: np.random.Generator, patch: Patch, spacing_mm: float) -> Degradation:
    """One scan's degradation."""
    sharp = rng.random() < 0.5
    thick = rng.random() < 0.35
    return Degradation(
        bias=(_nodes(rng, 4, 0.4), _nodes(rng, 2, 0.35)),
        blur_sigma=0.0 if sharp else rng.uniform(0.4, 1.5) / spacing_mm,
        slice_axis=int(rng.choice(3, p=[0.2, 0.25, 0.55])),
        slice_voxels=rng.uniform(3, 6.5) / spacing_mm if thick else 1.0,
        slice_averaged=bool(rng.random() < 0.7),
        noise=rng.uniform(0, 0.06) * (rng.random() < 0.85),
        air_below=rng.uniform(0.02, 0.12) * (rng.random() < 0.25),
        gamma=float(np.exp(rng.normal(0, 0.2))),
        gain=float(np.exp(rng.normal(0, 0.1))),
        cuts=_draw_cuts(rng, patch),
    )


def degrade(image: Float[Tensor, "x y z"], how: Degradation, rng: torch.Generator) -> tuple[Float[Tensor, "x y z"], Bool[Tensor, "x y z"]]:
    """The image as scanned, scaled to its brightest tissue, and the field of view."""
    fine, coarse = (torch.from_numpy(nodes).to(image.device)[None] for nodes in how.bias)
    log_field = fine + _upsample(coarse, fine.shape[2:])
    image = image * _upsample(log_field, image.shape)[0, 0].exp_()
    image = _thicken(_blur(image, how.blur_sigma), how)
    image = image / torch.quantile(image.flatten()[::37], 0.98).clamp(min=1e-6)
    if how.noise > 0:
        real, imaginary = torch.randn((2, *image.shape), generator=rng, device=image.device) * how.noise
        image = torch.sqrt((image + real) ** 2 + imaginary**2)
    image = torch.where(image < how.air_below, 0.0, image)
    image = image.clamp(0, 3) ** how.gamma
    view = torch.ones(image.shape, dtype=torch.bool, device=image.device)
    for axis, voxels in how.cuts:
        start = 0 if voxels > 0 else image.shape[axis] + voxels
        view.narrow(axis, start, abs(voxels)).fill_(False)
    return image * view, view


def _upsample(nodes: Float[Tensor, "1 1 i j k"], size: tuple[int, ...]) -> Float[Tensor, "1 1 x y z"]:
    return F.interpolate(nodes, size=size, mode="trilinear", align_corners=True)


def _blur(image: Float[Tensor, "x y z"], sigma: float) -> Float[Tensor, "x y z"]:
    if sigma <= 0:
        return image
    offsets = torch.arange(-2, 3, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    volume = image[None, None]
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[axis + 2] = 5
        padding = [0, 0, 0]
        padding[axis] = 2
        volume = F.conv3d(volume, kernel.view(shape), padding=padding)
    return volume[0, 0]


def _thicken(image: Float[Tensor, "x y z"], how: Degradation) -> Float[Tensor, "x y z"]:
    if how.slice_voxels <= 1:
        return image
    x, y, z = (max(8, int(n / how.slice_voxels)) if axis == how.slice_axis else n for axis, n in enumerate(image.shape))
    size = (x, y, z)
    volume = image[None, None]
    if how.slice_averaged:
        thick = F.adaptive_avg_pool3d(volume, size)
    else:
        thick = F.interpolate(volume, size=size, mode="trilinear", align_corners=False)
    return F.interpolate(thick, size=image.shape, mode="trilinear", align_corners=False)[0, 0]


def _nodes(rng: np.random.Generator, count: int, spread: float) -> np.ndarray:
    return (rng.standard_normal((1, count, count, count)) * rng.uniform(0, spread)).astype(np.float32)


def _draw_cuts(rng: np.random.Generator, patch: Patch) -> tuple[tuple[int, int], ...]:
    """A third of the scans end inside the head: mostly at the jaw, sometimes at the vertex or at a side."""
    if rng.random() >= 0.35:
        return ()
    cuts: list[tuple[int, int]] = []
    for _ in range(rng.integers(1, 3)):
        axis = int(rng.choice(3, p=[0.2, 0.2, 0.6]))
        voxels = int(rng.integers(2, max(3, patch[axis] // (3 if axis == 2 else 6))))
        below = rng.random() < (0.7 if axis == 2 else 0.5)
        cuts.append((axis, voxels if below else -voxels))
    return tuple(cuts)
