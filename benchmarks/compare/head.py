"""Problem "head": T1-weighted MR -> CT of the head at 2 mm, drawn from label maps; the CT has texture, so that realism can be measured.

One weighting, as in a clinic's pairs: with all of them, networks of the small size spend their minutes on contrast, not on anatomy.
"""

from pathlib import Path

import numpy as np
import torch

from medsynth.core.anatomy import HEAD
from medsynth.core.generator import place_of
from medsynth.core.quantity import CT
from medsynth.sources.contrast import draw_contrast
from medsynth.sources.labels import Recipe, draw_training, render, tissue_map
from medsynth.sources.packed import Head, load_heads
from medsynth.sources.texture import apply_texture, draw_texture

from .problem import SPLITS, Pairs
from .sizes import Size

# Label maps of SynthSeg, by head: no head is in two splits.
MAPS = {"training": range(1, 13), "validation": range(13, 15), "test": range(15, 17)}
SEED = 20261121


def draw(data: Path, work: Path, size: Size, split: str, count: int) -> Pairs:
    """`count` pairs of a split: everything random as in training, patches around a point of the head, whole field of view."""
    heads = load_heads(data, tuple(f"{number:02d}" for number in MAPS[split]), cache=work / "packed")
    rows = [pair(heads, np.random.default_rng((SEED, SPLITS.index(split), index)), size) for index in range(count)]
    return Pairs(*(np.stack(column) for column in zip(*rows, strict=True)))


def pair(heads: list[Head], rng: np.random.Generator, size: Size) -> tuple[np.ndarray, ...]:
    """The fields of `Pairs` for one patch."""
    patch = (size.patch, size.patch, size.patch)
    recipe = draw_training(rng, heads, patch, size.spacing_mm)._replace(contrast=draw_contrast(rng, "t1"))
    recipe = inside_the_head(recipe, heads, rng)
    head = heads[recipe.head]
    condition, target = render(recipe, head, patch, torch.device("cpu"))
    clean_hu = CT().fit().decode(target.image[0, 0])
    tissue = tissue_map(recipe, head, patch, torch.device("cpu"))
    textures = [draw_texture(torch.Generator().manual_seed(int(rng.integers(2**62)))) for _ in range(2)]
    textured_hu, again_hu = (apply_texture(clean_hu, tissue, texture, size.spacing_mm) for texture in textures)
    return (
        condition.image[0, 0].numpy().astype(np.float16),
        *(ct_hu.round().numpy().astype(np.int16) for ct_hu in (textured_hu, again_hu, clean_hu)),
        target.weight[0, 0].numpy() == 1,
        place_of(HEAD, float(recipe.deformation.centre[2]), head.tissue.shape[2]).numpy()[0],
        np.array(textures[0][:3], dtype=np.float32),
        np.array(recipe.contrast.kind),
    )


def inside_the_head(recipe: Recipe, heads: list[Head], rng: np.random.Generator) -> Recipe:
    """The recipe with its patch around a random voxel of the head, and nothing cut off by the field of view."""
    tissue = heads[recipe.head].tissue
    voxels = np.flatnonzero(tissue)
    centre = np.unravel_index(int(voxels[rng.integers(len(voxels))]), tissue.shape)
    return recipe._replace(
        deformation=recipe.deformation._replace(centre=np.array(centre, dtype=np.float64)),
        degradation=recipe.degradation._replace(cuts=()),
    )
