"""DICOM series: slices by their headers, a volume from what the headers say of position, orientation, tilt and gaps.

Pixels come from SimpleITK (GDCM), which decodes every usual transfer syntax and applies slope and intercept. Geometry does not: SimpleITK
averages over gaps and drops a tilt. It is read here from Image Position and Image Orientation (PS3.3 C.7.6.2.1.1), in LPS, in mm.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from scipy import ndimage

from medsynth.core.errors import ScanError
from medsynth.core.volume import Origin, Volume
from medsynth.scans.itk import RAS_LPS, reason
from medsynth.scans.nifti import chosen_volume

SAME_POSITION_MM = 0.01
UNEVEN = 0.1  # of the slice distance: how far a slice may lie from an even grid; a missing slice shifts one by at least 0.5
TILT_PIXELS = 0.1  # sideways drift over the whole stack that is rounding, not tilt
CROOKED_PIXELS = 0.5  # sideways distance of a slice from the line through the first and the last one

NO_SLICES = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
TEXTS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType", "InstanceNumber",
    "NumberOfFrames", "PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept",
)  # fmt: skip
OTHER_TAGS = ("Rows", "Columns", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")

Rescale = tuple[float, float]

# What pydicom raises for bytes that are no DICOM, or damaged, and what is raised here where a plane lacks its place.
_NOT_A_PLANE = (InvalidDicomError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, struct.error)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One image plane. position_mm, orientation: LPS. spacing_mm: along x and y. thickness_mm: distance of slices if the header says it,
    else their thickness. rescale: slope and intercept; applied: those that the decoder uses, which are the first frame's."""

    path: Path
    frame: int
    uid: str
    series: str
    number: str
    description: str
    modality: str
    is_scout: bool
    photometric: str
    instance: int
    size: tuple[int, int]
    position_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, float]
    thickness_mm: float
    rescale: Rescale | None
    applied: Rescale | None


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, with the preamble of PS3.10 or, as old files do, with group 0008."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or head[:2] == b"\x08\x00"


def slices(path: Path) -> list[Slice]:
    """The planes in a DICOM file: one, or the frames of an enhanced object; none if it is no image that lies in the patient."""
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=[*TEXTS, *OTHER_TAGS], force=True)
        planes = list(_planes(header))
        common = planes[0]
        if common.get("Modality") in NO_SLICES or common.get("SOPClassUID", "").startswith(SECONDARY_CAPTURE):
            return []
        size = (int(header.Rows), int(header.Columns))
        return [_slice(path, k, size, texts, _rescale(common)) for k, texts in enumerate(planes)]
    except _NOT_A_PLANE:
        return []


def read(files: Sequence[Path], *, case: str, allow_gaps: bool = False, volume: int | None = None) -> Volume:
    """The series in `files` (in any order), float32 [x y z], slices in the order of their position along the normal.

    volume: which one, in the order of instance numbers, where each position holds several slices. A tilted stack is resampled, slice by
    slice, to a right-angled grid; missing slices are interpolated if allow_gaps; both are noted. Raises ScanError E-READ, E-SERIES if the
    slices are not one stack, E-DIM, E-GAP, E-GEOMETRY, E-MODALITY.
    """
    found, notes = _distinct([plane for path in files for plane in slices(path)], case)
    _check_alike(found, case)
    axes = _axes(found[0], case)
    stack = _one_per_position(found, axes[:, 2], case, volume)
    local_mm = np.array([plane.position_mm for plane in stack]) @ axes
    along_mm = local_mm[:, 2]
    count, gaps = _even_count(stack, along_mm, case, allow_gaps)
    drift_px = _drift_px(stack, local_mm, case)
    tilted = float(np.abs(drift_px).max()) > TILT_PIXELS

    array = _pixels(stack)
    start_px = np.zeros(2)
    if tilted:
        array, start_px = _upright(array, drift_px)
        notes += (f"gantry tilt of {_tilt_degrees(local_mm):.1f} degrees: resampled to a right-angled grid",)
    if gaps:
        array = _interpolated(array, along_mm, np.linspace(along_mm[0], along_mm[-1], count))
    step_mm = (local_mm[-1] - local_mm[0]) / (count - 1) if count > 1 else np.array([0, 0, stack[0].thickness_mm])
    if tilted:
        step_mm[:2] = 0
    local = np.eye(4)
    local[:3, :3] = np.column_stack([np.diag([*stack[0].spacing_mm, 1.0])[:, :2], step_mm])
    local[:3, 3] = local_mm[0] + [*(start_px * stack[0].spacing_mm), 0.0]
    to_lps = np.eye(4)
    to_lps[:3, :3] = axes
    paths = tuple(dict.fromkeys(plane.path for plane in stack))
    notes = (*notes, *gaps, *_plain_notes(stack))
    origin = Origin(kind="dicom", case=case, files=paths, modality=stack[0].modality, series=stack[0].series, notes=notes)
    return Volume(array=array.T, affine_ras=RAS_LPS @ to_lps @ local, origin=origin)


