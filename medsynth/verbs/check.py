"""Reads all pairs before training begins, and says what is wrong with them: `medsynth train --check`.

A problem stops the training; a suspicion is listed for a person to look at. All are collected, so that one pass finds all of them.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.table import Table
from scipy import ndimage

from medsynth.core.errors import Exit, MedsynthError, ScanError
from medsynth.core.task import Task
from medsynth.core.volume import Volume, same_grid
from medsynth.scans import agreement, grid
from medsynth.scans.pairs import Case, find_pairs, read_scan, split
from medsynth.verbs.pack import BYTES_PER_VOXEL, covered, unpacked

Spacing = tuple[float, float, float]
COARSE_MM = 3.0  # scans are compared on this grid
AIR_MM = 12.0  # around the body, where the skin's place is seen
SPACING_MM, EXTENT_MM = 20.0, 2500.0  # more than any scan of a person has
THIN, SHORT = 0.25, 0.5  # of the patch: a scan of less on one axis is refused, or suspicious
OVERLAP = 0.5  # of the body
BONE_HU = 300.0
# By 48 drawn heads with CTs moved in any direction: a gain of 0 by 0 mm, .1 to .3 by 3 mm, .3 to .65 by 5 mm, .67 or more by 7.5 mm. CTs of
# other heads have less than half in common with an MR even where they fit best, unless they lie just alike.
SHIFT_MM, GAIN = 4.0, 0.25
POOR, ENOUGH_CASES = 0.5, 4


class Row(BaseModel):
    """What was measured of one pair.

    side: training or validation. overlap: share of the body that both show. nmi, shifted_nmi, shift_mm, gain: as
    `scans.agreement.Alignment`. packed_bytes: in the cache.
    """

    model_config = ConfigDict(frozen=True)

    case: str
    patient: str
    side: str
    mask: bool
    source_mm: Spacing
    target_mm: Spacing
    extent_mm: Spacing
    same_grid: bool
    overlap: float
    nmi: float
    shifted_nmi: float
    shift_mm: Spacing
    gain: float
    packed_bytes: int


class Finding(BaseModel):
    """Something wrong, or suspicious, with a case; case is "" for what concerns them all."""

    model_config = ConfigDict(frozen=True)

    case: str
    code: str
    cause: str
    remedy: str


class Report(BaseModel):
    """Everything found.

    training, validation: patients. rows: of the cases that could be measured. cache_bytes: what packing will still add. free_bytes: what
    the disk has.
    """

    model_config = ConfigDict(frozen=True)

    cases: int
    training: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    problems: tuple[Finding, ...] = ()
    suspicions: tuple[Finding, ...] = ()
    cache_bytes: int = 0
    free_bytes: int = 0

    @property
    def exit(self) -> Exit:
        """INPUT if there is a problem."""
        return Exit.INPUT if self.problems else Exit.OK


class _Scans(NamedTuple):
    """A case in memory."""

    case: Case
    source: Volume
    target: Volume
    mask: Volume | None


class _Seen(NamedTuple):
    """One case's part of the report. digests: of the voxels of source and target, in this order."""

    row: Row | None
    problems: list[Finding]
    suspicions: list[Finding]
    digests: tuple[str, ...]


def check(
    data: Path,
    task: Task,
    spacing_mm: Spacing,
    patch: tuple[int, int, int],
    *,
    cache: Path,
    share: float = 0.15,
    seed: int = 0,
    say: Callable[[str], None],
) -> Report:
    """Reads every pair in `data`. share, seed: of the split. say: a line for each case.

    What is wrong is in the report; only UsageError E-PATH is raised, if there is no such path.
    """
    try:
        cases = find_pairs(data, source=task.source.name, target=task.target.name)
    except ScanError as error:
        return Report(cases=0, problems=(_finding("", error),))
    problems: list[Finding] = []
    training, validation = cases, []
    try:
        training, validation = split(cases, share=share, seed=seed)
    except ScanError as error:
        problems.append(_finding("", error))
    held_out = _patients(validation)
    seen: list[_Seen] = []
    for number, case in enumerate(cases, 1):
        seen.append(_see(case, "validation" if case.patient in held_out else "training", task, spacing_mm, patch))
        say(f"checked {number}/{len(cases)} {case.case}")
    rows = [one.row for one in seen if one.row is not None]
    problems += [finding for one in seen for finding in one.problems] + _copies(cases, seen)
    new = {case.case for case in (cases if problems else unpacked(cases, spacing_mm, task, cache))}
    needed, free = sum(row.packed_bytes for row in rows if row.case in new), shutil.disk_usage(_existing(cache)).free
    return Report(
        cases=len(cases),
        training=_patients(training),
        validation=held_out,
        rows=tuple(rows),
        problems=(*problems, *_no_space(needed, free, cache)),
        suspicions=tuple([finding for one in seen for finding in one.suspicions] + _poor(rows)),
        cache_bytes=needed,
        free_bytes=free,
    )


