"""Between the slices of a scan and a square grid that lies in their planes.

What is carried over are means: a pixel holds the mean over its square, a voxel the mean over its own. Going to the grid, each voxel is
taken as uniform. Coming back to finer voxels, the running integral along each axis is interpolated by a cubic spline, whose differences
are the new means (a histospline; Boneva, Kendall and Stefanov 1971): means over the old pixels stay what they were, which no interpolation
between middles keeps. Where both lattices coincide, both ways are exact.

Slices are [s y x] in LPS, as `physics` has them, volumes [x y z] in nearest RAS+ order.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from nibabel import orientations
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from medsynth.core.volume import Volume
from medsynth.scans import grid as regrid

AIR_HU = -1000.0
RIGHT_ANGLE = 1e-4  # cosine between two axes in the plane, up to which they count as orthogonal


class PlaneGrid(NamedTuple):
    """A square grid of size x size pixels in the planes of a scan.

    affine_ras: indices [x y slice] in RAS+ order -> mm, the isocentre of each slice in the middle, on an edge between two voxels of the
    scan. half: voxels of the scan before that edge, along x and y.
    """

    affine_ras: np.ndarray
    size: int
    pixel_mm: float
    half: tuple[int, int]


class _Axis(NamedTuple):
    """Cells along an axis, and how many of them lie before the isocentre."""

    cells: int
    step_mm: float
    before: float

    @property
    def edges_mm(self) -> np.ndarray:
        return self.step_mm * (np.arange(self.cells + 1) - self.before)


def square_grid(volume: Volume, pixel_mm: float, multiple: int) -> PlaneGrid:
    """The smallest grid of such pixels that covers every slice of a volume in nearest RAS+ order, its size a multiple of a number."""
    nx, ny, _ = volume.shape
    half = (nx // 2, ny // 2)
    axes = frame(volume.affine_ras)
    ends = np.array([(x, y) for x in (0, nx) for y in (0, ny)]) - half
    reach_mm = np.abs(ends @ volume.affine_ras[:3, :2].T @ axes).max()
    size = multiple * math.ceil(math.ceil(reach_mm / pixel_mm - 1e-4) * 2 / multiple)
    affine = np.eye(4)
    affine[:3, :2] = axes * pixel_mm
    affine[:3, 2] = volume.affine_ras[:3, 2]
    isocentre = volume.affine_ras @ [half[0] - 0.5, half[1] - 0.5, 0, 1]
    affine[:3, 3] = isocentre[:3] - affine[:3, :2].sum(axis=1) * (size - 1) / 2
    return PlaneGrid(affine, size, pixel_mm, half)


def frame(affine_ras: np.ndarray) -> Float[np.ndarray, "3 2"]:
    """Two orthogonal directions of length 1 in the slices' planes: the first axis, and what of the second is across it."""
    first, second = affine_ras[:3, 0], affine_ras[:3, 1]
    first = first / np.linalg.norm(first)
    second = second - (second @ first) * first
    return np.stack([first, second / np.linalg.norm(second)], axis=1)


def onto(volume: Volume, grid: PlaneGrid, slices: slice, *, finer: int = 1) -> Float32[np.ndarray, "s y x"]:
    """Some slices of a CT in nearest RAS+ order on its grid, in HU, with pixels `finer` times as fine; air around the scan."""
    chosen = volume.array[:, :, slices]
    size = grid.size * finer
    if _is_sheared(volume.affine_ras):
        part = Volume(array=chosen, affine_ras=_from_slice(volume.affine_ras, slices.start))
        affine = _from_slice(grid.affine_ras, slices.start)
        affine[:3, 3] += affine[:3, :2].sum(axis=1) * (1 / finer - 1) / 2
        affine[:3, :2] /= finer
        on_grid = regrid.resample(part, affine, (size, size, chosen.shape[2]), outside=AIR_HU)
        return np.ascontiguousarray(on_grid[::-1, ::-1].T)
    pixels = _Axis(size, grid.pixel_mm / finer, size / 2)
    along_x, along_y = (_means(voxels, pixels, 1) for voxels in _voxels(volume, grid))
    above_air = np.ascontiguousarray(chosen.T) - np.float32(AIR_HU)
    return np.ascontiguousarray((along_y @ above_air @ along_x.T)[:, ::-1, ::-1]) + np.float32(AIR_HU)


