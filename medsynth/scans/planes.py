"""Where a picture cuts a scan: the axial, coronal and sagittal slice through one point, turned as radiology shows them.

The patient's right is on the left of axial and coronal slices; the front is at the top of axial and on the left of sagittal ones; the head
is at the top of the others. Slices lie on the scan's own voxels: of an oblique scan they are the nearest to the three planes, and tilted.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool
from nibabel import orientations

from medsynth.core.errors import UsageError
from medsynth.core.volume import Volume

COARSE = 64  # voxels per axis that are looked at to find the body
MARGIN_MM = 8.0  # kept around the body
SPECK = 0.005  # of the body's largest cross-section: a slice that holds less does not widen the picture
TWO_LETTERS = 0.34  # share of a second axis (20 degrees) from which a border gets its letter too
Point = tuple[float, float, float]

AXES = ("sagittal", "coronal", "axial")  # by the axis of RAS+ that they cut


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One slice of a scan that is in nearest RAS+ order.

    axis, index: which voxels it takes. box: what is shown, along the three axes. spacing_mm: down, across. letters: at the left, right, top
    and bottom border. position_mm: of its middle along its axis in RAS+. tilt_degrees: between its normal and that axis.
    """

    name: str
    axis: int
    index: int
    box: tuple[slice, slice, slice]
    spacing_mm: tuple[float, float]
    letters: tuple[str, str, str, str]
    position_mm: float
    tilt_degrees: float

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of what is shown."""
        across, down = (self.box[axis] for axis in range(3) if axis != self.axis)
        return (down.stop - down.start) * self.spacing_mm[0], (across.stop - across.start) * self.spacing_mm[1]

    @property
    def where(self) -> tuple[str, ...]:
        """What a picture prints beside the name: `z = -12.3 mm`, and `tilted 18°` if it is."""
        position = f"{'xyz'[self.axis]} = {self.position_mm:.1f} mm"
        return (position, f"tilted {self.tilt_degrees:.0f}°") if self.tilt_degrees >= 1 else (position,)


def nearest_ras(volume: Volume) -> Volume:
    """The scan with its axes permuted and flipped to the nearest of R, A, S. A view: nothing is copied."""
    turn = orientations.io_orientation(volume.affine_ras)
    affine = volume.affine_ras @ orientations.inv_ornt_aff(turn, volume.shape)
    return replace(volume, array=orientations.apply_orientation(volume.array, turn), affine_ras=affine)


def coarse(array: np.ndarray) -> np.ndarray:
    """Every n-th voxel of [x y z], at most 64 along each axis."""
    return array[tuple(slice(None, None, step) for step in _steps(array.shape))]


def through(scan: Volume, body: Bool[np.ndarray, "x y z"], at_mm: Point | None) -> tuple[Plane, Plane, Plane]:
    """Axial, coronal and sagittal plane of a scan in nearest RAS+ order, cropped to the body.

    body: of the `coarse` voxels. at_mm: the point that all three go through, RAS+; None: the centre of mass of the body.
    Raises UsageError E-AT if the point is not in the scan.
    """
    shown = body if body.any() else np.ones_like(body)
    index = _index(scan, np.argwhere(shown).mean(0) * _steps(scan.shape) if at_mm is None else _voxel(scan, at_mm))
    box = _box(scan, shown, index)
    axial, coronal, sagittal = (_plane(scan, axis, index, box) for axis in (2, 1, 0))
    return axial, coronal, sagittal


def cut(scan: Volume, plane: Plane) -> np.ndarray:
    """The plane's voxels [down across], turned as radiology shows them, of the scan in nearest RAS+ order that the plane was made for."""
    picked = tuple(plane.index if axis == plane.axis else plane.box[axis] for axis in range(3))
    return scan.array[picked].T[::-1, ::-1]


def _steps(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-n // COARSE) for n in shape)


def _voxel(scan: Volume, at_mm: Point) -> np.ndarray:
    voxel = np.linalg.solve(scan.affine_ras, [*at_mm, 1.0])[:3]
    if np.any(voxel < -0.5) or np.any(voxel > np.array(scan.shape) - 0.5):
        ends = np.array(np.meshgrid(*[(0, n - 1) for n in scan.shape], indexing="ij")).reshape(3, -1)
        corners = scan.affine_ras[:3, :3] @ ends + scan.affine_ras[:3, 3:]
        spans = ", ".join(f"{name} {low:.0f} to {high:.0f}" for name, low, high in zip("xyz", corners.min(1), corners.max(1), strict=True))
        point = ", ".join(f"{value:g}" for value in at_mm)
        raise UsageError("E-AT", f"the point {point} mm is not in the scan", remedy=f"the scan reaches, in mm (RAS+), over {spans}")
    return voxel


def _index(scan: Volume, voxel: np.ndarray) -> tuple[int, int, int]:
    x, y, z = (int(i) for i in np.clip(np.rint(voxel), 0, np.array(scan.shape) - 1))
    return x, y, z


def _box(scan: Volume, shown: np.ndarray, index: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    """The body's bounding box with a margin, wide enough to hold the point that the planes go through."""
    sides: list[slice] = []
    for axis, (step, n, spacing) in enumerate(zip(_steps(scan.shape), scan.shape, scan.spacing_mm, strict=True)):
        area = shown.sum(axis=tuple(other for other in range(3) if other != axis))
        held = np.flatnonzero(area > SPECK * area.max()) * step
        margin = round(MARGIN_MM / spacing)
        low = min(int(held[0]) - step + 1 - margin, index[axis])
        high = max(int(held[-1]) + step + margin, index[axis] + 1)
        sides.append(slice(max(0, low), min(n, high)))
    x, y, z = sides
    return x, y, z


def _plane(scan: Volume, axis: int, index: tuple[int, int, int], box: tuple[slice, slice, slice]) -> Plane:
    across, down = (scan.affine_ras[:3, other] for other in range(3) if other != axis)
    normal = np.cross(across, down)
    middle = scan.affine_ras[:3, :3] @ index + scan.affine_ras[:3, 3]
    return Plane(
        name=AXES[axis],
        axis=axis,
        index=index[axis],
        box=box,
        spacing_mm=(float(np.linalg.norm(down)), float(np.linalg.norm(across))),
        letters=(_letters(across), _letters(-across), _letters(down), _letters(-down)),
        position_mm=float(middle[axis]),
        tilt_degrees=float(np.degrees(np.arccos(min(1.0, abs(normal[axis]) / np.linalg.norm(normal))))),
    )


def _letters(towards: np.ndarray) -> str:
    """R L A P S I for a direction in RAS+, the nearest first; a second one where the direction leans towards it."""
    unit = towards / np.linalg.norm(towards)
    ranked = sorted(range(3), key=lambda axis: -abs(unit[axis]))[:2]
    return "".join("LPI"[axis] if unit[axis] < 0 else "RAS"[axis] for axis in ranked if abs(unit[axis]) >= TWO_LETTERS)
