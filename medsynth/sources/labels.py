"""Pairs of MR and CT drawn from head label maps: random pose, shape, contrast and scanner; the CT follows from the same labels.

The idea is SynthSeg's and SynthSR's (Billot 2023; Iglesias 2021): what varies in training beyond what is real need not be learned again
for each scanner. Everything random about a pair is drawn first, into a record; `render` is then a function of the record alone.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn import functional as F

from medsynth.core.anatomy import HEAD
from medsynth.core.generator import Condition, Target, place_of
from medsynth.core.quantity import CT, MR
from medsynth.sources.contrast import Contrast, draw_contrast
from medsynth.sources.deform import Deformation, coordinates, draw_deformation, place
from medsynth.sources.degrade import Degradation, Patch, degrade, draw_degradation
from medsynth.sources.packed import DEPTH_UNIT_MM, Head, load_heads
from medsynth.sources.texture import add_texture
from medsynth.sources.tissues import BRAIN, COUNT, HU_RANGE, INDEX, NETWORK_CLASS

CLASSES = int(NETWORK_CLASS.max()) + 1
FAT_NODE_VOXELS = 3  # lobules and streaks of fat some 6 mm wide
OUTSIDE_WEIGHT = 0.25  # air around the head is easy and large; it counts a quarter
# Four points inside a voxel (corners of a tetrahedron): their mean is the partial volume.
SUBVOXELS = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 0.25


class Blob(NamedTuple):
    """An ellipsoid in the map: centre and radii in mm."""

    centre: np.ndarray
    radii: np.ndarray


class Recipe(NamedTuple):
    """Everything random about one pair, but for white noise, whose seed it holds. hu: float32 [tissue]."""

    head: int
    deformation: Deformation
    contrast: Contrast
    degradation: Degradation
    hu: np.ndarray
    fat_depth_mm: float
    fat_spread_mm: float
    fat_streaks: float
    lesions: tuple[Blob, ...]
    flap: Blob | None
    coarse_texture: bool
    noise_seed: int


class LabelPairs:
    """Pairs by step. training: any pose and contrast; otherwise heads as they are, mean HU, kinds T1, T2, FLAIR in turn.

    texture: whether the CT has a scanner's noise and the tissues' unevenness, so that there is realism to learn.
    """

    def __init__(
        self, folder: Path, names: tuple[str, ...], *, cache: Path, patch: Patch, spacing_mm: float, seed: int, texture: bool = False
    ) -> None:
        self.heads = load_heads(folder, names, cache=cache)
        self.patch = patch
        self.spacing_mm = spacing_mm
        self.seed = seed
        self.texture = texture

    @property
    def digest(self) -> str:
        """Identifies the heads."""
        return hashlib.blake2b(b"".join(head.tissue.tobytes() for head in self.heads), digest_size=16).hexdigest()

    def training_pair(self, step: int, device: torch.device) -> tuple[Condition, Target]:
        """The pair of a step, batch of one."""
        recipe = draw_training(np.random.default_rng((self.seed, step)), self.heads, self.patch, self.spacing_mm)
        return self._rendered(recipe, device)

    def validation_pair(self, index: int, device: torch.device) -> tuple[Condition, Target, str]:
        """A repeatable pair with its kind of contrast: heads in turn, then kinds, then places in the head."""
        head = index % len(self.heads)
        kind = ("t1", "t2", "flair")[index // len(self.heads) % 3]
        rng = np.random.default_rng((self.seed, 10**9 + index))
        shape = np.array(self.heads[head].tissue.shape)
        slack_mm = np.maximum(0, shape - np.array(self.patch) * self.spacing_mm) / 2
        centre_mm = shape / 2 + rng.uniform(-1, 1, 3) * slack_mm
        recipe = draw_plain(rng, head, kind, place(centre_mm, self.spacing_mm), self.patch, self.spacing_mm)
        return *self._rendered(recipe, device), kind

    def _rendered(self, recipe: Recipe, device: torch.device) -> tuple[Condition, Target]:
        head = self.heads[recipe.head]
        condition, target = render(recipe, head, self.patch, device)
        return condition, textured(target, recipe, head, self.spacing_mm) if self.texture else target


def draw_training(rng: np.random.Generator, heads: list[Head], patch: Patch, spacing_mm: float) -> Recipe:
    """A pair for training: everything varies."""
    index = int(rng.integers(len(heads)))
    tissue = heads[index].tissue
    lesions = tuple(_blob_in(rng, tissue, _BRAIN_TISSUES, (3, 18)) for _ in range(rng.integers(1, 4))) if rng.random() < 0.12 else ()
    return Recipe(
        head=index,
        deformation=draw_deformation(rng, tissue.shape, patch, spacing_mm),
        contrast=draw_contrast(rng),
        degradation=draw_degradation(rng, patch, spacing_mm),
        hu=rng.uniform(HU_RANGE[:, 0], HU_RANGE[:, 1]).astype(np.float32),
        fat_depth_mm=rng.uniform(6, 11),
        fat_spread_mm=rng.uniform(2, 4),
        fat_streaks=rng.uniform(0.2, 0.9),
        lesions=lesions,
        flap=_blob_in(rng, tissue, (INDEX["cortical"],), (15, 45)) if rng.random() < 0.06 else None,
        coarse_texture=bool(rng.random() < 0.5),
        noise_seed=int(rng.integers(2**62)),
    )


def draw_plain(rng: np.random.Generator, head: int, kind: str, deformation: Deformation, patch: Patch, spacing_mm: float) -> Recipe:
    """A pair for validation and examples: the head as it is, the middle of each HU range, no cut field of view, no lesion."""
    return Recipe(
        head=head,
        deformation=deformation,
        contrast=draw_contrast(rng, kind),
        degradation=draw_degradation(rng, patch, spacing_mm)._replace(cuts=(), gain=1.0),
        hu=HU_RANGE.mean(1),
        fat_depth_mm=8.5,
        fat_spread_mm=3,
        fat_streaks=0.55,
        lesions=(),
        flap=None,
        coarse_texture=True,
        noise_seed=int(rng.integers(2**62)),
    )


def render(recipe: Recipe, head: Head, patch: Patch, device: torch.device) -> tuple[Condition, Target]:
    """The pair of a recipe, batch of one, in network units."""
    rng = torch.Generator(device=device).manual_seed(recipe.noise_seed)
    points = coordinates(recipe.deformation, patch, device)
    fat = _fat(recipe, head, points, rng)
    tissues = _subvoxel_tissues(recipe, head, points, fat)
    mean, sd, hu = (torch.from_numpy(table).to(device) for table in (recipe.contrast.mean, recipe.contrast.sd, recipe.hu))
    tissue = tissues[0]
    signal = _mean_of(mean, tissues) + sd.take(tissue) * _texture(recipe.coarse_texture, patch, rng)
    image, view = degrade(signal.clamp_(min=0), recipe.degradation, rng)
    scale = MR().fit(image.cpu().numpy())
    weight = torch.where(tissue > 0, 1.0, OUTSIDE_WEIGHT) * view
    return (
        Condition(image=(scale.encode(image) * recipe.degradation.gain)[None, None].float()),
        Target(
            image=CT().fit().encode(_mean_of(hu, tissues))[None, None],
            weight=weight[None, None],
            shares=_shares(tissues)[None],
            place=place_of(HEAD, float(recipe.deformation.centre[2]), head.tissue.shape[2]).to(device),
        ),
    )


def textured(target: Target, recipe: Recipe, head: Head, spacing_mm: float) -> Target:
    """The pair's target with texture, which the recipe's seed decides. The tissues' shares stay what they are."""
    _, _, *patch = target.image.shape
    device = target.image.device
    tissue = tissue_map(recipe, head, (patch[0], patch[1], patch[2]), device)
    rng = torch.Generator(device=device).manual_seed(recipe.noise_seed + 1)
    scale = CT().fit()
    ct_hu = add_texture(scale.decode(target.image[0, 0]), tissue, rng, spacing_mm)
    return replace(target, image=scale.encode(ct_hu)[None, None])