def _planes(header: Dataset) -> Iterator[dict[str, str]]:
    """Texts by keyword for each plane; an enhanced object's functional groups (PS3.3 C.7.6.16) flattened into them."""
    common = _texts(header)
    for groups in header.get("SharedFunctionalGroupsSequence") or []:
        common |= _flat(groups)
    if "PerFrameFunctionalGroupsSequence" in header:
        for k, groups in enumerate(header.PerFrameFunctionalGroupsSequence):
            yield common | {"InstanceNumber": str(k + 1)} | _flat(groups)
    elif int(common.get("NumberOfFrames", "1")) == 1:
        yield common


def _flat(groups: Dataset) -> dict[str, str]:
    items = [element.value[0] for element in groups if element.VR == "SQ" and element.value]
    return {keyword: text for item in items for keyword, text in _texts(item).items()}


def _texts(dataset: Dataset) -> dict[str, str]:
    """Elements that are not empty. As they are: pydicom's conversion warns of every long decimal and odd identifier, and quotes it."""
    elements = {keyword: dataset.get_item(keyword) for keyword in TEXTS if keyword in dataset}
    texts = {keyword: _decoded(element.value) for keyword, element in elements.items() if element.value}
    return {keyword: text for keyword, text in texts.items() if text}


def _decoded(value: bytes) -> str:
    try:
        return value.decode("utf-8").strip(" \0")
    except UnicodeDecodeError:
        return value.decode("latin-1").strip(" \0")


