"""The geometry of a CT scan in a plane, as data: beam, views, detector; and its TOML file. Imports no torch.

Axes: in plane x to the patient's left and y to the back (DICOM LPS), isocentre at the origin and in the middle of the image. At view angle
beta, which turns from +x to +y, the source stands at source_to_isocentre (cos beta, sin beta); the detector's coordinate u grows along
(-sin beta, cos beta), and cell k lies at u = (k - (detectors - 1) / 2) pitch + offset. Parallel rays run along the same direction.

Defaults are those of the field's benchmark on the AAPM low-dose set (as FreeSeed and DuDoTrans use it): fan beam of 736 cells.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, field_validator, model_validator

from medsynth.core.errors import ScanError, UsageError

Beam = Literal["fan", "parallel"]
Matrix = tuple[tuple[FiniteFloat, ...], ...]
Count = Annotated[int, Field(gt=0)]
Length = Annotated[FiniteFloat, Field(gt=0)]

DETECTORS = 736
PITCH_MM = 1.2858
SOURCE_TO_ISOCENTRE_MM = 595.0
SOURCE_TO_DETECTOR_MM = 1085.6
RANGE_DEG: dict[Beam, float] = {
    "fan": 360.0,
    "parallel": 180.0,
}  # that a complete scan turns through, half a turn being enough for parallel rays
FINER = 2  # pixels of a grid that is projected, in one of the reconstruction's: one matrix for both is the inverse crime
RADIANS_BELOW = 6.4  # a full turn in radians and a bit: a scan of several views that turns through fewer degrees is a mistake of unit
SPACING_TOLERANCE = 0.05  # of the step between views
REMEDY = "docs/geometry.md describes the file"


class Geometry(BaseModel, frozen=True, extra="forbid"):
    """Where source and detector are in each view. pitch_mm: of the cells, at the detector for a fan, at the isocentre for parallel rays.

    detector_offset_mm: shift of the detector's middle along +u, in the unit of the pitch. The two distances count for a fan only.
    Raises UsageError E-GEOMETRY if the parts contradict each other; pydantic's ValidationError if one is out of range by itself.
    """

    beam: Beam
    angles_deg: tuple[FiniteFloat, ...] = Field(min_length=1)
    detectors: Count
    pitch_mm: Length
    detector_offset_mm: FiniteFloat = 0.0
    source_to_isocentre_mm: Length = SOURCE_TO_ISOCENTRE_MM
    source_to_detector_mm: Length = SOURCE_TO_DETECTOR_MM

    @model_validator(mode="after")
    def _possible(self) -> "Geometry":
        if self.views > 2 and max(abs(angle) for angle in self.angles_deg) < RADIANS_BELOW:
            cause = f"all {self.views} angles lie within {RADIANS_BELOW} degrees of 0: are they in radians?"
            raise UsageError("E-GEOMETRY", cause, remedy="give angles_deg in degrees: radians times 180 / pi")
        if self.beam == "fan" and self.source_to_detector_mm <= self.source_to_isocentre_mm:
            cause = f"the detector, {self.source_to_detector_mm:g} mm from the source, is not beyond the isocentre"
            remedy = f"source_to_detector_mm must exceed source_to_isocentre_mm, {self.source_to_isocentre_mm:g}; are they exchanged?"
            raise UsageError("E-GEOMETRY", cause, remedy=remedy)
        if self.field_of_view_mm <= 0:
            cause = f"{self.detectors} cells of {self.pitch_mm:g} mm, shifted by {self.detector_offset_mm:g} mm, do not see the isocentre"
            raise UsageError("E-GEOMETRY", cause, remedy="detector_offset_mm is in mm, not in cells, and below half of the detector")
        return self

    @property
    def views(self) -> int:
        """Number of views."""
        return len(self.angles_deg)

    @property
    def angles_rad(self) -> tuple[float, ...]:
        """View angles in radians."""
        return tuple(math.radians(angle) for angle in self.angles_deg)

    @property
    def magnification(self) -> float:
        """Of the isocentre's plane on the detector: 1 for parallel rays."""
        return self.source_to_detector_mm / self.source_to_isocentre_mm if self.beam == "fan" else 1.0

    @property
    def pitch_at_isocentre_mm(self) -> float:
        """Distance of neighbouring cells, seen from the source, at the isocentre."""
        return self.pitch_mm / self.magnification

    @property
    def field_of_view_mm(self) -> float:
        """Diameter of the circle around the isocentre that every view sees; with an offset, up to the nearer end of the detector."""
        reach = self.detectors * self.pitch_mm / 2 - abs(self.detector_offset_mm)
        if self.beam == "parallel":
            return 2 * reach
        return 2 * self.source_to_isocentre_mm * math.sin(math.atan(reach / self.source_to_detector_mm))

    @property
    def is_complete(self) -> bool:
        """Whether the views are equally spaced through a full turn, or half a turn of parallel rays: what filtered backprojection needs."""
        periods = (360.0, 180.0) if self.beam == "parallel" else (360.0,)
        return any(_equally_spaced(self.angles_deg, period) for period in periods)