def tissue_map(recipe: Recipe, head: Head, patch: Patch, device: torch.device) -> Int[Tensor, "x y z"]:
    """The tissue in the middle of each voxel of `render`'s pair, index into TISSUES: what `texture.add_texture` needs."""
    rng = torch.Generator(device=device).manual_seed(recipe.noise_seed)
    points = coordinates(recipe.deformation, patch, device)
    fat = _fat(recipe, head, points, rng)
    volume = torch.from_numpy(head.tissue).to(device)
    return _changed(_lookup(volume, points).long(), points, fat, recipe)


_BRAIN_TISSUES = tuple(int(i) for i in np.flatnonzero(NETWORK_CLASS == BRAIN))


def _subvoxel_tissues(recipe: Recipe, head: Head, points: Float[Tensor, "3 x y z"], fat: Tensor) -> list[Int[Tensor, "x y z"]]:
    """The tissue at each of the four points inside the voxels."""
    volume = torch.from_numpy(head.tissue).to(points.device)
    offsets = torch.tensor(SUBVOXELS @ recipe.deformation.matrix.T, dtype=torch.float32, device=points.device)
    return [_changed(_lookup(volume, points + offset[:, None, None, None]).long(), points, fat, recipe) for offset in offsets]


def _mean_of(table: Float[Tensor, " t"], tissues: list[Int[Tensor, "x y z"]]) -> Float[Tensor, "x y z"]:
    """Partial volume: the table's value, averaged over the points inside each voxel."""
    total = table.take(tissues[0])
    for tissue in tissues[1:]:
        total += table.take(tissue)
    return total / len(tissues)


