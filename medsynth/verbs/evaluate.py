"""Measures predicted CTs against references: pairs cases, compares geometry before any number, names each figure with its profile."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.table import Table
from scipy import ndimage

from medsynth.core import metrics
from medsynth.core.errors import Exit, MedsynthError, ScanError, UsageError
from medsynth.core.volume import Volume, grid_distance_mm
from medsynth.scans import folder

PROFILES = ("synthrad2023", "synthrad2025", "medsynth")
SYNTHRAD2023_TOP_HU = 3000
TOPS_HU = (3000, 3071)
BODY_HU = -500.0
GRID_TOLERANCE_VOXELS = 1e-2
# What a file is, as the last word of its name: case_ct, case_mr_ct, or ct.nii.gz in a patient's folder (SynthRAD).
WORDS = re.compile(r"(?:(?:^|[_-])(ct|sct|pred|mr|cbct|mask|uncertainty))+$", re.IGNORECASE)
CT_WORDS = ("", "ct", "sct", "pred")


class Row(BaseModel):
    """One case: its figures by "profile/name", or why there are none."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    case: str
    mask: str
    figures: dict[str, float] = {}
    code: str = ""
    cause: str = ""
    remedy: str = ""


class Summary(BaseModel):
    """Mean and sample standard deviation (0 for one case) over the n cases for which the figure is finite."""

    model_config = ConfigDict(frozen=True)

    mean: float
    sd: float
    n: int


class Report(BaseModel):
    """Everything measured. range_hu: what synthrad2025 clips to. unpaired: cases on one side only."""

    model_config = ConfigDict(frozen=True)

    profiles: tuple[str, ...]
    range_hu: tuple[int, int]
    rows: tuple[Row, ...]
    summary: dict[str, Summary]
    unpaired: tuple[str, ...]

    @property
    def exit(self) -> Exit:
        """OK, PARTIAL if some cases failed, INPUT if all did."""
        failed = sum(bool(row.code) for row in self.rows)
        return Exit.OK if not failed else Exit.INPUT if failed == len(self.rows) else Exit.PARTIAL


@dataclass(frozen=True, kw_only=True)
class _Case:
    """Files of one case; more than one of a kind is ambiguous. masks: None where none were asked for."""

    key: str
    references: list[folder.Found]
    predictions: list[folder.Found]
    masks: list[folder.Found] | None


def evaluate(reference: Path, predicted: Path, *, mask: Path | None, profiles: tuple[str, ...], top_hu: int) -> Report:
    """Measure one pair of files, or all pairs of two folders.

    Raises UsageError E-PROFILE for an unknown profile or range, ScanError E-EMPTY if no case has a partner. A pair that cannot be measured
    (E-GRID, E-READ, ...) is a row with its code; the others go on. A figure that a case does not define (no bone, too thin) is left out.
    """
    unknown = [name for name in profiles if name not in PROFILES]
    if unknown or top_hu not in TOPS_HU:
        cause = f"no profile {unknown[0]!r}" if unknown else f"no range up to {top_hu} HU"
        raise UsageError("E-PROFILE", cause, remedy=f"profiles: {', '.join(PROFILES)}; ranges: 3071, 3000")
    cases, unpaired = _cases(reference, predicted, mask)
    rows = tuple(_row(case, profiles, top_hu) for case in cases)
    return Report(profiles=profiles, range_hu=(int(metrics.LOW_HU), top_hu), rows=rows, summary=_summary(rows), unpaired=unpaired)


def render(report: Report) -> list[Table]:
    """Figures over all cases, then the cases that failed or had no partner."""
    n = len(report.rows)
    low, high = report.range_hu
    title = f"{n} {'case' if n == 1 else 'cases'}; synthrad2025 in [{low}, {high}] HU; masks: {_masks_used(report)}"
    table = Table("profile", "figure", "mean", "sd", "n", title=title)
    for name, summary in report.summary.items():
        profile, _, figure = name.partition("/")
        table.add_row(profile, figure, f"{summary.mean:.4g}", f"{summary.sd:.3g}" if summary.n > 1 else "", str(summary.n))
    tables = [table]
    failed = [row for row in report.rows if row.code]
    if failed or report.unpaired:
        problems = Table("case", "code", "cause", "remedy", title="not measured")
        for row in failed:
            problems.add_row(row.case, row.code, row.cause, row.remedy)
        for case in report.unpaired:
            problems.add_row(case, "", "no partner on the other side", "name both sides alike")
        tables.append(problems)
    return tables


def _cases(reference: Path, predicted: Path, mask: Path | None) -> tuple[list[_Case], tuple[str, ...]]:
    """(cases that have both sides, keys of those that have one)."""
    wanted, got = (_by_key(path, _is_ct) for path in (reference, predicted))
    if (reference.is_file() or predicted.is_file()) and len(wanted) == len(got) == 1:
        got = dict(zip(wanted, got.values(), strict=True))
    shared = [key for key in wanted if key in got]
    if not shared:
        examples = " and ".join(next(iter(side), "no CT") for side in (wanted, got))
        cause = f"no reference has a prediction of the same name (for instance {examples})"
        raise ScanError("E-EMPTY", cause, remedy="name both sides alike; _ct may follow")
    masks = {} if mask is None else _by_key(mask, _is_mask) or _by_key(mask, lambda _: True)
    if len(masks) == len(shared) == 1:
        masks = dict(zip(shared, masks.values(), strict=True))
    cases = [
        _Case(key=key, references=wanted[key], predictions=got[key], masks=None if mask is None else masks.get(key, [])) for key in shared
    ]
    return cases, tuple(sorted(set(wanted) ^ set(got)))


