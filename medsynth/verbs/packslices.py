"""Packs CTs for training on slices: in their own spacing, once, into a cache that training reads without SimpleITK.

A packed file is named by the bytes of its scan, so that a scan that changed is packed again.
"""

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medsynth.core.errors import MedsynthError, ScanError
from medsynth.core.volume import Volume
from medsynth.scans import folder, pairs, planes
from medsynth.scans.files import replacing
from medsynth.sources.projected import AIR_HU, TOP_HU, Stack, read_stack
from medsynth.verbs.packct import digest, insist_ct

VERSION = 1
Say = Callable[[str], None]


def pack(data: Path, cache: Path, *, names: Sequence[str] = (), say: Say = print) -> list[Stack]:
    """The CTs of a folder, packed: all of them, or those that `names` lists, in its order.

    What is no CT or cannot be read is left out with a line that says so, unless it is named. Raises ScanError E-EMPTY if nothing is left,
    E-DATA if a name is not there, E-DISK if the cache's disk is full, and what `scans.folder.find` raises.
    """
    found = {item.case: item for item in folder.find(data, choices=folder.Choices())}
    missing = [name for name in names if name not in found]
    if missing:
        raise ScanError("E-DATA", f"{data.name} has no scan {missing[0]}", remedy="give the folder that the card was written for")
    stacks: list[Stack] = []
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(names or found, 1):
            try:
                stacks.append(_packed(found[name], cache))
                say(f"packed {number}/{len(names or found)} {name}")
            except MedsynthError as error:
                if names:
                    raise
                say(f"left out: {name}: {error.cause}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        remedy = f"free some and run the same command again; {len(stacks)} packed scans stay"
        raise ScanError("E-DISK", f"no space is left for the cache in {cache}", remedy=remedy) from None
    if not stacks:
        raise ScanError("E-EMPTY", "the data holds no CT", remedy="give a folder of CTs in HU by --data")
    return stacks


def split(data: Path, stacks: Sequence[Stack], *, share: float, seed: int) -> tuple[list[Stack], list[Stack]]:
    """(training, validation), by patient, as `pairs.patient_of` tells them apart.

    Raises ScanError E-PAIRS for fewer than two patients.
    """
    patients = {
        item.case: pairs.patient_of(item.files[0].relative_to(data), item.case) for item in folder.find(data, choices=folder.Choices())
    }
    known = {patients[stack.name] for stack in stacks}
    if len(known) < 2:
        cause = f"there are {len(stacks)} CTs of {len(known)} patient(s), and validation needs a patient that training never sees"
        remedy = "add a CT of a second patient; a patient is sub-X in front of a file's name, else the first folder below the data"
        raise ScanError("E-PAIRS", cause, remedy=remedy)
    cases = [pairs.Case(patient=patients[stack.name], case=stack.name, source=data, target=data) for stack in stacks]
    by_name = {stack.name: stack for stack in stacks}
    training, validation = ([by_name[case.case] for case in side] for side in pairs.split(cases, share=share, seed=seed))
    return training, validation


def _packed(found: folder.Found, cache: Path) -> Stack:
    path = cache / f"{digest(found)}-slices-v{VERSION}.npz"
    if not path.exists():
        volume = planes.nearest_ras(folder.read(found, choices=folder.Choices()))
        insist_ct(volume)
        _write(path, volume)
    return read_stack(path, found.case)


def _write(path: Path, volume: Volume) -> None:
    """RAS+ [x y z] -> LPS [z y x], rounded."""
    ct_hu = np.rint(np.clip(volume.array, AIR_HU, TOP_HU)).astype(np.int16)[::-1, ::-1].transpose(2, 1, 0)
    with replacing(path) as part:
        np.savez_compressed(part, ct_hu=np.ascontiguousarray(ct_hu), spacing_mm=np.array(volume.spacing_mm[::-1]))
