"""The picture of a scan or of a pair: axial, coronal and sagittal, in every HU window, and what a prediction differs by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from medsynth.core import metrics, windows
from medsynth.core.volume import Volume
from medsynth.core.windows import DisplayScale, Range, Window
from medsynth.scans import planes
from medsynth.scans.files import replacing
from medsynth.scans.planes import Plane, Point
from medsynth.verbs import canvas
from medsynth.verbs.canvas import Heading, Panel, Sheet, SignedPanel

SYNTHETIC = "synthetic, for research"
READING = "Radiological convention: the patient's right is on the left. Positions in mm, RAS+."
MIXED = "no difference is drawn between HU and values without unit"
BODY_HU = -500.0  # above: the body, not the air
BODY_SHARE = 0.1  # of the 99.5th percentile of a scan without unit
AIR_HU, TOP_HU = -1000.0, 3072.0  # of PSNR: the span from metrics.LOW_HU to the top is 4096 HU
MAP_SCALE = Range(low=0.0, high=200.0, caption="0 to 200 HU")
PERCENT = Range(low=-25.0, high=25.0, caption="in % of each scan's grey levels, no HU")


class Column(NamedTuple):
    """A scan of a picture of results, what it is called there, and what its heading says besides."""

    name: str
    scan: Volume
    said: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A scan in nearest RAS+ order, what the picture calls it, whether its values are HU, how that is known, and what else to say of it."""

    name: str
    scan: Volume
    in_hu: bool
    known: str
    said: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Series:
    """One scan by one scale: a column or a row of the picture, with a panel for each plane."""

    heading: Heading
    panels: tuple[Panel, ...]


def draw_scan(scan: Volume, hu_windows: tuple[Window, ...], *, at_mm: Point | None = None, badge: str = "") -> Image.Image:
    """One scan, its three planes in a row: a row for each window if its values are HU, otherwise one row by percentiles.

    at_mm: the point that the planes go through, RAS+; None: the middle of the body. badge: at the top right, as SYNTHETIC.
    Raises UsageError E-AT if the point is not in the scan.
    """
    shown = _by_file(scan, "scan")
    views = _views([shown], at_mm)
    series = _all_series([shown], hu_windows, views)
    columns = [Heading(title=view.name, details=view.where) for view in views]
    rows = [one.heading for one in series]
    panels = [one.panels for one in series]
    return canvas.draw(Sheet(title=scan.origin.case, badge=badge, columns=columns, rows=rows, panels=panels, notes=(READING,)))


def draw_pair(source: Volume, result: Volume, hu_windows: tuple[Window, ...], *, footer: str, warnings: tuple[str, ...]) -> Image.Image:
    """What went in beside what came out, on one grid: a column for each window where values are HU, one by percentiles where not.

    The result is judged by its values alone, since it carries the origin of its source. footer: a last line; warnings: in amber.
    """
    shown = [_by_file(source, "input"), _by_values(result, "output")]
    views = _views(shown, None)
    series = _all_series(shown, hu_windows, views)
    return canvas.draw(_side_by_side(source.origin.case, series, views, badge=SYNTHETIC, warnings=warnings, notes=(READING, footer)))


def draw_comparison(
    reference: Volume, prediction: Volume, hu_windows: tuple[Window, ...], *, at_mm: Point | None = None, badge: str = ""
) -> Image.Image:
    """A reference beside a prediction on one grid, and prediction - reference: in the `error` window if both are in HU.

    Scans without unit are compared in percent of their grey levels. A CT and a scan without unit have no difference; the picture says so.
    at_mm, badge, errors: as for `draw_scan`.
    """
    before, after = _by_file(reference, "reference"), _by_file(prediction, "prediction")
    views = _views([before, after], at_mm)
    series = _all_series([before, after], hu_windows, views)
    title = f"{prediction.origin.case}   against   {reference.origin.case}"
    if before.in_hu != after.in_hu:
        return canvas.draw(_side_by_side(title, series, views, badge=badge, warnings=(MIXED,), notes=(READING,)))
    return canvas.draw(_side_by_side(title, [*series, _difference(before, after, views)], views, badge=badge, notes=(READING,)))


