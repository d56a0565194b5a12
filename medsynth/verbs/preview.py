"""`medsynth preview`: a picture of one scan, or of a reference, a prediction and their difference."""

import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from medsynth.core.errors import ScanError, UsageError
from medsynth.core.volume import Volume, grid_distance_mm, same_grid
from medsynth.core.windows import Window, parse
from medsynth.scans import folder
from medsynth.scans.folder import Choices
from medsynth.scans.planes import Point
from medsynth.verbs import picture

DEFAULT_WINDOWS = ("head-soft", "bone")


def preview(
    path: Path,
    other: Path | None,
    out: Path | None,
    *,
    windows: tuple[str, ...],
    at: str,
    choices: Choices,
    beside: tuple[Path, ...] = (),
    uncertainty: Path | None = None,
) -> Path:
    """Draws the scan at `path`, or compares the prediction `other` with the reference `path`; returns the PNG's path.

    out: None writes `<case>_preview.png` beside the scan. windows: names or `width,level`; none means head-soft and bone. at: `x,y,z` in
    mm (RAS+), or "" for the middle of the body. choices: for all scans. beside: further scans, shown between the two. uncertainty: a map of
    expected errors in HU. With either, each CT after the first carries its PSNR against the first.
    Raises UsageError E-WINDOW, E-AT, E-OUT; ScanError E-GRID if they differ in geometry, E-SERIES if a path holds several scans; and
    what reading raises.
    """
    chosen = tuple(parse(text) for text in windows or DEFAULT_WINDOWS)
    at_mm = _point(at)
    scan = _only(path, choices)
    second = None if other is None else _only(other, choices)
    between = [_only(one, choices) for one in beside]
    shown = [scan, *between, *([] if second is None else [second])]
    if windows and not any(picture.is_ct(one) for one in shown):
        raise UsageError("E-WINDOW", "windows are in HU, and no scan here is a CT", remedy="leave out --window, for percentiles")
    target = _target(scan, out)
    badge = picture.SYNTHETIC if any(_is_synthetic(one) for one in shown) else ""
    if beside or uncertainty:
        map_ = None if uncertainty is None else _only(uncertainty, choices)
        image = _draw_results(shown, chosen, second is not None, map_, at_mm, badge)
    elif second is None:
        image = picture.draw_scan(scan, chosen, at_mm=at_mm, badge=badge)
    else:
        _check_grid(scan, second)
        image = picture.draw_comparison(scan, second, chosen, at_mm=at_mm, badge=badge)
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(image, target)
    return target


def _draw_results(
    shown: list[Volume], chosen: tuple[Window, ...], differing: bool, uncertainty: Volume | None, at_mm: Point | None, badge: str
) -> Image.Image:
    """All scans in the same windows, the last one's difference from the first where it is a prediction, and the map."""
    first, *others = shown
    for one in (*others, *([] if uncertainty is None else [uncertainty])):
        _check_grid(first, one)
    in_hu = picture.is_ct(first)
    columns = [picture.Column("reference" if others else _name(first), first)]
    columns += [picture.Column(_name(one), one, (picture.psnr_text(first, one),) if in_hu and picture.is_ct(one) else ()) for one in others]
    return picture.draw_results(
        columns,
        chosen,
        title=first.origin.case,
        differing=differing,
        uncertainty=uncertainty,
        at_mm=at_mm,
        badge=badge,
        warnings=_warnings(shown[-1]),
    )


def _warnings(scan: Volume) -> list[str]:
    """What the run that made a CT warned of."""
    match _sidecar(scan):
        case {"Warnings": list(warnings)}:
            return [str(warning) for warning in warnings]
        case _:
            return []


def _name(scan: Volume) -> str:
    """The method and views of a CT that `sparse-ct` made, as its sidecar says; else the scan's own name."""
    match _sidecar(scan):
        case {"Reconstruction": {"Method": str(method), "Views": int(views)}}:
            return f"{method}, {views} views"
        case _:
            return scan.origin.case


def _only(path: Path, choices: Choices) -> Volume:
    found = folder.find(path, choices=choices)
    if len(found) > 1:
        names = ", ".join(one.case for one in found[:8]) + (", ..." if len(found) > 8 else "")
        raise ScanError("E-SERIES", f"{path.name or path} holds {len(found)} scans: {names}", remedy="give one of them")
    return folder.read(found[0], choices=choices)


def _target(scan: Volume, out: Path | None) -> Path:
    name = f"{scan.origin.case}_preview.png"
    if out is None:
        return _beside(scan) / name
    if out.is_dir():
        return out / name
    if out.suffix.lower() != ".png":
        raise UsageError("E-OUT", f"{out.name} does not end in .png", remedy="pictures are PNG files: --out NAME.png, or a folder")
    return out


def _beside(scan: Volume) -> Path:
    """The folder of a file; for a series, the folder that its own folder lies in."""
    parent = scan.origin.files[0].resolve().parent
    return parent.parent if scan.origin.kind == "dicom" else parent


def _sidecar(scan: Volume) -> Any:
    """What a run leaves beside its outputs to say how it made them, or None."""
    try:
        return json.loads((_beside(scan) / f"{scan.origin.case}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_synthetic(scan: Volume) -> bool:
    """Whether the sidecar beside a scan says that medsynth made it."""
    match _sidecar(scan):
        case {"GeneratedBy": {"Name": "medsynth"}}:
            return True
        case _:
            return False


def _point(text: str) -> Point | None:
    if not text:
        return None
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        x = y = z = math.nan
    if not all(math.isfinite(value) for value in (x, y, z)):
        raise UsageError("E-AT", f"{text!r} is no point", remedy="three numbers in mm (RAS+): --at x,y,z")
    return x, y, z


def _check_grid(reference: Volume, prediction: Volume) -> None:
    if same_grid(reference, prediction):
        return
    if reference.shape != prediction.shape:
        found = f"{_size(reference)} and {_size(prediction)} voxels"
    else:
        found = f"corners up to {grid_distance_mm(reference, prediction):.3g} mm apart"
    raise ScanError("E-GRID", f"the two scans differ in geometry: {found}", remedy="resample one to the other's grid")


def _size(volume: Volume) -> str:
    return " x ".join(str(n) for n in volume.shape)