def off(image: Float32[np.ndarray, "s y x"], grid: PlaneGrid, volume: Volume) -> Float32[np.ndarray, "i j s"]:
    """All slices from the grid onto the voxels [x y z] of the volume, in nearest RAS+ order, that the grid was made for.

    A value is kept between those of the pixels around it, since a spline swings past them at edges: of all that its voxel reaches into.
    """
    turned = image[:, ::-1, ::-1]
    if _is_sheared(volume.affine_ras):
        return regrid.back(np.ascontiguousarray(turned.T), grid.affine_ras, volume, outside=AIR_HU).array
    pixels = _Axis(grid.size, grid.pixel_mm, grid.size / 2)
    axes = _voxels(volume, grid)
    along_x, along_y = (_means(pixels, voxels, 3) for voxels in axes)
    nearest = np.ix_(*(_nearest(pixels, voxels) for voxels in axes))
    around_x, around_y = (_around(pixels, voxels) for voxels in axes)
    result = np.empty(volume.shape, dtype=np.float32)
    for k, plane in enumerate(turned):
        low, high = (extreme(plane, (around_y, around_x)).T[nearest] for extreme in (ndimage.minimum_filter, ndimage.maximum_filter))
        result[:, :, k] = np.clip(along_x @ plane.T @ along_y.T, low, high)
    return result


def as_stored(array: np.ndarray, like: Volume) -> np.ndarray:
    """Inverse of `planes.nearest_ras` for the voxels of a volume: from nearest RAS+ order to the order of its own axes."""
    ras = orientations.axcodes2ornt("RAS")
    own = orientations.io_orientation(like.affine_ras)
    return np.ascontiguousarray(orientations.apply_orientation(array, orientations.ornt_transform(ras, own)))


def _is_sheared(affine_ras: np.ndarray) -> bool:
    """Whether the two axes in the plane are not orthogonal. A shear from slice to slice, a tilted gantry's, is none of the plane."""
    first, second = affine_ras[:3, 0], affine_ras[:3, 1]
    return bool(abs(first @ second) > RIGHT_ANGLE * np.linalg.norm(first) * np.linalg.norm(second))


def _from_slice(affine_ras: np.ndarray, first: int) -> np.ndarray:
    moved = affine_ras.copy()
    moved[:3, 3] += first * affine_ras[:3, 2]
    return moved


def _voxels(volume: Volume, grid: PlaneGrid) -> tuple[_Axis, _Axis]:
    x, y = (_Axis(volume.shape[axis], volume.spacing_mm[axis], grid.half[axis]) for axis in (0, 1))
    return x, y


@lru_cache(maxsize=16)
def _means(source: _Axis, target: _Axis, degree: int) -> Float32[np.ndarray, "t s"]:
    """From means over the source's cells to means over the target's: differences of the running integral, a spline of that degree.

    Degree 1 takes the source as uniform within each cell. Beyond its ends the source is 0.
    """
    edges = source.edges_mm
    integral = np.vstack([np.zeros(source.cells), np.tril(np.full((source.cells, source.cells), source.step_mm))])
    wanted = target.edges_mm.clip(edges[0], edges[-1])
    spline = make_interp_spline(edges, integral, k=degree)
    return (np.diff(spline(wanted), axis=0) / target.step_mm).astype(np.float32)


def _nearest(pixels: _Axis, voxels: _Axis) -> np.ndarray:
    """The pixel that holds the middle of each voxel."""
    middles = (voxels.edges_mm[:-1] + voxels.edges_mm[1:]) / 2
    return np.floor(middles / pixels.step_mm + pixels.before).astype(int).clip(0, pixels.cells - 1)


def _around(pixels: _Axis, voxels: _Axis) -> int:
    """Pixels, the nearest one in the middle, that a voxel reaches into and that lie beside it: at least 3."""
    return 2 * max(1, math.ceil(voxels.step_mm / pixels.step_mm / 2 - 1e-4)) + 1