def _shares(tissues: list[Int[Tensor, "x y z"]]) -> Float[Tensor, "k x y z"]:
    """Share of each class. Counts are added as 4-bit fields of one integer: a quarter of the passes of one-hot maps."""
    field = torch.tensor(1 << (4 * NETWORK_CLASS), dtype=torch.int32, device=tissues[0].device)
    counts = field.take(tissues[0])
    for tissue in tissues[1:]:
        counts += field.take(tissue)
    return torch.stack([((counts >> (4 * k)) & 15) for k in range(CLASSES)]) * (1 / len(tissues))


def _lookup(volume: Tensor, points: Float[Tensor, "3 x y z"]) -> Integer[Tensor, "x y z"]:
    """Nearest neighbour; past the border the outermost voxel."""
    _, ny, nz = volume.shape
    i, j, k = (p.round().clamp_(0, n - 1).int() for p, n in zip(points, volume.shape, strict=True))
    return volume.reshape(-1)[(i * ny + j) * nz + k]


def _fat(recipe: Recipe, head: Head, points: Float[Tensor, "3 x y z"], rng: torch.Generator) -> Tensor:
    """bool [x y z]: where "other tissue" is fat: under the skin, and in streaks between muscles."""
    depth_mm = _lookup(torch.from_numpy(head.depth).to(points.device), points) * DEPTH_UNIT_MM
    patch = tuple(points.shape[1:])
    edge, streaks = (_smooth_noise(patch, FAT_NODE_VOXELS, rng) for _ in range(2))
    return (depth_mm < recipe.fat_depth_mm + recipe.fat_spread_mm * edge) | (streaks > recipe.fat_streaks)


def _changed(tissue: Int[Tensor, "x y z"], points: Float[Tensor, "3 x y z"], fat: Tensor, recipe: Recipe) -> Int[Tensor, "x y z"]:
    """The tissues of this recipe: fat split off, lesions in the brain, bone missing under a flap."""
    tissue = torch.where((tissue == INDEX["muscle"]) & fat, INDEX["fat"], tissue)
    if recipe.lesions:
        table = torch.zeros(COUNT, dtype=torch.bool, device=tissue.device)
        table[list(_BRAIN_TISSUES)] = True
        brain = table[tissue]
        for lesion in recipe.lesions:
            tissue = torch.where(brain & _inside(lesion, points), INDEX["lesion"], tissue)
    if recipe.flap is not None:
        bone = (tissue == INDEX["cortical"]) | (tissue == INDEX["cancellous"])
        tissue = torch.where(bone & _inside(recipe.flap, points), INDEX["muscle"], tissue)
    return tissue


def _inside(blob: Blob, points: Float[Tensor, "3 x y z"]) -> Tensor:
    distance = sum(((p - c) / r) ** 2 for p, c, r in zip(points, blob.centre.tolist(), blob.radii.tolist(), strict=True))
    return torch.as_tensor(distance < 1)


def _blob_in(rng: np.random.Generator, tissue: np.ndarray, wanted: tuple[int, ...], radius_mm: tuple[float, float]) -> Blob:
    """An ellipsoid around a random voxel of the wanted tissues in the upper half of the map (above the skull base)."""
    low = np.array([0, 0, tissue.shape[2] // 2])
    centre = rng.integers(low, tissue.shape)
    for _ in range(10_000):
        if tissue[tuple(centre)] in wanted:
            break
        centre = rng.integers(low, tissue.shape)
    return Blob(centre.astype(np.float32), rng.uniform(*radius_mm, 3).astype(np.float32))


def _texture(coarse: bool, patch: Patch, rng: torch.Generator) -> Float[Tensor, "x y z"]:
    """Unit noise, white or partly smooth over about two voxels."""
    white = torch.randn(patch, generator=rng, device=rng.device)
    return 0.55 * white + 0.5 * _smooth_noise(patch, 2, rng) if coarse else white


def _smooth_noise(patch: tuple[int, ...], voxels: int, rng: torch.Generator) -> Float[Tensor, "x y z"]:
    """Noise of about unit spread, interpolated between nodes `voxels` apart."""
    nodes = torch.randn((1, 1, *(n // voxels for n in patch)), generator=rng, device=rng.device) * 1.8
    return F.interpolate(nodes, size=patch, mode="trilinear", align_corners=True)[0, 0]