def insist(report: Report) -> None:
    """Raises ScanError with the first problem's code and all causes, if there is a problem."""
    if report.problems:
        listed = "; ".join(dict.fromkeys(f"{one.case}: {one.cause}" if one.case else one.cause for one in report.problems))
        first = report.problems[0]
        more = f"{len(report.problems)} problems: " if len(report.problems) > 1 else ""
        raise ScanError(first.code, more + listed, remedy=first.remedy)


def render(report: Report) -> list[Table]:
    """Counts and ranges over all cases, then problems, then suspicions."""
    rows = report.rows
    table = Table("", "min", "median", "max", title=f"{report.cases} pairs, {len(report.training) + len(report.validation)} patients")
    for name, values in (
        ("spacing of the source, mm", [step for row in rows for step in row.source_mm]),
        ("spacing of the target, mm", [step for row in rows for step in row.target_mm]),
        ("shortest side, mm", [min(row.extent_mm) for row in rows]),
        ("share of the body in both", [row.overlap for row in rows]),
        ("mutual information (normalised)", [row.nmi for row in rows]),
    ):
        if values:
            table.add_row(name, *(f"{value:.4g}" for value in (min(values), float(np.median(values)), max(values))))
    for name, count in (
        ("patients for training", len(report.training)),
        ("patients for validation", len(report.validation)),
        ("pairs with a mask", sum(row.mask for row in rows)),
        ("pairs on one grid", sum(row.same_grid for row in rows)),
    ):
        table.add_row(name, str(count))
    table.add_row("cache to write, GB", f"{report.cache_bytes / 1e9:.3g}", "", f"{report.free_bytes / 1e9:.3g} free")
    tables = [table]
    for title, findings in (("problems: training will not start", report.problems), ("suspicions: look at these", report.suspicions)):
        if findings:
            listed = Table("case", "code", "cause", "remedy", title=title)
            for one in findings:
                listed.add_row(one.case, one.code, one.cause, one.remedy)
            tables.append(listed)
    return tables


def _see(case: Case, side: str, task: Task, spacing_mm: Spacing, patch: tuple[int, int, int]) -> _Seen:
    """All that can be said of one case alone."""
    try:
        scans = _Scans(case, _read(case.source), _read(case.target), None if case.mask is None else _read(case.mask))
    except MedsynthError as error:
        return _Seen(None, [_finding(case.case, error)], [], ())
    digests = tuple(hashlib.blake2b(scan.array.tobytes(), digest_size=16).hexdigest() for scan in (scans.source, scans.target))
    if digests[0] == digests[1]:
        return _Seen(None, [_of(case, "E-MODALITY", "its two scans are the same image", "copy the scans again")], [], ())
    problems = [_of(case, "E-MODALITY", cause, remedy) for cause, remedy in _wrong_values(scans, task)]
    extent_mm, patch_mm = _extent_mm(scans.source), np.array(patch) * spacing_mm
    if min(extent_mm / patch_mm) < THIN:
        cause = f"the scan has {_by(extent_mm)} mm, and the model's patch {_by(patch_mm)} mm"
        problems.append(_of(case, "E-SPACING", cause, "check the spacing in the header, or train with a card of a smaller patch"))
    if scans.mask is not None and scans.mask.array.max() <= 0:
        problems.append(_of(case, "E-MASK", "the mask is empty", "mark the body with values above 0, or leave the mask out"))
    if problems:
        return _Seen(None, problems, [], digests)
    try:
        row, suspicions = _measured(scans, side, task, spacing_mm)
    except ScanError as error:
        return _Seen(None, [_finding(case.case, error)], [], digests)
    if min(extent_mm / patch_mm) < SHORT:
        suspicions.append(_of(case, "E-SPACING", "one side of the scan is less than half of the patch's", "check that the scan is whole"))
    return _Seen(row, [], suspicions, digests)


def _read(path: Path) -> Volume:
    """The scan. Raises as `read_scan`, and ScanError E-SPACING if its header cannot be that of a person."""
    scan = read_scan(path)
    if max(scan.spacing_mm) > SPACING_MM or max(_extent_mm(scan)) > EXTENT_MM:
        cause = f"{path.name} has voxels of {_by(scan.spacing_mm)} mm and sides of {_by(_extent_mm(scan))} mm"
        raise ScanError("E-SPACING", cause, remedy="correct the spacing in the header; it is in mm")
    return scan


def _wrong_values(scans: _Scans, task: Task) -> list[tuple[str, str]]:
    """(cause, remedy) of values that cannot be what the files are named after."""
    source, target = (scan.array[::2, ::2, ::2] for scan in (scans.source, scans.target))
    no_source = agreement.no_mr(source) if task.source.name == "mr" else agreement.no_ct(source)
    no_target = agreement.no_ct(target)
    if no_source and no_target and not agreement.no_ct(source) and not agreement.no_mr(target):
        return [(f"{task.source.name} and {task.target.name} are exchanged", "exchange the two files")]
    return [
        (f"{quantity.name}: {cause}", f"give the scan in {quantity.unit}, as the scanner or its export made it")
        for quantity, cause in ((task.source, no_source), (task.target, no_target))
        if cause
    ]


