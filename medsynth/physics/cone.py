"""The geometry of a cone-beam scan, as data: what its views see, and the grid that fills it. Needs no RTK and no torch.

Axes are RTK's, which are IEC 61217's: the source turns around y and stands on +z at gantry angle 0; the isocentre is the origin. Of a
patient who lies head first on the back, x runs to the left, y to the head and z to the front.
"""

import math

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel

from medsynth.core.errors import ScanError, UsageError
from medsynth.physics.geometry import RADIANS_BELOW, Count, Length

Lengths = tuple[Length, Length, Length]

MOST_VOXELS = 400  # along the longest side: 600 views take some minutes of one core
DISPLACED = 0.1  # of the detector's width: a smaller shift is none (RTK's rule)
GAP_DEG, GAP_STEPS = (
    20.0,
    2.5,
)  # between views, in degrees and in usual steps: a gap above both ends the scan (the first is Parker's in RTK)
LEAST_VIEWS = 3  # fewer have no usual step
FLAT_MM = 2.0  # that the source may leave the plane of its circle
LEAST_CELLS = 2  # of a detector's side; and that it must see beyond the isocentre
WIDEST_FAN_DEG, LEAST_VIEW_MM = 120.0, 1.0  # what lies beyond is a mistake of unit
AXES_RAS = np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]])  # x, y, z -> R, A, S
REMEDY = "docs/geometry.md says what is taken from RTK's file and from the projections"


