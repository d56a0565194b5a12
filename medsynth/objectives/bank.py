"""The feature bank: what drifting compares, at three levels of every stage of an encoder (after GDM, arXiv 2604.19736).

The abstract names global, local and spatial features; their form is ours.

A map is [b l d]: for each of b samples a vector of d numbers at each of l locations. Every location is a drifting problem of its own.
"""

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from medsynth.core.recipe import Level

WINDOWS = 4  # along each axis, of the local level
VARIANCE_FLOOR = 1e-6


def feature_maps(
    stages: Sequence[Float[Tensor, "b _ _ _ _"]], levels: Sequence[Level], *, locations: int
) -> dict[str, Float[Tensor, "b _ _"]]:
    """Maps by name, such as "stage2/local", in float32.

    global: mean and deviation of each channel over the patch, [b 1 2c]. local: the same in 4 x 4 x 4 windows, [b 64 2c]. spatial: the
    vectors at `locations` places that are the same for every patch and step, [b k c].
    """
    makers = {"global": _global, "local": _local, "spatial": lambda f: _spatial(f, locations)}
    return {f"stage{i}/{level}": makers[level](stage.float()) for i, stage in enumerate(stages) for level in levels}


def tiles(image: Float[Tensor, "b c x y z"], tile: tuple[int, int, int]) -> Float[Tensor, "t c i j k"]:
    """The image cut into tiles, image by image; a rest at an axis' end is left out, an axis shorter than the tile repeats its voxels."""
    for axis, side in enumerate(tile, 2):
        if image.shape[axis] < side:
            image = image.repeat_interleave(-(-side // image.shape[axis]), axis).narrow(axis, 0, side)
        image = image.unfold(axis, side, side)  # tiles take the axis' place, their voxels a new last axis
    return image.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(0, 3)


def _global(f: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b 1 c2"]:
    return _moments(f, 1)


def _local(f: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b l c2"]:
    return _moments(f, WINDOWS)


def _moments(f: Float[Tensor, "b c x y z"], windows: int) -> Float[Tensor, "b l c2"]:
    """Mean and standard deviation in windows^3 boxes that cover the map."""
    mean = F.adaptive_avg_pool3d(f, windows)
    variance = F.adaptive_avg_pool3d(f.square(), windows) - mean.square()
    return torch.cat([mean, variance.clamp(min=VARIANCE_FLOOR).sqrt()], dim=1).flatten(2).mT


def _spatial(f: Float[Tensor, "b c x y z"], locations: int) -> Float[Tensor, "b l c"]:
    return f.flatten(2)[:, :, _places(f[0, 0].numel(), locations).to(f.device)].mT


@cache
def _places(voxels: int, locations: int) -> Int[Tensor, " l"]:
    """Voxels spread at random, always the same ones: samples kept from earlier steps must have been looked at there."""
    return torch.randperm(voxels, generator=torch.Generator().manual_seed(voxels))[:locations].sort().values
