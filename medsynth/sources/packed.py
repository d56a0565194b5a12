"""Label maps packed for training: one compressed file a head, read in a fraction of a second, without SimpleITK.

A packed head is a uint8 map of tissues in RAS+ at 1 mm and the depth of each voxel under the skin, which decides where fat lies.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from scipy import ndimage

from medsynth.core.errors import ScanError
from medsynth.sources.tissues import INDEX, label_table

CLOSING_MM = 12  # bridges nostrils, ear canals and the open neck when the head's outline is taken
DEPTH_UNIT_MM = 0.25
PACK_VERSION = 1


class Head(NamedTuple):
    """tissue: uint8 [x y z], RAS+, 1 mm, one voxel of air around. depth: uint8 [x y z], in quarters of a millimetre."""

    tissue: np.ndarray
    depth: np.ndarray


def load_heads(folder: Path, names: tuple[str, ...], *, cache: Path) -> list[Head]:
    """The label maps `names` (file stems, or their last part after "_") of a folder, packed on first use.

    Raises ScanError E-EMPTY if one is not there, E-MODALITY if a file holds labels that no tissue claims.
    """
    return [_load(_find(folder, name), cache) for name in names]


def pack(labels: np.ndarray) -> Head:
    """Tissues and depth from a label map [x y z] at 1 mm, RAS+ (FreeSurfer and CHARM + 400 labels)."""
    table = label_table()
    known = (labels >= 0) & (labels < len(table))
    tissue = np.where(known, table[np.where(known, labels, 0)], 255)
    if (tissue == 255).any():
        unknown = sorted(set(labels[tissue == 255].tolist()))
        raise ScanError(
            "E-MODALITY", f"labels without a tissue: {unknown[:8]}", remedy="give head label maps with SynthSeg/CHARM numbering"
        )
    tissue = np.where(_largest(tissue > 0), tissue, 0).astype(np.uint8)
    head = _outline(tissue > 0)
    tissue[(tissue == 0) & head] = INDEX["inner_air"]
    padded = np.pad(head, ((1, 1), (1, 1), (0, 1)))  # not below: the neck is cut there, that is no skin
    depth_mm = np.asarray(ndimage.distance_transform_edt(padded))[1:-1, 1:-1, :-1]
    depth = np.minimum(depth_mm / DEPTH_UNIT_MM, 255).astype(np.uint8)
    return Head(np.pad(tissue, 1), np.pad(depth, 1))


def _load(path: Path, cache: Path) -> Head:
    if path.suffix == ".npz":
        return _read(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    packed = cache / f"{path.name.split('.')[0]}-{digest}-v{PACK_VERSION}.npz"
    if not packed.exists():
        image = nib.as_closest_canonical(nib.load(path))
        head = pack(np.asarray(image.dataobj).astype(np.int64))
        cache.mkdir(parents=True, exist_ok=True)
        partial = packed.with_suffix(f".{os.getpid()}.part.npz")
        np.savez_compressed(partial, tissue=head.tissue, depth=head.depth)
        partial.replace(packed)
    return _read(packed)


def _read(path: Path) -> Head:
    with np.load(path) as file:
        return Head(file["tissue"], file["depth"])


def _files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.glob("*")) if p.name.endswith((".nii", ".nii.gz", ".npz"))]


def _find(folder: Path, name: str) -> Path:
    for path in _files(folder):
        stem = path.name.split(".")[0]
        stem = stem.split("-")[0] if path.suffix == ".npz" else stem  # packed files carry a hash behind the name
        if stem == name or stem.rsplit("_", 1)[-1] == name:
            return path
    raise ScanError(
        "E-EMPTY", f"no label map named {name} in the data folder", remedy="point --data at the folder that the card's [train] table names"
    )


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected component: specks of fluid float outside some maps."""
    parts = np.asarray(ndimage.label(mask)[0])  # pyright: ignore[reportIndexIssue]
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def _outline(mask: np.ndarray) -> np.ndarray:
    """The head with its cavities: closed by CLOSING_MM and filled."""
    pad = 2 * CLOSING_MM
    outside_mm = np.asarray(ndimage.distance_transform_edt(~np.pad(mask, pad)))
    grown = ndimage.binary_fill_holes(outside_mm < CLOSING_MM)
    shrunk = np.asarray(ndimage.distance_transform_edt(grown)) > CLOSING_MM
    return shrunk[pad:-pad, pad:-pad, pad:-pad] | mask
