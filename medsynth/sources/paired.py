"""Pairs of real scans for training: patches of packed scans, in a random pose and shape, the MR as another scanner might have made it.

What `verbs.pack` writes is mapped into memory, so that a pair costs the reading of its own patch, and all workers share what is read.
Everything random about a pair is drawn first, into a record; `render` is then a function of the record and the packed scan.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from medsynth.core.anatomy import region_of
from medsynth.core.generator import Condition, Target, place_of
from medsynth.core.quantity import CT
from medsynth.sources.augment import Change, Spacing, change, draw_change
from medsynth.sources.deform import Deformation, coordinates, draw_deformation, place
from medsynth.sources.degrade import Patch

UNKNOWN, AIR, BODY = range(3)
OUTSIDE_WEIGHT = 0.25  # air around the body is easy and large; it counts a quarter
OUTSIDE_HU = -1000.0
WHOLE = 0.999
OVERHANG_MM = 10.0  # how far a patch may look past the scan
TRIES = 200  # of finding a voxel of the body by chance; less than one in a hundred is body only in scans that check refuses


# A packed file: the voxels of a grid along R, A and S. image: the MR in network units. ct_hu: air outside the body. known: UNKNOWN where MR
# or CT does not reach, else AIR or BODY.
PACKED = np.dtype([("image", "f2"), ("ct_hu", "i2"), ("known", "u1")])
Packed = np.ndarray  # PACKED [x y z]


class Recipe(NamedTuple):
    """Everything random about one pair, but for white noise, whose seed it holds. scan: index. change: None leaves the MR as it is."""

    scan: int
    deformation: Deformation
    change: Change | None
    noise_seed: int


class PairedScans:
    """Pairs by step from packed files, one side of the split. training: any pose, shape and scanner; validation: scans as they are."""

    def __init__(self, files: tuple[Path, ...], *, patch: Patch, spacing_mm: Spacing, seed: int) -> None:
        self.files = files
        self.patch = patch
        self.spacing_mm = spacing_mm
        self.seed = seed

    def training_pair(self, step: int, device: torch.device) -> tuple[Condition, Target]:
        """The pair of a step, batch of one."""
        rng = np.random.default_rng((self.seed, step))
        scan = int(rng.integers(len(self.files)))
        packed = open_packed(self.files[scan])
        recipe = draw_training(rng, scan, packed, self.patch, self.spacing_mm)
        return render(recipe, packed, self.spacing_mm, self.patch, device)

    def validation_pair(self, index: int, device: torch.device) -> tuple[Condition, Target, str]:
        """A repeatable pair with its kind, "val": scans in turn, then places in the body."""
        rng = np.random.default_rng((self.seed, 10**9 + index))
        scan = index % len(self.files)
        packed = open_packed(self.files[scan])
        recipe = draw_plain(rng, scan, packed, self.patch, self.spacing_mm)
        return *render(recipe, packed, self.spacing_mm, self.patch, device), "val"


def open_packed(path: Path) -> Packed:
    """The voxels of a packed file, not read until they are looked at."""
    return np.load(path, mmap_mode="r")


def draw_training(rng: np.random.Generator, scan: int, packed: Packed, patch: Patch, spacing_mm: Spacing) -> Recipe:
    """A pair for training: everything varies."""
    patch_mm = np.array(patch) * spacing_mm
    shape_mm = tuple(round(side) for side in np.array(packed.shape) * spacing_mm)
    pose = draw_deformation(rng, shape_mm, tuple(round(side) for side in patch_mm), 1.0)
    centre_mm = _centre_mm(rng, packed, patch, spacing_mm) + rng.uniform(-OVERHANG_MM, OVERHANG_MM, 3)
    pose = pose._replace(matrix=pose.matrix @ np.diag(spacing_mm), centre=centre_mm)
    return Recipe(scan, pose, draw_change(rng, spacing_mm), int(rng.integers(2**62)))


def draw_plain(rng: np.random.Generator, scan: int, packed: Packed, patch: Patch, spacing_mm: Spacing) -> Recipe:
    """A pair for validation: a patch of the scan as it is."""
    pose = place(_centre_mm(rng, packed, patch, spacing_mm), 1.0)
    return Recipe(scan, pose._replace(matrix=np.diag(spacing_mm)), None, 0)


def render(recipe: Recipe, packed: Packed, spacing_mm: Spacing, patch: Patch, device: torch.device) -> tuple[Condition, Target]:
    """The pair of a recipe, batch of one, in network units. Beyond the scan: MR 0, CT air, weight 0."""
    step = torch.tensor(spacing_mm, device=device)[:, None, None, None]
    points = coordinates(recipe.deformation, patch, device) / step - 0.5  # voxels of the scan
    first, crop = _crop(packed, points)
    image, ct_hu, known = (torch.from_numpy(crop[name].astype(np.float32)).to(device) for name in ("image", "ct_hu", "known"))
    grid = _sampling_grid(points, first, crop.shape)
    image, above_air, whole = _sampled(torch.stack([image, ct_hu - OUTSIDE_HU, (known != UNKNOWN).float()]), grid, "bilinear")
    (known,) = _sampled(known[None], grid, "nearest")
    known = torch.where(whole > WHOLE, known, UNKNOWN)  # at a rim the values are mixed with what is not there
    image = image[None]
    if recipe.change is not None:
        rng = torch.Generator(device=device).manual_seed(recipe.noise_seed)
        image = change(image, recipe.change, rng) * (known != UNKNOWN)
    weight = torch.where(known == BODY, 1.0, OUTSIDE_WEIGHT) * (known != UNKNOWN)
    target = CT().fit().encode(above_air + OUTSIDE_HU)
    nth = _place(recipe, packed, spacing_mm).to(device)
    return Condition(image=image[None]), Target(image=target[None, None], weight=weight[None, None], place=nth)


def _place(recipe: Recipe, packed: Packed, spacing_mm: Spacing) -> Int[Tensor, " 1"]:
    """By the axial slice in the middle of the patch."""
    height = float(recipe.deformation.centre[2]) / spacing_mm[2]
    middle = packed[:, :, min(packed.shape[2] - 1, max(0, int(height)))]["ct_hu"]
    return place_of(region_of(middle, spacing_mm[0]), height, packed.shape[2])


def _centre_mm(rng: np.random.Generator, packed: Packed, patch: Patch, spacing_mm: Spacing) -> np.ndarray:
    """Middle of a patch whose voxels are the scan's: near a place in the body, but inside the scan; in its middle if it is larger."""
    for _ in range(TRIES):
        voxel = rng.integers(packed.shape)
        if packed[tuple(voxel)]["known"] == BODY:
            break
    else:
        voxel = np.array(packed.shape) // 2
    room = np.array(packed.shape) - patch
    first = np.where(room < 0, room // 2, np.clip(voxel - np.array(patch) // 2, 0, np.maximum(room, 0)))
    return (first + np.array(patch) / 2) * spacing_mm


def _crop(packed: Packed, points: Float[Tensor, "3 x y z"]) -> tuple[list[int], Packed]:
    """First voxel and copy of the part of the scan that the points reach, one voxel at least."""
    low, high = (end(points.flatten(1), dim=1).tolist() for end in (torch.amin, torch.amax))
    first = [int(np.clip(np.floor(a), 0, n - 1)) for a, n in zip(low, packed.shape, strict=True)]
    last = [int(np.clip(np.ceil(b), 0, n - 1)) for b, n in zip(high, packed.shape, strict=True)]
    return first, np.array(packed[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))])


def _sampling_grid(points: Float[Tensor, "3 x y z"], first: list[int], shape: tuple[int, ...]) -> Float[Tensor, "1 x y z 3"]:
    """The points as grid_sample wants them: -1 to 1 over the crop's voxels from edge to edge, last axis first."""
    relative = [(2 * (p - a) + 1) / n - 1 for p, a, n in zip(points, first, shape, strict=True)]
    return torch.stack(relative[::-1], dim=-1)[None]


def _sampled(values: Float[Tensor, "c i j k"], grid: Float[Tensor, "1 x y z 3"], mode: str) -> Float[Tensor, "c x y z"]:
    """Values at the points, 0 beyond the scan."""
    return F.grid_sample(values[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]
