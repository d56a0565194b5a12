"""CT from few views: the rules of the task. Which grid is reconstructed on, which scans may be projected, what a user is warned of.

A scan is projected and reconstructed in its own planes, whatever way they lie in the patient. Imports no torch.
"""

import math

import numpy as np
from scipy import ndimage

from medsynth.core.errors import ScanError
from medsynth.core.quantity import CT
from medsynth.core.task import Task
from medsynth.core.volume import Volume
from medsynth.core.windows import plausible_hu
from medsynth.physics.geometry import Geometry, uncovered_mm
from medsynth.scans import inplane, planes
from medsynth.scans.inplane import PlaneGrid

AIR_HU = -1000.0
RANGE_HU = (-1024.0, 3071.0)
MOST_PIXELS, LARGEST_PIXEL_MM = 352, 2.4  # along the scan's longer side; beyond it, pixels are divided
LEARNED_MM, NEAR_MM = (0.95, 1.75), (0.9, 1.8)  # pixels that models are trained with, and those that do as well
MULTIPLE = 16  # of the grid's size: networks halve it
TISSUE_HU = -500.0
FEW_VOXELS = 10  # of tissue where none should be: noise and streaks
METAL_HU = 3100.0  # beyond what twelve bits hold, and resampling adds
PADDING_HU = -1100.0  # far below air: what scanners write outside their own field of view
THIN_MM, COARSE_MM = 20.0, 4.0  # a table's shell is thinner, arms are thicker
OBLIQUE_DEG = 5.0
VERY_FEW_VIEWS, FEW_VIEWS = 30, 60
SIDES = ("right", "front", "left", "back")  # by quarters of a turn from +x, which runs to the patient's right, towards +y, the front


def plane_grid(shape: tuple[int, int, int], affine_ras: np.ndarray) -> PlaneGrid:
    """The grid of the reconstruction, from a scan's own grid alone (axes in any order): what both a volume and a geometry file know.

    Pixels are the scan's, binned by the smallest number that leaves at most MOST_PIXELS along the longer side, and divided where they would
    be larger than LARGEST_PIXEL_MM; of two spacings in the plane the finer one counts. That limit is such that the common 512 x 512 voxels
    of a little more than 1 mm, once binned, are not divided again into four times as many pixels.
    """
    scan = planes.nearest_ras(empty(shape, affine_ras))
    finer_mm = min(scan.spacing_mm[:2])
    longest_mm = max(n * step for n, step in zip(scan.shape[:2], scan.spacing_mm[:2], strict=True))
    pixel_mm = finer_mm * math.ceil(longest_mm / finer_mm / MOST_PIXELS - 1e-4)
    return inplane.square_grid(scan, pixel_mm / math.ceil(pixel_mm / LARGEST_PIXEL_MM - 1e-4), MULTIPLE)