def _slice(path: Path, frame: int, size: tuple[int, int], texts: dict[str, str], applied: Rescale | None) -> Slice:
    """Raises KeyError or ValueError where a plane has no position."""
    position, orientation, (y_mm, x_mm) = (  # the distance of rows comes first (PS3.3 10.7.1.3)
        tuple(float(number) for number in texts[keyword].split("\\"))
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    if (len(position), len(orientation)) != (3, 6):
        raise ValueError("a plane needs three and six numbers")
    return Slice(
        path=path, frame=frame, uid=texts.get("SOPInstanceUID", ""), series=texts.get("SeriesInstanceUID", ""),
        number=texts.get("SeriesNumber", ""), description=texts.get("SeriesDescription", ""), modality=texts.get("Modality", ""),
        is_scout="LOCALIZER" in texts.get("ImageType", ""), photometric=texts.get("PhotometricInterpretation", "MONOCHROME2"),
        instance=int(texts.get("InstanceNumber", "0")), size=size, position_mm=position, orientation=orientation, spacing_mm=(x_mm, y_mm),
        thickness_mm=float(texts.get("SpacingBetweenSlices") or texts.get("SliceThickness") or 1), rescale=_rescale(texts), applied=applied,
    )  # fmt: skip


def _rescale(texts: dict[str, str]) -> Rescale | None:
    return (float(texts["RescaleSlope"]), float(texts.get("RescaleIntercept", "0"))) if "RescaleSlope" in texts else None


def _distinct(found: list[Slice], case: str) -> tuple[list[Slice], tuple[str, ...]]:
    """The slices without second copies of the same instance. Raises ScanError E-READ if there are none."""
    if not found:
        raise ScanError("E-READ", f"{case} holds no image plane with a position", remedy="give a DICOM series of MR or CT images")
    kept = {(plane.uid or plane.path, plane.frame): plane for plane in reversed(found)}
    copies = len(found) - len(kept)
    return list(kept.values()), (f"second copies of slices left out: {copies}",) if copies else ()


def _check_alike(found: list[Slice], case: str) -> None:
    """Raises ScanError E-DIM for colour, E-MODALITY for inverted values, E-SERIES for planes that are not parallel or differ in size."""
    photometric = {plane.photometric for plane in found}
    if "MONOCHROME1" in photometric:
        raise ScanError("E-MODALITY", f"{case} is stored inverted (MONOCHROME1), as radiographs are", remedy="give MR or CT in MONOCHROME2")
    if photometric != {"MONOCHROME2"}:
        raise ScanError("E-DIM", f"{case} holds colour images ({', '.join(sorted(photometric))})", remedy="give a series of grey values")
    first = found[0]
    if any(plane.size != first.size or not np.allclose(plane.spacing_mm, first.spacing_mm, rtol=1e-3) for plane in found):
        raise _mixed(f"{case} holds slices of different size or pixel spacing")
    if any(not np.allclose(plane.orientation, first.orientation, atol=1e-3) for plane in found):
        raise _mixed(f"{case} holds slices of different orientation, as localisers do")


def _mixed(cause: str) -> ScanError:
    return ScanError("E-SERIES", cause, remedy="leave the slices of one stack in the folder")


def _axes(plane: Slice, case: str) -> np.ndarray:
    """Unit vectors in LPS as columns: along x (columns of the image), along y (rows), and the normal. [3 3]."""
    x, y = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    lengths = np.linalg.norm(x), np.linalg.norm(y)
    if not (np.allclose(lengths, 1, atol=1e-2) and abs(x @ y) < 1e-2 and min(plane.spacing_mm) > 0):
        raise ScanError("E-GEOMETRY", f"{case}: orientation or pixel spacing in the header is impossible", remedy="export the series again")
    x = x / lengths[0]
    y = y - (y @ x) * x
    y = y / np.linalg.norm(y)
    return np.column_stack([x, y, np.cross(x, y)])


def _one_per_position(found: list[Slice], normal: np.ndarray, case: str, volume: int | None) -> list[Slice]:
    """The stack from the lowest position along the normal upwards. Raises ScanError E-DIM, E-SERIES where positions hold several slices."""
    along = {id(plane): float(np.dot(plane.position_mm, normal)) for plane in found}
    places: list[list[Slice]] = []
    for plane in sorted(found, key=lambda plane: (along[id(plane)], plane.instance)):
        if places and along[id(plane)] - along[id(places[-1][0])] < SAME_POSITION_MM:
            places[-1].append(plane)
        else:
            places.append([plane])
    counts = {len(place) for place in places}
    if len(counts) > 1:
        raise _mixed(f"{case} holds {min(counts)} to {max(counts)} slices at one position (several acquisitions in one series?)")
    chosen = chosen_volume(case, counts.pop(), volume)
    return [sorted(place, key=lambda plane: plane.instance)[chosen] for place in places]


def _even_count(stack: list[Slice], along_mm: np.ndarray, case: str, allow_gaps: bool) -> tuple[int, tuple[str, ...]]:
    """How many slices an even stack has between the first and the last, and a note if that is not what is there. Raises ScanError E-GAP."""
    n = len(stack)
    if n < 3:
        return n, ()
    usual_mm = float(np.median(np.diff(along_mm)))
    if np.abs(along_mm - np.linspace(along_mm[0], along_mm[-1], n)).max() <= UNEVEN * usual_mm:
        return n, ()
    count = round((along_mm[-1] - along_mm[0]) / usual_mm) + 1
    what = _described_gaps(stack, along_mm, usual_mm)
    if count > 2 * n:
        raise ScanError("E-GAP", f"{case}: {what}; more slices are missing than there are", remedy="export the series again")
    if not allow_gaps:
        raise ScanError("E-GAP", f"{case}: {what}", remedy="export the whole series again, or interpolate what is missing: --allow-gaps")
    return count, (f"{what}: interpolated to {count} slices from {n}",)


def _described_gaps(stack: list[Slice], along_mm: np.ndarray, usual_mm: float) -> str:
    distances_mm = np.diff(along_mm)
    wide = np.flatnonzero(distances_mm > 1.5 * usual_mm)
    if not wide.size:
        return f"slices are unevenly spaced, {distances_mm.min():.3g} to {distances_mm.max():.3g} mm apart"
    missing = round(float(distances_mm[wide].sum()) / usual_mm) - wide.size
    pairs = [(stack[k], stack[k + 1], along_mm[k], along_mm[k + 1]) for k in wide[:3]]
    places = [f"between instances {a.instance} and {b.instance} (positions {low:.2f} and {high:.2f} mm)" for a, b, low, high in pairs]
    more = f" and {wide.size - 3} other places" if wide.size > 3 else ""
    return f"{missing} missing slice{'s' if missing > 1 else ''} {', '.join(places)}{more}; the others are {usual_mm:.4g} mm apart"


def _drift_px(stack: list[Slice], local_mm: np.ndarray, case: str) -> np.ndarray:
    """How far each slice has moved sideways against the first, in pixels along x and y, [n 2]. Raises ScanError E-SERIES if they jump."""
    drift = (local_mm[:, :2] - local_mm[0, :2]) / np.array(stack[0].spacing_mm)
    line = np.outer((local_mm[:, 2] - local_mm[0, 2]) / max(np.ptp(local_mm[:, 2]), SAME_POSITION_MM), drift[-1])
    if np.abs(drift - line).max() > CROOKED_PIXELS:
        raise _mixed(f"the slices of {case} do not lie on a straight line")
    return drift


def _tilt_degrees(local_mm: np.ndarray) -> float:
    span = local_mm[-1] - local_mm[0]
    return float(np.degrees(np.arctan2(np.hypot(span[0], span[1]), span[2])))


def _pixels(stack: list[Slice]) -> np.ndarray:
    """Values with slope and intercept of each slice, float32 [z y x], files decoded side by side. Raises ScanError E-READ."""
    array = np.empty((len(stack), *stack[0].size), np.float32)
    places: dict[Path, list[int]] = {}
    for k, plane in enumerate(stack):
        places.setdefault(plane.path, []).append(k)

    def decode(path: Path) -> None:
        try:
            frames = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).reshape(-1, *stack[0].size)
        except (RuntimeError, ValueError) as error:
            raise ScanError("E-READ", f"{path.name} cannot be read: {reason(error, path)}", remedy="export the series again") from None
        for k in places[path]:
            array[k] = _rescaled(frames[stack[k].frame], stack[k])

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode, places):
            pass
    return array


