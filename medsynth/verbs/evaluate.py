"""Measures predicted CTs against references: pairs cases, compares geometry before any number, names each figure with its profile."""

from collections.abc import Callable
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
SUFFIXES = ("_ct", "_mask", "_pred", "_sct")
PLAIN = {"ct", "mr", "mask", "sct", "pred"}  # SynthRAD's layout: a folder for each patient, with files named by what they are


class Row(BaseModel):
    """One case: its figures by "profile/name", or why there are none."""

    model_config = ConfigDict(frozen=True)

    case: str
    mask: str
    figures: dict[str, float] = {}
    code: str = ""
    cause: str = ""
    remedy: str = ""


class Summary(BaseModel):
    """Mean and sample standard deviation (0 for one case) over n cases."""

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


def evaluate(reference: Path, predicted: Path, *, mask: Path | None, profiles: tuple[str, ...], top_hu: int) -> Report:
    """Measure one pair of files, or all pairs of two folders.

    Raises UsageError E-PROFILE for an unknown profile or range, ScanError E-EMPTY if no case has a partner. A pair that cannot be measured
    (E-GRID, E-READ, ...) is a row with its code; the others go on.
    """
    unknown = [name for name in profiles if name not in PROFILES]
    if unknown or top_hu not in TOPS_HU:
        cause = f"no profile {unknown[0]!r}" if unknown else f"no range up to {top_hu} HU"
        raise UsageError("E-PROFILE", cause, remedy=f"profiles: {', '.join(PROFILES)}; ranges: 3071, 3000")
    pairs, unpaired = _pairs(reference, predicted)
    masks = {} if mask is None else {_key(item, mask): item for item in folder.find(mask, choices=folder.Choices())}
    only_mask = next(iter(masks.values())) if mask is not None and len(masks) == len(pairs) == 1 else None
    rows = tuple(_row(key, *pair, masks.get(key, only_mask), mask is not None, profiles, top_hu) for key, pair in pairs.items())
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


def _pairs(reference: Path, predicted: Path) -> tuple[dict[str, tuple[folder.Found, folder.Found]], tuple[str, ...]]:
    """(key -> reference and prediction, cases without a partner)."""
    sides = [{_key(item, path): item for item in folder.find(path, choices=folder.Choices())} for path in (reference, predicted)]
    if all(len(side) == 1 for side in sides) and reference.is_file() and predicted.is_file():
        key, item = next(iter(sides[0].items()))
        return {key: (item, next(iter(sides[1].values())))}, ()
    shared = [key for key in sides[0] if key in sides[1]]
    if not shared:
        examples = " and ".join(next(iter(side)) for side in sides)
        cause = f"no reference has a prediction of the same name (for instance {examples})"
        raise ScanError("E-EMPTY", cause, remedy="name both sides alike; _ct may follow")
    return {key: (sides[0][key], sides[1][key]) for key in shared}, tuple(sorted(set(sides[0]) ^ set(sides[1])))


def _key(item: folder.Found, root: Path) -> str:
    """What pairs two files: the name without endings like _ct, or the patient's folder where files are named by what they are."""
    name = item.files[0].name.split(".")[0] if item.kind != "dicom" else item.case
    if name.lower() in PLAIN and item.files[0].parent != root:
        return item.files[0].parent.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _row(
    key: str,
    ref: folder.Found,
    pred: folder.Found,
    mask: folder.Found | None,
    masked: bool,
    profiles: tuple[str, ...],
    top_hu: int,
) -> Row:
    try:
        if masked and mask is None:
            raise ScanError("E-MASK", f"{key} has no mask", remedy="name masks as their scans; _mask may follow")
        reference, predicted = (folder.read(item, choices=folder.Choices()) for item in (ref, pred))
        _check_grid(reference, predicted, "prediction")
        inside = _body(reference.array) if mask is None else _given(mask, reference)
        if not inside.any():
            raise ScanError("E-MASK", f"the mask of {key} is empty", remedy="check the mask")
        figures = _figures(reference.array.astype(np.float64), predicted.array.astype(np.float64), inside, profiles, top_hu)
        return Row(case=key, mask="given" if masked else "body", figures=figures)
    except MedsynthError as error:
        return Row(case=key, mask="given" if masked else "body", code=error.code, cause=error.cause, remedy=error.remedy)


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


def _given(mask: folder.Found, reference: Volume) -> np.ndarray:
    volume = folder.read(mask, choices=folder.Choices())
    _check_grid(reference, volume, "mask")
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
    columns = {name: [row.figures[name] for row in rows if name in row.figures] for name in names}
    return {n: Summary(mean=float(np.mean(v)), sd=float(np.std(v, ddof=1)) if len(v) > 1 else 0.0, n=len(v)) for n, v in columns.items()}


def _masks_used(report: Report) -> str:
    return "as given" if any(row.mask == "given" for row in report.rows) else f"body above {BODY_HU:.0f} HU of the reference"