def image_of_view(geometry: Geometry, slices: int) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of a volume that the field of view fills, for sinograms that name none: slices taken to be 1 mm apart."""
    pixel_mm = max(geometry.field_of_view_mm / MOST_PIXELS, geometry.pitch_at_isocentre_mm)
    size = MULTIPLE * math.ceil(geometry.field_of_view_mm / pixel_mm / MULTIPLE - 1e-4)
    affine = np.diag([pixel_mm, pixel_mm, 1.0, 1.0])
    affine[:2, 3] = -pixel_mm * (size - 1) / 2
    return (size, size, slices), affine


def empty(shape: tuple[int, int, int], affine_ras: np.ndarray) -> Volume:
    """A grid without voxels of its own, which takes no memory."""
    return Volume(array=np.broadcast_to(np.float32(AIR_HU), shape), affine_ras=affine_ras)


def insist_projectable(scan: Volume, geometry: Geometry, *, force: bool) -> tuple[str, ...]:
    """What a user is warned of before a scan in nearest RAS+ order is projected.

    Raises ScanError E-MODALITY if it is no CT in HU, E-FOV if a part of the patient lies outside the field of view; with `force` these are
    warnings.
    """
    no_ct, outside = _no_ct(scan), _patient_outside(scan, geometry)
    for code, cause, remedy in (no_ct, outside):
        if cause and not force:
            raise ScanError(code, cause, remedy=f"{remedy}; or --force to go on regardless")
    causes = [cause for _, cause, _ in (no_ct, outside) if cause]
    return (*causes, *([] if outside[1] else _thin_outside(scan, geometry)), *_notes(scan))


def warn_of_views(views: int) -> tuple[str, ...]:
    """What so few views cannot show, whatever the method (reference recipe, "What the pictures show")."""
    if views < VERY_FEW_VIEWS:
        return (f"{views} views do not show soft tissue: what is smaller than about 1 cm may be blurred or invented",)
    if views < FEW_VIEWS:
        return (f"{views} views: small vessels, and the brain's sulci, are blurred or missing, and fine texture need not be anatomy",)
    return ()


def warn_of_pixels(pixel_mm: float) -> tuple[str, ...]:
    """What a network cannot be trusted with: pixels that it has not learned from."""
    if NEAR_MM[0] <= pixel_mm <= NEAR_MM[1]:
        return ()
    low, high = LEARNED_MM
    return (f"pixels of {pixel_mm:.2f} mm: the model learned from {low:g} to {high:g} mm, and may be less good here",)


def _no_ct(scan: Volume) -> tuple[str, str, str]:
    sample = planes.coarse(scan.array)
    remedy = "give a CT in HU"
    if scan.origin.modality not in ("", "CT"):
        return "E-MODALITY", f"this is {scan.origin.modality}, and what is projected must be CT", remedy
    if not plausible_hu(sample) or float(scan.array.max()) <= TISSUE_HU:
        return "E-MODALITY", f"this is no CT in HU: its values are {sample.min():.4g} to {sample.max():.4g}", remedy
    return "", "", ""


def _patient_outside(scan: Volume, geometry: Geometry) -> tuple[str, str, str]:
    """What of the patient the detector misses in some views."""
    tissue = _outside(scan, geometry)
    if np.count_nonzero(tissue) <= FEW_VOXELS:
        return "", "", ""
    thick = _thick(scan, np.flatnonzero(tissue.any(axis=(0, 1))))
    patient = tissue & thick
    if np.count_nonzero(patient) <= FEW_VOXELS:
        return "", "", ""
    cells = _cells_for(geometry, float(np.hypot(*_places_mm(scan))[patient.any(axis=2)].max()))
    remedy = (
        f"give --geometry with {cells} detector cells or a larger pitch (docs/geometry.md), or crop what does not belong to the patient"
    )
    return "E-FOV", _described("the object", scan, patient, geometry), remedy


def _cells_for(geometry: Geometry, radius_mm: float) -> int:
    """How many cells of its pitch a detector needs to see a circle around the isocentre in every view."""
    reach_mm = radius_mm
    if geometry.beam == "fan":
        sine = min(radius_mm / geometry.source_to_isocentre_mm, 0.99)
        reach_mm = geometry.source_to_detector_mm * math.tan(math.asin(sine))
    return math.ceil(2 * (reach_mm + abs(geometry.detector_offset_mm)) / geometry.pitch_mm)


def _described(what: str, scan: Volume, outside: np.ndarray, geometry: Geometry) -> str:
    """How far what is marked reaches out of view, where, and in which slices."""
    x_mm, y_mm = _places_mm(scan)
    radius_mm = np.where(outside.any(axis=2), np.hypot(x_mm, y_mm), 0)
    farthest = np.unravel_index(np.argmax(radius_mm), radius_mm.shape)
    side = SIDES[round(math.degrees(math.atan2(y_mm[farthest], x_mm[farthest])) / 90) % 4]
    slices = np.flatnonzero(outside.any(axis=(0, 1)))
    beyond_mm, view_mm = uncovered_mm(geometry, float(radius_mm[farthest])), geometry.field_of_view_mm
    place = f"{side}, slices {slices[0]} to {slices[-1]} of {scan.shape[2]}"
    return f"up to {beyond_mm:.0f} mm of {what} lie outside the field of view of {view_mm:.0f} mm ({place})"


def _outside(scan: Volume, geometry: Geometry) -> np.ndarray:
    """bool [x y z]: voxels of tissue that are not in the field of view."""
    outside = np.hypot(*_places_mm(scan)) > geometry.field_of_view_mm / 2
    return outside[:, :, None] & (scan.array > TISSUE_HU)


def _thick(scan: Volume, slices: np.ndarray) -> np.ndarray:
    """bool [x y z]: tissue of some slices that is too thick in the plane for a table, a blanket or a cable. Looked for on coarse pixels."""
    steps = [max(1, round(COARSE_MM / step)) for step in scan.spacing_mm[:2]]
    reach = [max(1, round(THIN_MM / 2 / step / spacing)) for step, spacing in zip(steps, scan.spacing_mm[:2], strict=True)]
    x, y = np.ogrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    disc = (x / reach[0]) ** 2 + (y / reach[1]) ** 2 <= 1
    thick = np.zeros(scan.shape, dtype=bool)
    for k in slices:
        tissue = np.pad(scan.array[:: steps[0], :: steps[1], k] > TISSUE_HU, [(n, n) for n in reach], mode="edge")
        opened = ndimage.binary_opening(tissue, disc)[reach[0] : -reach[0], reach[1] : -reach[1]]
        thick[:, :, k] = opened.repeat(steps[0], axis=0)[: scan.shape[0]].repeat(steps[1], axis=1)[:, : scan.shape[1]]
    return thick


def _thin_outside(scan: Volume, geometry: Geometry) -> list[str]:
    """A table that the detector misses is no reason to refuse a scan."""
    outside = _outside(scan, geometry)
    if np.count_nonzero(outside) <= FEW_VOXELS:
        return []
    return [_described("a table, or of something else that is thin,", scan, outside, geometry)]


def _notes(scan: Volume) -> list[str]:
    notes: list[str] = []
    lowest, highest = float(scan.array.min()), float(scan.array.max())
    if lowest < PADDING_HU:
        notes.append(f"values down to {lowest:.0f} HU, below any tissue, count as air")
    if highest > METAL_HU:
        notes.append(f"values up to {highest:.0f} HU are projected as they are; the result ends at {RANGE_HU[1]:.0f}")
    tilt_deg = _tilt_deg(scan)
    if tilt_deg > OBLIQUE_DEG:
        notes.append(f"the scan's planes are tilted by {tilt_deg:.0f} degrees: it is projected in its own planes")
    # The two ends of x are the patient's left and right, those of y back and front.
    ends = {"left": scan.array[0], "right": scan.array[-1], "back": scan.array[:, 0], "front": scan.array[:, -1]}
    cut = [side for side, border in ends.items() if np.count_nonzero(border > TISSUE_HU) > FEW_VOXELS]
    if cut:
        notes.append(f"the object reaches the edge of the scan's own image ({', '.join(cut)}): what lies beyond is not projected")
    return notes


def _places_mm(scan: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Of each voxel's farthest corner from the isocentre, in the plane, [x y] each: x to the right, y to the front."""
    (nx, ny, _), axes = scan.shape, inplane.frame(scan.affine_ras)
    i, j = (np.where(index < half, index - half, index - half + 1) for index, half in ((np.arange(n), n // 2) for n in (nx, ny)))
    at = np.stack(np.meshgrid(i, j, indexing="ij"), axis=-1) @ (scan.affine_ras[:3, :2].T @ axes)
    return at[..., 0], at[..., 1]


def _tilt_deg(scan: Volume) -> float:
    """Between the normal of the planes and the patient's long axis."""
    normal = np.cross(scan.affine_ras[:3, 0], scan.affine_ras[:3, 1])
    return math.degrees(math.acos(min(1.0, abs(normal[2]) / float(np.linalg.norm(normal)))))


TASK = Task(
    name="sparse-ct",
    summary="CT from few views, in agreement with what was measured.",
    source=CT(),
    target=CT(),
    suffix="ct",
    model="sparse-ct",
    outside=AIR_HU,
    range=RANGE_HU,
    learns_from="projections",
)