def _rescaled(plane: np.ndarray, header: Slice) -> np.ndarray:
    """The decoder gives every frame of a file the first one's slope and intercept; here each gets its own."""
    if header.rescale == header.applied:
        return plane
    (slope, intercept), (applied_slope, applied_intercept) = header.rescale or (1.0, 0.0), header.applied or (1.0, 0.0)
    return (plane.astype(np.float64) - applied_intercept) / applied_slope * slope + intercept


def _upright(array: np.ndarray, drift_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each slice of [z y x] moved by its drift (x, y) on a plane that holds them all, and where that plane starts, in pixels (x, y)."""
    low, high = np.floor(drift_px.min(0)).astype(int), np.ceil(drift_px.max(0)).astype(int)
    around = [(-low[1], high[1]), (-low[0], high[0])]
    outside = float(array.min())
    padded = (np.pad(plane, around, constant_values=outside) for plane in array)
    moved = [ndimage.shift(plane, drift[::-1], order=1, cval=outside) for plane, drift in zip(padded, drift_px, strict=True)]
    return np.stack(moved), low.astype(float)


def _interpolated(array: np.ndarray, along_mm: np.ndarray, wanted_mm: np.ndarray) -> np.ndarray:
    """Slices [z y x] at other positions, linear between the neighbours."""
    upper = np.clip(np.searchsorted(along_mm, wanted_mm), 1, len(along_mm) - 1)
    share = (wanted_mm - along_mm[upper - 1]) / (along_mm[upper] - along_mm[upper - 1])
    return np.stack([(1 - w) * array[k - 1] + w * array[k] for k, w in zip(upper, share.astype(np.float32), strict=True)])


def _plain_notes(stack: Iterable[Slice]) -> Iterator[str]:
    planes = list(stack)
    if any(plane.modality == "CT" and plane.rescale is None for plane in planes):
        yield "no Rescale Slope in the header: stored values taken as HU"
    if len(planes) == 1:
        yield f"a single slice: {planes[0].thickness_mm:g} mm taken as its thickness"