class ImageGrid(BaseModel, frozen=True, extra="forbid"):
    """A square image around the isocentre: size x size pixels of pixel_mm."""

    size: Count
    pixel_mm: Length

    @property
    def half_diagonal_mm(self) -> float:
        """From the isocentre to the image's corner."""
        return self.size * self.pixel_mm / math.sqrt(2)


class Target(BaseModel, frozen=True, extra="forbid"):
    """The volume to reconstruct on. affine: 4 x 4, voxel indices to mm in RAS+. shape: voxels along x, y, z."""

    affine: Matrix
    shape: tuple[Count, Count, Count]

    @field_validator("affine")
    @classmethod
    def _is_affine(cls, affine: Matrix) -> Matrix:
        if [len(row) for row in affine] != [4] * 4 or affine[3] != (0, 0, 0, 1):
            raise ValueError("give four rows of four numbers, the last of them 0, 0, 0, 1")
        a, b, c = (row[:3] for row in affine[:3])
        cross = (b[1] * c[2] - b[2] * c[1], b[2] * c[0] - b[0] * c[2], b[0] * c[1] - b[1] * c[0])
        if sum(p * q for p, q in zip(a, cross, strict=True)) == 0:
            raise ValueError("its axes span no volume")
        return affine


class Scan(BaseModel, frozen=True, extra="forbid"):
    """What a geometry file holds: the tables [geometry] and, where the volume to reconstruct on is known, [image]."""

    geometry: Geometry
    image: Target | None = None


def fan(
    views: int,
    *,
    detectors: int = DETECTORS,
    pitch_mm: float = PITCH_MM,
    detector_offset_mm: float = 0.0,
    source_to_isocentre_mm: float = SOURCE_TO_ISOCENTRE_MM,
    source_to_detector_mm: float = SOURCE_TO_DETECTOR_MM,
) -> Geometry:
    """Fan beam, views equally spaced over 360 degrees, the first at 0; pitch and offset at the detector. Raises UsageError E-GEOMETRY."""
    return Geometry(
        beam="fan",
        angles_deg=_angles_deg(views, "fan"),
        detectors=detectors,
        pitch_mm=pitch_mm,
        detector_offset_mm=detector_offset_mm,
        source_to_isocentre_mm=source_to_isocentre_mm,
        source_to_detector_mm=source_to_detector_mm,
    )


def parallel(
    views: int,
    *,
    detectors: int = DETECTORS,
    pitch_mm: float = PITCH_MM * SOURCE_TO_ISOCENTRE_MM / SOURCE_TO_DETECTOR_MM,
    detector_offset_mm: float = 0.0,
) -> Geometry:
    """Parallel rays, views equally spaced over 180 degrees, the first at 0; lengths at the isocentre. Raises UsageError E-GEOMETRY."""
    angles = _angles_deg(views, "parallel")
    return Geometry(beam="parallel", angles_deg=angles, detectors=detectors, pitch_mm=pitch_mm, detector_offset_mm=detector_offset_mm)


