"""Finds the scans in a file or folder, whatever their format, and reads them.

The rule for DICOM: a directory is a case. Every directory that holds slices gives one scan, its only series. Localisers, and series of
fewer than three slices beside a longer one, do not count. Two series that do count are ambiguous, and the directory's entry says so when it
is read, unless --series chooses. With --series, a directory whose only series does not match is no input at all.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medsynth.core.errors import MedsynthError, ScanError, UsageError
from medsynth.core.volume import Kind, Volume
from medsynth.scans import dicom, itk, nifti

ENDINGS: dict[str, Kind] = {".nii.gz": "nifti", ".nii": "nifti", ".mgz": "nifti", ".mgh": "nifti", **itk.KINDS}
BY_PRODUCT = re.compile(r"\.(json|csv|png)$|\.part", re.IGNORECASE)
STACK = 3  # fewer slices beside a longer series are a scout
NON_FINITE_SHARE = 0.01
FLAT = 1e-3  # volume of the parallelepiped of three unit axes below which they lie in a plane


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user decides where a scan leaves a choice.

    trust: which orientation of a NIfTI header holds if the two disagree. series: UID, number or part of the description of a DICOM series.
    volume: which one of a 4-D file, from 0. allow_gaps: interpolate missing slices.
    """

    trust: nifti.Trust = ""
    series: str = ""
    volume: int | None = None
    allow_gaps: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """A scan that was found and not yet read.

    case: its name, unique among those found together. files: one file (with its data file, for .mhd and .nhdr), or the slices of a series.
    problem: why it cannot be read; `read` raises it.
    """

    kind: Kind
    case: str
    files: tuple[Path, ...]
    series: str = ""
    notes: tuple[str, ...] = ()
    problem: MedsynthError | None = None


class _Series(NamedTuple):
    uid: str
    number: str
    description: str
    slices: tuple[dicom.Slice, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(plane.path for plane in self.slices))

    @property
    def is_scout(self) -> bool:
        return any(plane.is_scout for plane in self.slices)

    def __str__(self) -> str:
        return f"number {self.number or 'none'}, {self.description or 'no description'}, {len(self.slices)} slices"


def find(path: Path, *, choices: Choices) -> list[Found]:
    """The scans in a file or folder (with its sub-folders), in the order of their paths.

    Hidden files, what medsynth itself writes beside its outputs, and what is no scan are passed over. Raises UsageError E-PATH if there is
    no such path, ScanError E-EMPTY if it holds no scan, E-SERIES if --series matches nothing. What is wrong with one scan alone is raised
    when that scan is read.
    """
    if not path.exists():
        raise UsageError("E-PATH", f"there is no file or folder {path.name or path}", remedy="check the path")
    files = [path] if path.is_file() else list(_files(path))
    images = [_image(file) for file in files if _ending(file)]
    others = [file for file in files if not _ending(file) and not BY_PRODUCT.search(file.name) and dicom.is_dicom(file)]
    by_folder: dict[Path, list[_Series]] = {}
    for series in _group(others):
        by_folder.setdefault(series.files[0].parent, []).append(series)
    if choices.series and by_folder and not any(_chosen(held, choices.series) for held in by_folder.values()):
        raise _no_match([series for held in by_folder.values() for series in held], choices.series)
    stacks = [_case(path, folder, held, choices) for folder, held in by_folder.items() if _counts(folder, held, by_folder, images, choices)]
    found = images + stacks
    if not found:
        raise _empty(path, files, len(others))
    return _distinct(sorted(found, key=lambda item: item.files[0].as_posix()), path)