def draw_results(
    columns: Sequence[Column],
    hu_windows: tuple[Window, ...],
    *,
    title: str,
    differing: bool,
    uncertainty: Volume | None = None,
    at_mm: Point | None = None,
    badge: str = "",
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Image.Image:
    """Several scans on one grid side by side in each window; then the last one's difference from the first, if asked for; then its map.

    uncertainty: expected absolute error in HU, shown by MAP_SCALE whatever the windows. warnings, notes: below. Errors: as for `draw_scan`.
    """
    shown = [replace(_by_file(column.scan, column.name), said=column.said) for column in columns]
    views = _views(shown, at_mm)
    series = _all_series(shown, hu_windows, views)
    mixed = differing and shown[0].in_hu != shown[-1].in_hu
    if differing and not mixed:
        series.append(_difference(shown[0], shown[-1], views))
    if uncertainty is not None:
        series.append(_map(planes.nearest_ras(uncertainty), views))
    all_warnings = (*((MIXED,) if mixed else ()), *warnings)
    return canvas.draw(_side_by_side(title, series, views, badge=badge, warnings=all_warnings, notes=(READING, *notes)))


def psnr_text(reference: Volume, prediction: Volume) -> str:
    """What a heading says of a CT against its reference on the same grid, over a span that it names; nothing below air counts."""
    a, b = (np.maximum(scan.array, AIR_HU) for scan in (reference, prediction))
    value = metrics.psnr(a, b, np.ones(a.shape, dtype=bool), top_hu=TOP_HU)
    return f"PSNR {value:.1f} dB, span {TOP_HU - metrics.LOW_HU:.0f} HU"


def is_ct(scan: Volume) -> bool:
    """Whether a scan is shown in HU: its file says that it is CT or, where the file says nothing, its values look like HU."""
    return _by_file(scan, "").in_hu


def save(image: Image.Image, path: Path) -> None:
    """PNG at `path`, through a temporary name beside it; equal pictures give equal bytes."""
    with replacing(path) as part:
        canvas.with_palette(image).save(part, format="PNG")


def _by_file(scan: Volume, name: str) -> _Shown:
    stated = scan.origin.modality
    if not stated:
        return _by_values(scan, name)
    return _Shown(name=name, scan=planes.nearest_ras(scan), in_hu=stated == "CT", known=f"{stated}, as the file says")


def _by_values(scan: Volume, name: str) -> _Shown:
    turned = planes.nearest_ras(scan)
    in_hu = windows.plausible_hu(planes.coarse(turned.array))
    return _Shown(name=name, scan=turned, in_hu=in_hu, known="CT, by its values" if in_hu else "MR, by its values")


def _views(shown: Sequence[_Shown], at_mm: Point | None) -> tuple[Plane, ...]:
    """Planes that hold the body of any of the scans, which lie on one grid."""
    return planes.through(shown[0].scan, np.logical_or.reduce([_body(one) for one in shown]), at_mm)


def _body(shown: _Shown) -> np.ndarray:
    """bool, of the scan's coarse voxels."""
    values = planes.coarse(shown.scan.array)
    return values > (BODY_HU if shown.in_hu else BODY_SHARE * float(np.percentile(values, 99.5)))


def _all_series(shown: Sequence[_Shown], hu_windows: Sequence[Window], views: Sequence[Plane]) -> list[_Series]:
    """Window by window, so that what is to be compared stands together; scans without unit first, once, each in grey levels of its own."""
    unitless = [_series(one, _greys(one), views) for one in shown if not one.in_hu]
    return unitless + [_series(one, window, views) for window in hu_windows for one in shown if one.in_hu]


def _series(shown: _Shown, scale: DisplayScale, views: Sequence[Plane]) -> _Series:
    panels = tuple(Panel(pixels=planes.cut(shown.scan, view), plane=view, scale=scale) for view in views)
    return _Series(heading=Heading(title=shown.name, details=(shown.known, scale.caption, *shown.said)), panels=panels)


def _map(uncertainty: Volume, views: Sequence[Plane]) -> _Series:
    panels = tuple(Panel(pixels=planes.cut(uncertainty, view), plane=view, scale=MAP_SCALE) for view in views)
    return _Series(heading=Heading(title="expected error", details=("of the result, absolute", MAP_SCALE.caption)), panels=panels)


def _difference(before: _Shown, after: _Shown, views: Sequence[Plane]) -> _Series:
    scale, unit, amounts = (windows.WINDOWS["error"], "HU", _hu) if before.in_hu else (PERCENT, "%", _percent)
    changes = [after_ - before_ for before_, after_ in zip(amounts(before, views), amounts(after, views), strict=True)]
    return _Series(
        heading=Heading(title="difference", details=(f"{after.name} - {before.name}", scale.caption)),
        panels=tuple(SignedPanel(pixels=change, plane=view, scale=scale, unit=unit) for change, view in zip(changes, views, strict=True)),
    )


def _hu(shown: _Shown, views: Sequence[Plane]) -> list[np.ndarray]:
    return [planes.cut(shown.scan, view) for view in views]


def _percent(shown: _Shown, views: Sequence[Plane]) -> list[np.ndarray]:
    """Values without unit as a share of the scan's own grey levels: two scans need not have one gain."""
    greys = _greys(shown)
    return [100 * (values - greys.low) / max(greys.high - greys.low, np.finfo(np.float32).tiny) for values in _hu(shown, views)]


def _greys(shown: _Shown) -> Range:
    return windows.percentiles(planes.coarse(shown.scan.array))


def _side_by_side(
    title: str, series: Sequence[_Series], views: Sequence[Plane], *, badge: str, warnings: Sequence[str] = (), notes: Sequence[str]
) -> Sheet:
    rows = [Heading(title=view.name, details=view.where) for view in views]
    panels = list(zip(*(one.panels for one in series), strict=True))
    columns = [one.heading for one in series]
    return Sheet(title=title, badge=badge, columns=columns, rows=rows, panels=panels, warnings=warnings, notes=notes)