def from_toml(text: str, name: str) -> Scan:
    """A geometry file's content, checked; `name` is what errors call it. `views = 18` may stand in place of the list `angles_deg`.

    Raises UsageError E-GEOMETRY if it is not TOML, has keys that are unknown, missing or out of range, or contradicts itself.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError("E-GEOMETRY", f"{name} is not TOML: {error}", remedy="mend the line that it names") from None
    if isinstance(tables.get("geometry"), dict):
        tables["geometry"] = _with_angles(tables["geometry"], name)
    try:
        return Scan.model_validate(tables)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError("E-GEOMETRY", f"{name}: {where}: {first['msg']}", remedy=REMEDY) from None
    except UsageError as error:
        raise UsageError(error.code, f"{name}: {error.cause}", remedy=error.remedy) from None


def to_toml(scan: Scan) -> str:
    """The file's text, which `from_toml` reads back to an equal scan. Views that are equally spaced from 0 are written as their number."""
    geometry = scan.geometry
    values = geometry.model_dump()
    angles = values.pop("angles_deg")
    regular = angles == _angles_deg(geometry.views, geometry.beam)
    table: dict[str, Any] = {"beam": values.pop("beam"), **({"views": len(angles)} if regular else {"angles_deg": list(angles)})}
    if geometry.beam == "parallel":
        values = {key: value for key, value in values.items() if not key.startswith("source_")}
    tables: dict[str, Any] = {"geometry": table | values}
    if scan.image is not None:
        tables["image"] = {"affine": [list(row) for row in scan.image.affine], "shape": list(scan.image.shape)}
    return tomlkit.dumps(tables)


def uncovered_mm(geometry: Geometry, radius_mm: float) -> float:
    """By how much a circle around the isocentre reaches beyond the field of view on each side: 0 if every view sees all of it."""
    return max(0.0, radius_mm - geometry.field_of_view_mm / 2)


def insist_source_outside(geometry: Geometry, grid: ImageGrid) -> None:
    """Raises UsageError E-GEOMETRY if the source of a fan would turn within the image."""
    if geometry.beam == "fan" and geometry.source_to_isocentre_mm <= grid.half_diagonal_mm:
        cause = f"the source, {geometry.source_to_isocentre_mm:g} mm from the isocentre, lies inside the image, whose corners are at"
        remedy = "distances and pixel are in mm: check their unit, or reconstruct a smaller image"
        raise UsageError("E-GEOMETRY", f"{cause} {grid.half_diagonal_mm:.1f} mm", remedy=remedy)


def insist_fits(geometry: Geometry, shape: Sequence[int]) -> None:
    """Raises ScanError E-SINOGRAM if `shape` is not [slices, views, detectors] of this geometry, or has no slice."""
    expected = (geometry.views, geometry.detectors)
    if len(shape) == 3 and tuple(shape[1:]) == expected and shape[0] > 0:
        return
    cause = f"a sinogram of shape {list(shape)} does not fit {expected[0]} views of {expected[1]} cells"
    remedy = f"its shape must be [slices, {expected[0]}, {expected[1]}]: slices, views, detectors"
    if len(shape) == 3 and expected[0] != expected[1] and expected in ((shape[2], shape[1]), (shape[0], shape[1]), (shape[1], shape[0])):
        remedy += "; its axes seem to be in another order"
    elif len(shape) == 2:
        remedy += "; give a single slice an axis of length 1"
    raise ScanError("E-SINOGRAM", cause, remedy=remedy)


def _with_angles(table: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The table [geometry] with `angles_deg` in place of `views`; refuses a fan's keys for parallel rays, which would be ignored."""
    values = dict(table)
    foreign = [key for key in values if key.startswith("source_to_") and values.get("beam") == "parallel"]
    if foreign:
        remedy = 'leave it out, or say beam = "fan"; pitch_mm of parallel rays is at the isocentre'
        raise UsageError("E-GEOMETRY", f"{name}: parallel rays have no {foreign[0]}", remedy=remedy)
    if "views" in values:
        views = values.pop("views")
        if "angles_deg" in values:
            raise UsageError("E-GEOMETRY", f"{name} gives both views and angles_deg", remedy="give one of the two")
        if not isinstance(views, int) or isinstance(views, bool):
            raise UsageError("E-GEOMETRY", f"{name}: views is {views!r}", remedy="give the number of views, or angles_deg with a list")
        values["angles_deg"] = _angles_deg(views, "parallel" if values.get("beam") == "parallel" else "fan")
    return values


def _angles_deg(views: int, beam: Beam) -> tuple[float, ...]:
    if views < 1:
        raise UsageError("E-GEOMETRY", f"{views} views were asked for", remedy="give 1 or more")
    return tuple(view * RANGE_DEG[beam] / views for view in range(views))


def _equally_spaced(angles_deg: Sequence[float], period_deg: float) -> bool:
    """Whether the angles divide the period into equal steps, in any order and from any start."""
    turned = sorted(angle % period_deg for angle in angles_deg)
    step = period_deg / len(turned)
    gaps = (b - a for a, b in zip(turned, [*turned[1:], turned[0] + period_deg], strict=True))
    return all(abs(gap - step) <= SPACING_TOLERANCE * step for gap in gaps)