def read(found: Found, *, choices: Choices) -> Volume:
    """The scan in memory: float32, RAS+, finite.

    Raises the scan's `problem`, or ScanError: E-READ, E-DIM, E-FORM, E-SERIES, E-GAP, E-GEOMETRY, E-MODALITY.
    """
    if found.problem:
        raise found.problem
    if found.kind == "dicom":
        volume = dicom.read(found.files, case=found.case, allow_gaps=choices.allow_gaps, volume=choices.volume)
    elif found.kind == "nifti":
        volume = nifti.read(found.files[0], case=found.case, trust=choices.trust, volume=choices.volume)
    else:
        volume = itk.read(found.files[0], case=found.case, volume=choices.volume)
    _check_grid(volume)
    volume = _finite(volume)
    return replace(volume, origin=replace(volume.origin, notes=found.notes + volume.origin.notes))


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder that are not hidden; links to folders are followed, once."""
    seen: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = Path(parent).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (file for name in sorted(names) if not name.startswith(".") and (file := Path(parent, name)).is_file())


def _ending(file: Path) -> str:
    """The ending by which an image file is known, "" for all other files."""
    name = file.name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), "") if not BY_PRODUCT.search(name) else ""


def _image(file: Path) -> Found:
    ending = _ending(file)
    files = itk.files(file) if ending in itk.KINDS else (file,)
    return Found(kind=ENDINGS[ending], case=file.name[: -len(ending)] or file.name, files=files)


def _group(files: list[Path]) -> list[_Series]:
    """Slices by folder and series, in order; a series without UID is known by its number and description."""
    groups: dict[tuple[Path, str, str, str], list[dicom.Slice]] = {}
    for plane in (plane for file in files for plane in dicom.slices(file)):
        known = plane.series != ""
        key = (plane.path.parent, plane.series, "" if known else plane.number, "" if known else plane.description)
        groups.setdefault(key, []).append(plane)
    return [_Series(planes[0].series, planes[0].number, planes[0].description, tuple(planes)) for planes in groups.values()]


def _counts(folder: Path, held: list[_Series], by_folder: dict[Path, list[_Series]], images: list[Found], choices: Choices) -> bool:
    """Whether a directory of slices is a case: not if --series means another one, nor if it holds scouts alone beside real scans."""
    if choices.series:
        return len(held) > 1 or bool(_chosen(held, choices.series))
    others = images or [series for other, all_held in by_folder.items() if other != folder for series in all_held if not series.is_scout]
    return not others or not all(series.is_scout for series in held)


def _chosen(held: list[_Series], choice: str) -> list[_Series]:
    """The series whose UID or number is the choice; if there are none, those whose description holds it, scouts last."""
    exact = [series for series in held if choice in (series.uid, series.number)]
    described = [series for series in held if choice.casefold() in series.description.casefold()]
    return exact or [series for series in described if not series.is_scout] or described


def _case(path: Path, folder: Path, held: list[_Series], choices: Choices) -> Found:
    """One directory's scan, or the reason why it is none."""
    longest = max(len(series.slices) for series in held)
    stacks = [series for series in held if not series.is_scout and (len(series.slices) >= STACK or longest < STACK)]
    wanted = _chosen(held, choices.series) if choices.series else stacks or held
    name = _folder_name(folder) if path.is_dir() else re.sub(r"\.(dcm|dicom|ima)$", "", path.name, flags=re.IGNORECASE)
    if len(wanted) != 1:
        problem = _ambiguous(name, wanted) if wanted else _no_match(held, choices.series)
        return Found(kind="dicom", case=name, files=tuple(file for series in held for file in series.files), problem=problem)
    scan = wanted[0]
    notes = tuple(
        f"left out as a localiser or too short: series {series}" for series in held if series is not scan and series not in stacks
    )
    label = re.sub(r"[^\w.-]+", "-", f"{scan.number}_{scan.description}").strip("-_.")
    case = f"{name}_{label}" if len(held) > 1 and label else name
    return Found(kind="dicom", case=case, files=scan.files, series=scan.uid, notes=notes)


def _folder_name(folder: Path) -> str:
    return folder.name if folder.name not in ("", "..") else folder.resolve().name or "scan"


def _ambiguous(name: str, series: list[_Series]) -> ScanError:
    listed = "; ".join(str(one) for one in series)
    remedy = "choose one with --series: a number, a UID or part of a description"
    return ScanError("E-SERIES", f"{name} holds {len(series)} series: {listed}", remedy=remedy)


