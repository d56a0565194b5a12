"""Packs pairs of scans for training: once, on the card's grid, into a cache that `sources.paired` reads.

The source is resampled and prepared just as `medsynth <task>` does with it later; the target comes onto the same grid. A packed file is
named by the bytes of the scans, the spacing and the task. `digests.json` remembers the bytes of each scan by its path, so that scans that
did not change are not read again.
"""

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medsynth.core.errors import ScanError
from medsynth.core.task import Task
from medsynth.core.volume import Volume
from medsynth.scans import grid
from medsynth.scans.files import shared
from medsynth.scans.pairs import Case, read_scan, scan_files
from medsynth.sources.paired import AIR, BODY, PACKED, UNKNOWN, Packed

VERSION = 1
DIGESTS = "digests.json"
BYTES_PER_VOXEL = PACKED.itemsize
Spacing = tuple[float, float, float]
Digests = dict[str, tuple[int, int, str]]  # path -> (bytes, time of change in ns, sha256)


def pack(cases: list[Case], spacing_mm: Spacing, task: Task, cache: Path, say: Callable[[str], None]) -> list[Path]:
    """The packed file of each case, made where the cache has none. say: a line for each case that is packed.

    One process at a time. Raises ScanError E-DISK if the disk is full, and what reading and preparing a scan raises, with the case's name.
    """
    packed: list[Path] = []
    try:
        cache.mkdir(parents=True, exist_ok=True)
        digests = _read_digests(cache)
        for number, case in enumerate(cases, 1):
            known = dict(digests)
            path = _path(case, spacing_mm, task, cache, digests)
            if not path.exists():
                _write(path, _packed(case, spacing_mm, task))
                say(f"packed {number}/{len(cases)} {case.case}")
            if digests != known:
                with shared(cache / DIGESTS) as part:
                    part.write_text(json.dumps(digests), encoding="utf-8")
            packed.append(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        remedy = f"free space there (medsynth train --check says how much); {len(packed)} packed cases stay"
        raise ScanError("E-DISK", f"no space is left for the cache in {cache}", remedy=remedy) from None
    return packed


def unpacked(cases: list[Case], spacing_mm: Spacing, task: Task, cache: Path) -> list[Case]:
    """The cases that `pack` has not met yet, or whose files have changed since. Reads no scan."""
    digests = _read_digests(cache)
    known = [all(_recorded(file, digests) for file in _files(case)) for case in cases]
    return [
        case
        for case, all_of_it in zip(cases, known, strict=True)
        if not (all_of_it and _path(case, spacing_mm, task, cache, digests).exists())
    ]


def pack_scans(source: Volume, target: Volume, mask: Volume | None, spacing_mm: Spacing, task: Task) -> Packed:
    """A pair on the source's grid of the card's spacing, cut to the box where both are known.

    Raises ScanError E-GEOMETRY if the two share no place, and what the task's `prepare` raises.
    """
    on_card = grid.to_card(source, spacing_mm)
    region = None if mask is None else grid.mask_to(mask, on_card)
    prepared = task.prepare(on_card, region, True)
    known = np.where(prepared.region, BODY, AIR) * (covered(source, on_card) & covered(target, on_card))
    if not (known == BODY).any():
        raise ScanError("E-GEOMETRY", "the two scans share no part of the body", remedy="register them to each other first")
    target_hu = grid.resample(target, on_card.affine_ras, on_card.shape, outside=task.outside)
    voxels = np.zeros(on_card.shape, dtype=PACKED)
    voxels["image"] = np.minimum(prepared.image[0], np.finfo(np.float16).max)
    # What lies outside the body in a CT (couch, mask, blanket) is not in the MR, and `finish` puts air there.
    voxels["ct_hu"] = np.where(known == BODY, np.rint(np.clip(target_hu, *task.range)), task.outside)
    voxels["known"] = known
    return voxels[_box(known != UNKNOWN)]


def covered(volume: Volume, like: Volume) -> np.ndarray:
    """bool [x y z]: where on another grid the scan has voxels."""
    return grid.mask_to(volume.with_array(np.ones(volume.shape, dtype=np.float32)), like)


def _packed(case: Case, spacing_mm: Spacing, task: Task) -> Packed:
    source, target = read_scan(case.source), read_scan(case.target)
    mask = None if case.mask is None else read_scan(case.mask)
    try:
        return pack_scans(source, target, mask, spacing_mm, task)
    except ScanError as error:
        raise ScanError(error.code, f"{case.case}: {error.cause}", remedy=error.remedy) from None


def _write(path: Path, voxels: Packed) -> None:
    with shared(path) as part, part.open("wb") as file:
        np.save(file, voxels)


def _path(case: Case, spacing_mm: Spacing, task: Task, cache: Path, digests: Digests) -> Path:
    """The packed file's name says all that it depends on; `digests` is brought up to date."""
    parts = [f"v{VERSION}", task.name, *(f"{step:g}" for step in spacing_mm)]
    for scan in (case.source, case.target, case.mask):
        parts.append("none" if scan is None else "scan")
        parts += [_digest(file, digests) for file in (() if scan is None else scan_files(scan))]
    return cache / f"{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:32]}.npy"


def _files(case: Case) -> list[Path]:
    return [file for scan in (case.source, case.target, case.mask) if scan is not None for file in scan_files(scan)]


def _digest(file: Path, digests: Digests) -> str:
    """The file's sha256, read from the file only if its size or time of change is another."""
    if not (digest := _recorded(file, digests)):
        status = file.stat()
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        digests[str(file.resolve())] = (status.st_size, status.st_mtime_ns, digest)
    return digest


def _recorded(file: Path, digests: Digests) -> str:
    """The sha256 on record, "" if there is none or the file has changed since."""
    size, changed_ns, digest = digests.get(str(file.resolve()), (0, 0, ""))
    status = file.stat()
    return digest if (size, changed_ns) == (status.st_size, status.st_mtime_ns) else ""


def _read_digests(cache: Path) -> Digests:
    try:
        stored = json.loads((cache / DIGESTS).read_text(encoding="utf-8"))
        return {name: (int(size), int(changed_ns), str(digest)) for name, (size, changed_ns, digest) in stored.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # absent or damaged: the scans are read again


def _box(mask: np.ndarray) -> tuple[slice, slice, slice]:
    spans = [np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    x, y, z = (slice(int(span[0]), int(span[-1]) + 1) for span in spans)
    return x, y, z
