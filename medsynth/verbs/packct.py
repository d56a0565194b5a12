"""Packs unlabelled scans for `medsynth pretrain`: CTs once, on an isotropic grid, into a cache that training reads without SimpleITK.

Any format that `scans.folder` reads. Head label maps (SynthSeg's and CHARM's numbering) are passed on as they are: CTs are drawn from them.
A packed file is named by the bytes of its scan and the spacing, so that a scan that changed is packed again.
"""

import errno
import hashlib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from medsynth.core.errors import MedsynthError, ScanError
from medsynth.core.volume import Volume
from medsynth.scans import folder, grid
from medsynth.sources.tissues import label_table
from medsynth.sources.unlabelled import Item, write_packed

VERSION = 1
SKULL = 515  # label of cortical bone: what tells a map of a head from one of a brain
AIR_HU, BONE_HU = -500.0, 100.0  # a CT has voxels below the one and above the other
MIN_SIDE_MM = 8.0
Say = Callable[[str], None]


def pack(data: Sequence[Path], spacing_mm: float, cache: Path, *, exclude: Sequence[str] = (), say: Say = print) -> list[Item]:
    """All scans in the folders that training can use, packed. exclude: patterns of names that are left out.

    What is neither a CT nor a head label map, or cannot be read, is left out with a line that says so. Raises ScanError E-EMPTY if nothing
    is left, E-DISK if the cache's disk is full, and what `scans.folder.find` raises.
    """
    choices = folder.Choices()
    found = [item for path in data for item in folder.find(path, choices=choices)]
    wanted = [item for item in found if not any(fnmatchcase(item.case, pattern) for pattern in exclude)]
    items: list[Item] = []
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for number, one in enumerate(wanted, 1):
            try:
                items.append(_item(one, spacing_mm, cache, lambda line, n=number: say(f"packed {n}/{len(wanted)} {line}")))
            except MedsynthError as error:
                say(f"left out: {one.case}: {error.cause}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        remedy = f"free some and run the same command again; {len(items)} packed scans stay"
        raise ScanError("E-DISK", f"no space is left for the cache in {cache}", remedy=remedy) from None
    if not items:
        raise ScanError("E-EMPTY", "the data holds no CT and no head label map", remedy="give CTs in HU, or label maps of heads, by --data")
    return items


def _item(found: folder.Found, spacing_mm: float, cache: Path, packed: Say) -> Item:
    path = cache / f"{digest(found)}-{spacing_mm:g}mm-v{VERSION}.npz"
    if path.exists():
        return Item("ct", found.case, path)
    volume = folder.read(found, choices=folder.Choices())
    if _is_head_map(volume.array) and found.kind == "nifti":
        return Item("head", found.case, found.files[0])
    insist_ct(volume)
    write_packed(path, grid.to_card(volume, (spacing_mm, spacing_mm, spacing_mm)).array)
    packed(found.case)
    return Item("ct", found.case, path)


def insist_ct(volume: Volume) -> None:
    """Raises ScanError E-MODALITY for what is no CT, E-DIM for what is too thin to learn from."""
    low, high = np.percentile(volume.array[::2, ::2], (0.5, 99.5))
    if volume.origin.modality == "MR" or low > AIR_HU or high < BONE_HU:
        raise ScanError("E-MODALITY", f"no CT: its values are {low:.0f} to {high:.0f}", remedy="give CTs in HU")
    sides_mm = [n * step for n, step in zip(volume.shape, volume.spacing_mm, strict=True)]
    if min(sides_mm) < MIN_SIDE_MM:
        raise ScanError("E-DIM", f"only {min(sides_mm):.0f} mm thick", remedy=f"give scans of {MIN_SIDE_MM:.0f} mm or more")


def _is_head_map(array: np.ndarray) -> bool:
    """Whether all values are labels that a tissue claims, and bone of the skull is one of them."""
    if array.min() < 0 or not (array[::4, ::4, ::4] % 1 == 0).all():
        return False
    labels, table = np.unique(array.astype(np.int32)), label_table()
    return bool(labels.max() < len(table) and (table[labels] != 255).all() and SKULL in labels)


def digest(found: folder.Found) -> str:
    """Names the bytes of a scan."""
    digest = hashlib.sha256()
    for file in found.files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:24]