def _no_match(series: list[_Series], choice: str) -> ScanError:
    listed = "; ".join(dict.fromkeys(str(one) for one in series))
    remedy = "give --series a number, a UID or part of a description"
    return ScanError("E-SERIES", f"no series matches {choice!r}; there are: {listed}", remedy=remedy)


def _empty(path: Path, files: list[Path], objects: int) -> ScanError:
    endings = Counter(file.suffix.lower() or "without ending" for file in files)
    held = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(8)) or "nothing"
    dicom_part = f"; DICOM objects without image planes (reports, structures, secondary captures): {objects}" if objects else ""
    cause = f"{path.name or path} holds no scan; found: {held}{dicom_part}" if path.is_dir() else f"{path.name} is no scan{dicom_part}"
    return ScanError("E-EMPTY", cause, remedy="give NIfTI, MGH/MGZ, NRRD, MHA/MHD or DICOM files")


def _distinct(found: list[Found], root: Path) -> list[Found]:
    """Cases that share a name get the names of their parent folders before it, as many as it takes; at last their ending, or a number.

    Names that differ in case alone count as one: some file systems take them for one.
    """
    names = [item.case for item in found]
    parents = [_parents(item, root) for item in found]
    for depth in range(1, max((len(parts) for parts in parents), default=0) + 1):
        for k in _clashing(names):
            names[k] = "_".join([*parents[k][-depth:], found[k].case])
    for k in _clashing(names):
        names[k] += _ending(found[k].files[0]).replace(".", "_")
    taken: set[str] = set()
    for k, name in enumerate(names):
        unique, number = name, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}_{number}"
        taken.add(unique.casefold())
        names[k] = unique
    return [replace(item, case=name) for item, name in zip(found, names, strict=True)]


def _parents(item: Found, root: Path) -> tuple[str, ...]:
    """Folders between the root and what the case is named after: its file, or a series' own folder."""
    if root.is_file():
        return ()
    parts = item.files[0].relative_to(root).parts[:-1]
    return parts[:-1] if item.kind == "dicom" else parts


def _clashing(names: list[str]) -> list[int]:
    counts = Counter(name.casefold() for name in names)
    return [k for k, name in enumerate(names) if counts[name.casefold()] > 1]


def _check_grid(volume: Volume) -> None:
    """Raises ScanError E-GEOMETRY if voxels have no place, no size, or lie in a plane."""
    axes = volume.affine_ras[:3, :3]
    spacing_mm = np.linalg.norm(axes, axis=0)
    if not np.isfinite(volume.affine_ras).all() or spacing_mm.min() <= 0 or abs(np.linalg.det(axes / spacing_mm)) < FLAT:
        cause = f"{volume.origin.case}: the header's grid is impossible (spacing {' x '.join(f'{step:.3g}' for step in spacing_mm)} mm)"
        raise ScanError("E-GEOMETRY", cause, remedy="convert the scan again")
    if not volume.array.size:
        raise ScanError("E-GEOMETRY", f"{volume.origin.case} holds no voxels", remedy="convert the scan again")


def _finite(volume: Volume) -> Volume:
    """NaN and infinity replaced by the smallest finite value, with a note. Raises ScanError E-READ if they are more than a few."""
    finite = np.isfinite(volume.array)
    share = 1 - float(finite.mean())
    if share == 0:
        return volume
    if share > NON_FINITE_SHARE:
        cause = f"{volume.origin.case}: {share:.0%} of the voxels are NaN or infinite"
        raise ScanError("E-READ", cause, remedy="give them the background's value")
    lowest = float(volume.array[finite].min())
    note = f"NaN or infinite voxels set to the smallest value, {lowest:g}: {int((~finite).sum())}"
    origin = replace(volume.origin, notes=(*volume.origin.notes, note))
    return replace(volume, array=np.where(finite, volume.array, np.float32(lowest)), origin=origin)
