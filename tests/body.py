"""A slab of a body in CT drawn by formula, small enough to be projected in milliseconds; a geometry that sees it; a tiny network for it."""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from medsynth.core.volume import Origin, Volume
from medsynth.generators import build
from medsynth.verbs.checkpoint import write_model
from medsynth.zoo import read_card

SHAPE, SPACING_MM = (48, 40, 6), (1.5, 1.5, 3.0)
GEOMETRY = '[geometry]\nbeam = "fan"\nviews = {views}\ndetectors = {detectors}\npitch_mm = 3.0\n'
CARD = """
name = "tiny-sparse"
version = "0"
summary = "a model for tests"
task = "sparse-ct"
generator = "sparse-view"

[config]
channels = [8, 8]
blocks = [1, 1]
refined = 4
passes = 2

[grid]
spacing_mm = [1.5, 1.5, 3.0]
patch = [48, 48, 6]

[licence]
code = "Apache-2.0"
weights = "Apache-2.0"

[data]
training = "nothing"
validation = "nothing"
licence = "Apache-2.0"

[train]
source = "projected"
views = [18, 24, 36]
steps = 1
"""


def affine_ras(spacing_mm: tuple[float, float, float] = SPACING_MM, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """RAS+, the body's middle at the origin."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing_mm
    return affine


def ct_hu(affine: np.ndarray | None = None, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """float32 [x y z]: an ellipse of muscle with fat around it, a lung at the patient's right, a vertebra at the back, air around.

    What lies where is fixed in the patient, whatever the grid; it grows towards the head.
    """
    affine = affine_ras() if affine is None else affine
    x, y, z = np.moveaxis(np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    ct = np.full(shape, -1000.0, dtype=np.float32)
    grown = 1 + z / 150
    ct[(x / 30) ** 2 + (y / 24) ** 2 < grown] = -100
    ct[(x / 27) ** 2 + (y / 21) ** 2 < grown] = 50
    ct[((x - 11) / 9) ** 2 + ((y - 4) / 11) ** 2 < grown] = -800
    ct[(x / 6) ** 2 + ((y + 13) / 5) ** 2 < grown] = 600
    ct[((x + 12) / 5) ** 2 + ((y - 3) / 5) ** 2 < grown] = 130
    return ct


def volume(affine: np.ndarray | None = None, shape: tuple[int, int, int] = SHAPE) -> Volume:
    """The CT in memory."""
    affine = affine_ras() if affine is None else affine
    return Volume(array=ct_hu(affine, shape), affine_ras=affine, origin=Origin(kind="nifti", case="body", files=()))


def write_ct(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    """int16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = affine_ras() if affine is None else affine
    stored = np.rint(ct_hu(affine) if array is None else array).astype(np.int16)
    nib.save(nib.Nifti1Image(stored, affine), path)
    return path


def write_geometry(path: Path, *, views: int = 24, detectors: int = 64) -> Path:
    """A fan whose field of view is 105 mm with 64 cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(GEOMETRY.format(views=views, detectors=detectors), encoding="utf-8")
    return path


def write_tiny_sparse(folder: Path, *, seed: int = 0) -> Path:
    """card.toml and random weights in `folder`, which is returned."""
    folder.mkdir(parents=True)
    (folder / "card.toml").write_text(CARD, encoding="utf-8")
    card = read_card(folder / "card.toml")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        write_model(card, build(card.generator, card.config), folder)
    return folder
