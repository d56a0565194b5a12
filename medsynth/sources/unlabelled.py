"""Crops of CTs for learning without labels: from packed scans, and from CTs that are drawn from head label maps.

Everything random about a crop follows from its number. A packed scan is int16 HU on an isotropic grid; zoom, blur and reflection past its
border are three small matrices, one an axis, so that a crop costs a few milliseconds whatever its zoom.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medsynth.core.quantity import CT, HU_MIN
from medsynth.scans.files import replacing
from medsynth.sources.deform import place
from medsynth.sources.degrade import Patch
from medsynth.sources.labels import Recipe, draw_plain, draw_training, render, tissue_map
from medsynth.sources.packed import Head, load_heads
from medsynth.sources.texture import add_texture

Kind = Literal["ct", "head"]
HU_TOP = 4000  # metal above this tells nothing more
BODY_HU = -900  # lungs lie above, the air around the patient below
SIGMA_MIN = 0.4  # voxels; a narrower Gaussian leaves stripes where a crop's voxels lie between the scan's
SIGMA_PER_ZOOM = 0.42  # voxels of the crop's own grid: full width at half maximum of one voxel
NOISE_HU = 20.0
VALIDATION_OFFSET = 10**9


class Item(NamedTuple):
    """path: a packed CT (.npz), or a head label map (NIfTI) that is packed on first use. name: without ending, to choose it by."""

    kind: Kind
    name: str
    path: Path


class Crop(NamedTuple):
    """Everything random about a crop of a CT, but for white noise, whose seed it holds.

    centre: voxels of the scan. zoom: voxels of the scan to one of the crop. sigma: blur along each axis, voxels of the scan.
    axes, flips: which way the crop lies.
    """

    item: int
    centre: np.ndarray
    zoom: float
    sigma: np.ndarray
    axes: tuple[int, ...]
    flips: tuple[int, ...]
    noise_hu: float
    noise_seed: int


class Crops:
    """Cubes by number, `side` voxels, at a spacing drawn between the two of `spacing_mm`; the first is that of the packed scans."""

    def __init__(
        self, items: Sequence[Item], *, cache: Path, side: int, spacing_mm: tuple[float, float], seed: int, head_share: float
    ) -> None:
        self.scans = [read_packed(item.path) for item in items if item.kind == "ct"]
        self.heads = [head for item in items if item.kind == "head" for head in _load_head(item.path, cache)]
        self.side = side
        self.patch: Patch = (side, side, side)
        self.spacing_mm = spacing_mm
        self.seed = seed
        self.head_share = head_share if self.scans else 1.0

    def training_crop(self, number: int) -> Float[Tensor, "1 x y z"]:
        """A crop in HU: any scan, place, spacing and orientation."""
        rng = np.random.default_rng((self.seed, number))
        if self.heads and rng.random() < self.head_share:
            spacing_mm = self._spacing(rng)
            recipe = draw_training(rng, self.heads, self.patch, spacing_mm)
            return _oriented(self._drawn(recipe, spacing_mm), *_orientation(rng))[None]
        crop = draw_crop(rng, self.scans, self.side, self._spacing(rng) / self.spacing_mm[0])
        return cut(crop, self.scans[crop.item], self.side)[None]

    def validation_crop(self, index: int) -> tuple[Float[Tensor, "1 x y z"], Kind]:
        """A repeatable crop with its kind; kinds in turn, then scans. Upright, without noise or further blur."""
        rng = np.random.default_rng((self.seed, VALIDATION_OFFSET + index))
        kinds = ["ct"] * bool(self.scans) + ["head"] * bool(self.heads)
        turn = index // len(kinds)
        spacing_mm = self._spacing(rng)
        if kinds[index % len(kinds)] == "head":
            recipe = self._plain(rng, turn % len(self.heads), spacing_mm)
            return self._drawn(recipe, spacing_mm)[None], "head"
        zoom, scan = spacing_mm / self.spacing_mm[0], self.scans[turn % len(self.scans)]
        crop = draw_crop(rng, [scan], self.side, zoom)
        crop = crop._replace(sigma=np.full(3, _sigma(zoom)), axes=(0, 1, 2), flips=(), noise_hu=0.0)
        return cut(crop, scan, self.side)[None], "ct"

    def _spacing(self, rng: np.random.Generator) -> float:
        low, high = np.log(self.spacing_mm)
        return float(np.exp(rng.uniform(low, high)))

    def _plain(self, rng: np.random.Generator, head: int, spacing_mm: float) -> Recipe:
        shape = np.array(self.heads[head].tissue.shape)
        slack_mm = np.maximum(0, shape - self.side * spacing_mm) / 2
        centre_mm = shape / 2 + rng.uniform(-1, 1, 3) * slack_mm
        return draw_plain(rng, head, "t1", place(centre_mm, spacing_mm), self.patch, spacing_mm)

    def _drawn(self, recipe: Recipe, spacing_mm: float) -> Float[Tensor, "x y z"]:
        """The CT of a recipe, with texture: flat tissues would teach the encoder that CTs have none."""
        device = torch.device("cpu")
        _, target = render(recipe, self.heads[recipe.head], self.patch, device)
        ct_hu = CT().fit().decode(target.image[0, 0])
        tissue = tissue_map(recipe, self.heads[recipe.head], self.patch, device)
        return add_texture(ct_hu, tissue, torch.Generator().manual_seed(recipe.noise_seed), spacing_mm)


def read_packed(path: Path) -> np.ndarray:
    """int16 HU [x y z] of a packed scan."""
    with np.load(path) as file:
        return file["ct_hu"]


def write_packed(path: Path, ct_hu: np.ndarray) -> None:
    """Inverse of `read_packed`; HU are rounded and bounded to what a CT can tell."""
    whole = np.rint(np.clip(ct_hu, HU_MIN, HU_TOP)).astype(np.int16)
    with replacing(path) as part:
        np.savez_compressed(part, ct_hu=whole)


def draw_crop(rng: np.random.Generator, scans: Sequence[np.ndarray], side: int, zoom: float) -> Crop:
    """A crop around a voxel of the body; scans count by the root of their size, so that neither large nor many small ones prevail."""
    weight = np.sqrt([scan.size for scan in scans])
    item = int(rng.choice(len(scans), p=weight / weight.sum()))
    reach = (side - 1) / 2 * zoom
    low, high = np.full(3, reach), np.array(scans[item].shape) - 1 - reach
    centre = np.clip(_in_body(rng, scans[item]), np.minimum(low, high), np.maximum(low, high))
    axes, flips = _orientation(rng)
    jitter = rng.uniform(0, 0.8, 3) * (rng.random(3) < 0.5) * zoom
    return Crop(
        item=item,
        centre=centre,
        zoom=zoom,
        sigma=np.hypot(_sigma(zoom), jitter),
        axes=axes,
        flips=flips,
        noise_hu=float(rng.uniform(0, NOISE_HU) * (rng.random() < 0.5)),
        noise_seed=int(rng.integers(2**62)),
    )


def cut(crop: Crop, scan: np.ndarray, side: int) -> Float[Tensor, "x y z"]:
    """The crop in HU, a function of the record and its scan alone; past the border the scan is reflected."""
    offsets = (np.arange(side) - (side - 1) / 2) * crop.zoom
    rows = [axis_matrix(centre + offsets, sigma, n) for centre, sigma, n in zip(crop.centre, crop.sigma, scan.shape, strict=True)]
    window = scan[tuple(slice(start, start + matrix.shape[1]) for start, matrix in rows)]
    volume = torch.from_numpy(window.astype(np.float32))
    for _, matrix in rows:
        volume = torch.einsum("abc,xa->bcx", volume, torch.from_numpy(matrix))  # the axis that was first is now last
    noise = torch.randn(volume.shape, generator=torch.Generator().manual_seed(crop.noise_seed))
    return _oriented(volume + crop.noise_hu * noise, crop.axes, crop.flips).clamp(min=HU_MIN)


def axis_matrix(positions: np.ndarray, sigma: float, length: int) -> tuple[int, np.ndarray]:
    """Gaussian interpolation at `positions` on an axis of `length` voxels, reflected past its ends.

    Returns the first voxel that counts and a float32 matrix [position voxel] from there on, whose rows sum to one.
    """
    reach = int(np.ceil(3 * sigma)) + 1
    virtual = np.arange(int(np.floor(positions.min())) - reach, int(np.ceil(positions.max())) + reach + 1)
    weight = np.exp(-0.5 * ((virtual - positions[:, None]) / sigma) ** 2)
    weight /= weight.sum(1, keepdims=True)
    period = max(1, 2 * (length - 1))
    folded = virtual % period
    voxel = np.minimum(folded, period - folded) if length > 1 else np.zeros_like(virtual)
    start = int(voxel.min())
    matrix = np.zeros((len(positions), int(voxel.max()) - start + 1), dtype=np.float32)
    np.add.at(matrix.T, voxel - start, weight.T.astype(np.float32))
    return start, matrix


def _sigma(zoom: float) -> float:
    """Blur that a coarser grid needs, voxels of the scan."""
    return max(SIGMA_MIN, SIGMA_PER_ZOOM * float(np.sqrt(max(0.0, zoom**2 - 1))))


def _in_body(rng: np.random.Generator, scan: np.ndarray) -> np.ndarray:
    """A random voxel above BODY_HU; any voxel if ten draws found none."""
    voxel = rng.integers(scan.shape)
    for _ in range(10):
        if scan[tuple(voxel)] > BODY_HU:
            break
        voxel = rng.integers(scan.shape)
    return voxel.astype(np.float64)


def _orientation(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Axes in any order, and those that are mirrored: all turns by 90 degrees, and their mirror images."""
    return tuple(rng.permutation(3).tolist()), tuple(np.flatnonzero(rng.random(3) < 0.5).tolist())


def _oriented(volume: Float[Tensor, "x y z"], axes: tuple[int, ...], flips: tuple[int, ...]) -> Float[Tensor, "i j k"]:
    return volume.permute(axes).flip(flips).contiguous()


def _load_head(path: Path, cache: Path) -> list[Head]:
    return load_heads(path.parent, (path.name.split(".")[0],), cache=cache)