def _by_key(path: Path, accepts: Callable[[str], bool]) -> dict[str, list[folder.Found]]:
    """The scans of a file or folder that are what is wanted, by the name that pairs them. One file is what the user says it is."""
    side: dict[str, list[folder.Found]] = {}
    for item in folder.find(path, choices=folder.Choices()):
        key, word = _key(item, path)
        if path.is_file() or accepts(word):
            side.setdefault(key, []).append(item)
    return side


def _key(item: folder.Found, root: Path) -> tuple[str, str]:
    """(case without words like _ct, the last such word). Where a file is named by such a word alone, its patient's folder is the case."""
    words = WORDS.search(item.case)
    key = item.case[: words.start()] if words else item.case
    place = item.files[0].parent if item.kind == "dicom" else item.files[0]
    if not key:
        key = place.parent.name if place.parent != root else item.case
    return key, words.group(1).lower() if words else ""


def _is_ct(word: str) -> bool:
    return word in CT_WORDS


def _is_mask(word: str) -> bool:
    return word == "mask"


def _row(case: _Case, profiles: tuple[str, ...], top_hu: int) -> Row:
    used = "body" if case.masks is None else "given"
    try:
        reference, predicted = (_read(items, what) for items, what in ((case.references, "reference"), (case.predictions, "prediction")))
        _check_grid(reference, predicted, "prediction")
        inside = _body(reference.array) if case.masks is None else _given(case.masks, reference)
        if not inside.any():
            raise ScanError("E-MASK", f"the mask of {case.key} is empty", remedy="check the mask")
        figures = _figures(reference.array, predicted.array, inside, profiles, top_hu)
        defined = {name: value for name, value in figures.items() if not np.isnan(value)}
        return Row(case=case.key, mask=used, figures=defined)
    except MedsynthError as error:
        return Row(case=case.key, mask=used, code=error.code, cause=error.cause, remedy=error.remedy)


def _read(items: list[folder.Found], what: str) -> Volume:
    if len(items) != 1:
        names = ", ".join(item.case for item in items) or "none"
        raise ScanError("E-PAIR", f"{len(items)} files could be the {what}: {names}", remedy="leave one of them in the folder")
    return folder.read(items[0], choices=folder.Choices())


def _figures(reference: np.ndarray, predicted: np.ndarray, mask: np.ndarray, profiles: tuple[str, ...], top_hu: int) -> dict[str, float]:
    groups: dict[str, Callable[[], dict[str, float]]] = {
        "synthrad2023": lambda: {
            "mae_hu": metrics.mae(reference, predicted, mask),
            "psnr_db": metrics.psnr(reference, predicted, mask, top_hu=SYNTHRAD2023_TOP_HU),
            "ssim": metrics.ssim(reference, predicted, mask, top_hu=SYNTHRAD2023_TOP_HU),
        },
        "synthrad2025": lambda: {
            "mae_hu": metrics.mae(reference, predicted, mask),
            "psnr_db": metrics.psnr(reference, predicted, mask, top_hu=top_hu),
            "ms_ssim": metrics.ms_ssim(reference, predicted, mask, top_hu=top_hu),
        },
        "medsynth": lambda: {
            **metrics.band_errors(reference, predicted, mask),
            "bone_dice": metrics.dice((reference > metrics.BONE_HU) & mask, (predicted > metrics.BONE_HU) & mask),
            "through_plane_energy": metrics.through_plane_energy(reference, predicted, mask),
            "ms_ssim_corrected": metrics.ms_ssim_corrected(reference, predicted, mask, top_hu=top_hu),
        },
    }
    return {f"{profile}/{name}": value for profile in profiles for name, value in groups[profile]().items()}


def _check_grid(reference: Volume, other: Volume, what: str) -> None:
    if reference.shape != other.shape:
        cause = f"the {what} has {other.shape} voxels, the reference {reference.shape}"
    elif (distance_mm := grid_distance_mm(reference, other)) > GRID_TOLERANCE_VOXELS * min(reference.spacing_mm):
        cause = f"the {what} lies up to {distance_mm:.3g} mm from where the reference does"
    else:
        return
    raise ScanError("E-GRID", cause, remedy="compare on one grid: medsynth writes its outputs on the input's; resample the other")


def _given(masks: list[folder.Found], reference: Volume) -> np.ndarray:
    if not masks:
        raise ScanError("E-MASK", "the case has no mask", remedy="name masks as their scans; _mask may follow")
    volume = _read(masks, "mask")
    _check_grid(reference, volume, "mask")
    if volume.array.min() < 0:
        raise ScanError("E-MASK", f"{volume.origin.case} has values below zero", remedy="a mask is 0 outside and above 0 inside")
    return volume.array > 0


def _body(ct_hu: np.ndarray) -> np.ndarray:
    """The largest component above -500 HU, each axial slice filled: lungs and sinuses belong to the body."""
    parts = np.asarray(ndimage.label(ct_hu > BODY_HU)[0])  # pyright: ignore[reportIndexIssue]
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body = (parts == sizes.argmax()) if sizes.any() else parts > 0
    for z in range(body.shape[2]):
        body[:, :, z] = ndimage.binary_fill_holes(body[:, :, z])
    return body


def _summary(rows: tuple[Row, ...]) -> dict[str, Summary]:
    names = dict.fromkeys(name for row in rows for name in row.figures)
    columns = {name: [v for row in rows if np.isfinite(v := row.figures.get(name, np.nan))] for name in names}
    return {
        name: Summary(mean=float(np.mean(v)), sd=float(np.std(v, ddof=1)) if len(v) > 1 else 0.0, n=len(v))
        for name, v in columns.items()
        if v
    }


def _masks_used(report: Report) -> str:
    return "as given" if any(row.mask == "given" for row in report.rows) else f"body above {BODY_HU:.0f} HU of the reference"