class Detector(BaseModel, frozen=True, extra="forbid"):
    """A flat detector in mm, along u (columns) and v (rows): how many cells, their pitch, and the middle of the first.

    u = v = 0 is where the ray through the isocentre falls, but for the shifts in RTK's file.
    """

    cells: tuple[Count, Count]
    cell_mm: tuple[Length, Length]
    first_mm: tuple[float, float]

    @property
    def ends_mm(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """The middles of the first and of the last cell, each along u and v."""
        u, v = (first + (n - 1) * step for first, n, step in zip(self.first_mm, self.cells, self.cell_mm, strict=True))
        return self.first_mm, (u, v)


class VolumeGrid(BaseModel, frozen=True, extra="forbid"):
    """Voxels along RTK's x, y and z, their spacing, and the middle of the first voxel; in mm, the isocentre at 0."""

    shape: tuple[Count, Count, Count]
    spacing_mm: Lengths
    origin_mm: tuple[float, float, float]

    @property
    def axes_mm(self) -> list[np.ndarray]:
        """The middles of the voxels along x, y and z."""
        return [first + step * np.arange(n) for n, step, first in zip(self.shape, self.spacing_mm, self.origin_mm, strict=True)]

    @property
    def affine_ras(self) -> np.ndarray:
        """Voxel indices -> mm in RAS+, [4 4], of a patient who lies head first on the back."""
        affine = np.eye(4)
        affine[:3, :3] = AXES_RAS * np.array(self.spacing_mm)
        affine[:3, 3] = AXES_RAS @ np.array(self.origin_mm)
        return affine


class ConeBeam(BaseModel, frozen=True, extra="forbid"):
    """What the views of a scan have in common. Distances are means over the views.

    across_mm, along_mm: the ends of the detector along u and v, scaled to the isocentre, that every view has. climb_mm: by how much the
    source leaves the plane of a circle. curved_mm: radius of a detector that is no plane, 0 for one that is.
    """

    angles_deg: tuple[float, ...]
    source_to_isocentre_mm: float
    source_to_detector_mm: float
    across_mm: tuple[float, float]
    along_mm: tuple[float, float]
    climb_mm: float = 0.0
    curved_mm: float = 0.0

    @property
    def views(self) -> int:
        """Number of views."""
        return len(self.angles_deg)

    @property
    def gaps_deg(self) -> list[float]:
        """Where the views leave a part of the turn out."""
        turned = sorted({round(angle, 3) % 360 for angle in self.angles_deg})  # a view that was taken twice is no step
        steps = [b - a for a, b in zip(turned, [*turned[1:], turned[0] + 360], strict=True)]
        return [step for step in steps if step > max(GAP_DEG, GAP_STEPS * float(np.median(steps)))]

    @property
    def turn_deg(self) -> float:
        """How far the source turns: 360 for a full turn."""
        return 360.0 - sum(self.gaps_deg)

    @property
    def is_short(self) -> bool:
        """Whether it turns less than once."""
        return bool(self.gaps_deg)

    @property
    def is_displaced(self) -> bool:
        """Whether the detector is shifted sideways, so that a view sees little more than half of the object."""
        left, right = self.across_mm
        return abs(left + right) >= DISPLACED * (right - left)

    @property
    def radius_mm(self) -> float:
        """Of the field of view: up to the detector's nearer end, or up to the farther one if it is displaced."""
        left, right = self.across_mm
        reach = max(-left, right) if self.is_displaced else min(-left, right)
        return reach * self.source_to_isocentre_mm / math.hypot(reach, self.source_to_isocentre_mm)

    @property
    def fan_deg(self) -> float:
        """The whole angle of the part of the fan that lies on both sides of the isocentre."""
        left, right = self.across_mm
        return 2 * math.degrees(math.atan(min(-left, right) / self.source_to_isocentre_mm))


def centred_detector(cells: tuple[int, int], cell_mm: tuple[float, float]) -> Detector:
    """A detector with u = v = 0 in its middle; columns and rows."""
    first = [-(n - 1) / 2 * step for n, step in zip(cells, cell_mm, strict=True)]
    return Detector(cells=cells, cell_mm=cell_mm, first_mm=(first[0], first[1]))


def centred(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> VolumeGrid:
    """A grid with the isocentre in its middle."""
    first = [-(n - 1) / 2 * step for n, step in zip(shape, spacing_mm, strict=True)]
    return VolumeGrid(shape=shape, spacing_mm=spacing_mm, origin_mm=(first[0], first[1], first[2]))


def grid_of_view(beam: ConeBeam, detector: Detector) -> VolumeGrid:
    """Isotropic voxels that fill the field of view, as wide as the detector's finer pitch at the isocentre or as MOST_VOXELS allow."""
    low, high = beam.along_mm
    across, along = 2 * beam.radius_mm, high - low
    pitch_mm = min(detector.cell_mm) * beam.source_to_isocentre_mm / beam.source_to_detector_mm
    step = max(pitch_mm, max(across, along) / MOST_VOXELS)
    wide, tall = (max(1, math.ceil(length / step - 1e-4)) for length in (across, along))
    centre = centred((wide, tall, wide), (step, step, step))
    x, y, z = centre.origin_mm
    return centre.model_copy(update={"origin_mm": (x, y + (low + high) / 2, z)})


def in_view(beam: ConeBeam, grid: VolumeGrid) -> Bool[np.ndarray, "x y z"]:
    """Which voxels every view sees (of a displaced detector: it, or the view from opposite): a cylinder whose ends are cut to cones."""
    x, y, z = np.ix_(*grid.axes_mm)
    from_axis = np.hypot(x, z)
    nearer = 1 - from_axis / beam.source_to_isocentre_mm  # the cone where it is nearest to the source
    return (from_axis <= beam.radius_mm) & (y >= beam.along_mm[0] * nearer) & (y <= beam.along_mm[1] * nearer)


def insist_possible(beam: ConeBeam, detector: Detector) -> None:
    """Raises UsageError E-GEOMETRY or E-VIEWS for a scan that FDK cannot take, ScanError E-SINOGRAM for a detector that cannot be."""
    _insist_cone(beam)
    _insist_detector(beam, detector)
    _insist_turn(beam)


def _insist_cone(beam: ConeBeam) -> None:
    to_isocentre, to_detector = beam.source_to_isocentre_mm, beam.source_to_detector_mm
    if to_detector == 0:
        raise UsageError(
            "E-GEOMETRY", "the rays of RTK's file are parallel (SourceToDetectorDistance is 0)", remedy="FDK takes a cone beam"
        )
    if not 0 < to_isocentre < to_detector:
        cause = f"the detector, {to_detector:g} mm from the source, is not beyond the isocentre at {to_isocentre:g} mm"
        raise UsageError("E-GEOMETRY", cause, remedy="check whether the two distances in RTK's file are exchanged")
    if beam.curved_mm:
        raise UsageError("E-GEOMETRY", f"the detector is curved, with a radius of {beam.curved_mm:g} mm", remedy="FDK takes a flat one")
    if beam.climb_mm > FLAT_MM:
        cause = f"the source moves by {beam.climb_mm:.1f} mm along the axis that it turns around"
        raise UsageError("E-GEOMETRY", cause, remedy="FDK takes a circle: no helix, and no tilt that changes from view to view")


def _insist_detector(beam: ConeBeam, detector: Detector) -> None:
    shown = f"{detector.cells[0]} x {detector.cells[1]} cells of {detector.cell_mm[0]:g} x {detector.cell_mm[1]:g} mm"
    if min(detector.cells) < LEAST_CELLS:
        remedy = "give a stack of [views, rows, columns]; a single row is a fan beam: --method fbp or tv"
        raise ScanError("E-SINOGRAM", f"a detector of {shown} sees no cone", remedy=remedy)
    margins = [LEAST_CELLS * step * beam.source_to_isocentre_mm / beam.source_to_detector_mm for step in detector.cell_mm]
    for (low, high), margin, axis, k in ((beam.across_mm, margins[0], "u", 0), (beam.along_mm, 0.0, "v", 1)):
        if not low < -margin <= margin < high:
            first, last = (end[k] for end in detector.ends_mm)
            cause = f"the detector does not see the isocentre: {shown}, {axis} from {first:g} to {last:g} mm"
            remedy = "set the stack's origin to the middle of its first cell, which is -(n - 1) / 2 spacing where the detector is centred"
            raise ScanError("E-SINOGRAM", cause, remedy=f"{remedy}; {REMEDY}")
    wide = 2 * math.degrees(math.atan(max(-beam.across_mm[0], beam.across_mm[1]) / beam.source_to_isocentre_mm))
    if wide > WIDEST_FAN_DEG or 2 * beam.radius_mm < LEAST_VIEW_MM:
        cause = f"a detector of {shown} has a fan of {wide:.3g} degrees and a field of view of {2 * beam.radius_mm:.3g} mm"
        raise ScanError("E-SINOGRAM", cause, remedy="the stack's spacing is the pitch of the detector's cells in mm: check it")


def _insist_turn(beam: ConeBeam) -> None:
    if beam.views < LEAST_VIEWS:
        raise UsageError("E-VIEWS", f"there are {beam.views} views", remedy=f"FDK takes {LEAST_VIEWS} or more")
    if len(beam.gaps_deg) > 1:
        gaps = " and ".join(f"{gap:.0f}" for gap in beam.gaps_deg)
        raise UsageError("E-VIEWS", f"the views leave out {gaps} degrees of the turn", remedy="FDK takes one arc of equal steps")
    least = 180 + beam.fan_deg
    if beam.is_short and beam.turn_deg < least:
        cause = f"the views turn through {beam.turn_deg:.3g} degrees, and FDK needs 180 and the fan's {beam.fan_deg:.0f}"
        unit = "; RTK's file holds degrees: are these radians?" if beam.views > 2 and beam.turn_deg < RADIANS_BELOW else ""
        raise UsageError("E-VIEWS", cause, remedy=f"give a scan of {least:.0f} degrees or more{unit}")
    if beam.is_short and beam.is_displaced:
        cause = f"the detector is displaced, and the views turn through {beam.turn_deg:.0f} degrees"
        raise UsageError("E-VIEWS", cause, remedy="a displaced detector needs a full turn")