def _measured(scans: _Scans, side: str, task: Task, spacing_mm: Spacing) -> tuple[Row, list[Finding]]:
    """The row of a pair whose values are plausible. Raises ScanError as the task's `prepare`, and E-GEOMETRY if the scans lie apart."""
    case, source, target, mask = scans
    coarse = grid.to_card(source, (COARSE_MM, COARSE_MM, COARSE_MM))
    prepared = task.prepare(coarse, None if mask is None else grid.mask_to(mask, coarse), True)
    in_target = covered(target, coarse)
    overlap = float(in_target[prepared.region].mean())
    if overlap == 0:
        raise ScanError("E-GEOMETRY", "the two scans lie apart: no part of the body is in both", remedy="register them to each other first")
    ct_hu = np.where(in_target, grid.resample(target, coarse.affine_ras, coarse.shape, outside=task.outside), np.float32(np.nan))
    around = ndimage.binary_dilation(prepared.region, iterations=round(AIR_MM / COARSE_MM))
    fit = agreement.alignment(coarse.array, ct_hu, around, COARSE_MM)
    x, y, z = _extent_mm(source).tolist()
    row = Row(
        case=case.case,
        patient=case.patient,
        side=side,
        mask=mask is not None,
        source_mm=source.spacing_mm,
        target_mm=target.spacing_mm,
        extent_mm=(x, y, z),
        same_grid=same_grid(source, target),
        overlap=overlap,
        nmi=fit.nmi,
        shifted_nmi=fit.shifted_nmi,
        shift_mm=fit.shift_mm,
        gain=fit.gain,
        packed_bytes=int(np.prod(np.floor(_extent_mm(source) / spacing_mm) + 1)) * BYTES_PER_VOXEL,
    )
    found = [_of(case, "E-MODALITY", warning, "check that the scan is what the task takes") for warning in prepared.warnings]
    return row, found + _suspicions(case, row, float(target.array.max()))


def _suspicions(case: Case, row: Row, top_hu: float) -> list[Finding]:
    found: list[Finding] = []
    if row.overlap < OVERLAP:
        found.append(_of(case, "E-GEOMETRY", f"only {row.overlap:.0%} of the body is in both scans", "check that they belong together"))
    if float(np.linalg.norm(row.shift_mm)) > SHIFT_MM and row.gain > GAIN:
        cause = (
            f"the target fits better when moved by {_by(row.shift_mm, ', ')} mm (right, front, up): {row.gain:.0%} more mutual information"
        )
        found.append(_of(case, "E-SHIFT", cause, "look at the pair (medsynth preview); register it again, or leave it out"))
    if top_hu < BONE_HU:
        found.append(_of(case, "E-MODALITY", f"the target has no bone: at most {top_hu:.0f} HU", "give the CT with its whole range"))
    return found


def _poor(rows: list[Row]) -> list[Finding]:
    """Pairs that fit much worse than the others, even where they fit best: perhaps scans of two patients."""
    usual = float(np.median([row.shifted_nmi - 1 for row in rows])) if len(rows) >= ENOUGH_CASES else 0.0
    remedy = "look at the pair (medsynth preview): do the two scans belong to one patient?"
    return [
        Finding(case=row.case, code="E-SHIFT", cause="the scans have less than half in common of what is usual here", remedy=remedy)
        for row in rows
        if row.shifted_nmi - 1 < POOR * usual
    ]


def _no_space(needed: int, free: int, cache: Path) -> list[Finding]:
    if needed <= free:
        return []
    cause = f"the cache needs {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free in {cache}"
    return [Finding(case="", code="E-DISK", cause=cause, remedy="free space there; on Linux, XDG_CACHE_HOME moves the cache")]


def _copies(cases: list[Case], seen: list[_Seen]) -> list[Finding]:
    """Scans that two patients share: the split by patient would not hold."""
    first: dict[str, Case] = {}
    found: list[Finding] = []
    for case, one in zip(cases, seen, strict=True):
        for digest in one.digests:
            other = first.setdefault(digest, case)
            if other.patient != case.patient:
                remedy = "keep one of them, or give both the same patient in a table"
                found.append(_of(case, "E-PAIRS", f"a scan of this patient is also that of {other.patient}", remedy))
    return found


def _of(case: Case, code: str, cause: str, remedy: str) -> Finding:
    return Finding(case=case.case, code=code, cause=cause, remedy=remedy)


def _finding(case: str, error: MedsynthError) -> Finding:
    return Finding(case=case, code=error.code, cause=error.cause, remedy=error.remedy)


def _patients(cases: list[Case]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(case.patient for case in cases))


def _extent_mm(scan: Volume) -> np.ndarray:
    """Sides of the box along R, A, S that holds the scan's voxels, as `grid.to_card` covers it."""
    edges = np.abs(scan.affine_ras[:3, :3]) @ np.array(scan.shape)
    return np.asarray(edges)


def _by(values: np.ndarray | Spacing, between: str = " x ") -> str:
    return between.join(f"{value:.3g}" for value in values)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())
