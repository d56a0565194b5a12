"""A head of 5 cm drawn by formula, and a card so small that it trains in seconds."""

from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (60, 64, 56)
# (radius in mm, label), from the outside in: skin, other tissue, cortical, cancellous, cortical, CSF, grey, white, ventricle.
SHELLS = ((26.0, 511), (25.0, 507), (18.0, 515), (16.5, 516), (15.0, 515), (13.5, 24), (12.5, 3), (9.0, 2), (3.0, 4))

CARD = """
name = "tiny"
version = "0"
summary = "a model for tests"
task = "mri2ct"
generator = "gdm"

[config]
channels = [8, 8, 16]
head_channels = 16
groups = 4

[grid]
spacing_mm = [1.5, 1.5, 1.5]
patch = [32, 32, 32]

[licence]
code = "Apache-2.0"
weights = "Apache-2.0"

[data]
training = "heads drawn by formula"
validation = "another such head"
licence = "Apache-2.0"

[train]
source = "labels"
training = ["01", "02"]
validation = ["03"]
steps = 8
batch = 1
accumulate = 1
ema = 0.998
learning_rate = 1e-3
texture = false
patience = 0
seed = 0
warmup_steps = 2
precision = "32-true"
validate_every = 4
validation_pairs = 3
keep = "last"
pictures_every = 0
"""


def labels(scale: float = 1.0) -> np.ndarray:
    """int32 [x y z], 1 mm, RAS+: concentric shells; grey and white carry the labels of their side."""
    x, y, z = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in SHAPE], indexing="ij")
    distance = np.sqrt(x**2 + y**2 + z**2) / scale
    label = np.zeros(SHAPE, dtype=np.int32)
    for radius, value in SHELLS:
        label[distance < radius] = value
    right = x > 0
    label[right & (label == 3)] = 42
    label[right & (label == 2)] = 41
    return label


def write_label_maps(folder: Path) -> Path:
    """tiny_01 to tiny_03.nii.gz in a new folder; three heads of different size."""
    folder.mkdir(parents=True)
    for name, scale in (("01", 1.0), ("02", 0.95), ("03", 0.9)):
        write_label_map(labels(scale), folder / f"tiny_{name}.nii.gz")
    return folder


def write_label_map(label: np.ndarray, path: Path, affine_ras: np.ndarray | None = None) -> None:
    """One label map at 1 mm."""
    nib.save(nib.Nifti1Image(label, np.eye(4) if affine_ras is None else affine_ras), path)


def write_card(folder: Path, **changed: str) -> Path:
    """CARD with some lines changed: `steps="12"` replaces the line `steps = ...`. Returns the card's path."""
    keys = [line.split(" = ")[0] for line in CARD.splitlines()]
    assert all(keys.count(key) == 1 for key in changed), "a line to change is missing, or there are several"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{key} = {changed[key]}" if key in changed else line for key, line in zip(keys, CARD.splitlines(), strict=True)]
    path = folder / "card.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
