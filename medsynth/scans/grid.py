"""Resampling between a scan's own grid and a card's, both ways.

Grids are affines in RAS+, which may be oblique, mirrored or sheared: SimpleITK interpolates in index space, with the affine map between the
two grids as its transform. Going to a coarser grid is anti-aliased by a Gaussian.
"""

from dataclasses import replace

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from medsynth.core.volume import Volume

# Both grids' voxels taken as Gaussians with their spacing as full width at half maximum: what the coarser one lacks (Cardoso 2015, MICCAI).
SIGMA_PER_VOXEL = 1 / np.sqrt(8 * np.log(2))
ROUNDING = 0.01  # of a voxel: no voxel of the scan may lie on the outer edge of the card's, where arithmetic decides the side


def to_card(volume: Volume, spacing_mm: tuple[float, float, float]) -> Volume:
    """The scan on a grid of the given spacing that runs along R, A and S and covers it.

    Aligned with the patient rather than with the scan's planes: heads lie nearly upright in the scanner, oblique planes do not.
    The scan's outermost voxels lie at most half a voxel outside, never inside a further one that would hold nothing but background.
    """
    corners = volume.affine_ras[:3, :3] @ _corner_indices(volume.shape) + volume.affine_ras[:3, 3:]
    low, high = corners.min(1), corners.max(1)
    size = [int(n) for n in np.floor((high - low) / spacing_mm + ROUNDING) + 1]
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = (low + high - (np.array(size) - 1) * spacing_mm) / 2
    array = resample(volume, affine, (size[0], size[1], size[2]), outside=float(volume.array.min()))
    return replace(volume, array=array, affine_ras=affine)


def back(array: np.ndarray, affine_ras: np.ndarray, volume: Volume, *, outside: float) -> Volume:
    """What was computed on a card's grid, on the scan's own grid: its shape and affine exactly.

    Cubic B-spline, since linear interpolation widens bone by a quarter of a voxel; kept between the neighbouring voxels' values, since a
    spline swings past them at edges.
    """
    moving = replace(volume, array=array, affine_ras=affine_ras)
    smooth = _antialiased(moving, volume.affine_ras)

    def on_scan(values: np.ndarray, how: int) -> np.ndarray:
        return _interpolate(replace(moving, array=values), volume.affine_ras, volume.shape, how, outside)

    low, high = (on_scan(extreme(smooth, 3), sitk.sitkNearestNeighbor) for extreme in (ndimage.minimum_filter, ndimage.maximum_filter))
    return volume.with_array(np.clip(on_scan(smooth, sitk.sitkBSpline), low, high))


def mask_to(mask: Volume, like: Volume) -> np.ndarray:
    """bool [x y z]: a mask on another grid, by nearest neighbour."""
    binary = replace(mask, array=(mask.array > 0).astype(np.float32))
    return _interpolate(binary, like.affine_ras, like.shape, sitk.sitkNearestNeighbor, 0.0) > 0.5


def resample(volume: Volume, affine_ras: np.ndarray, shape: tuple[int, int, int], *, outside: float) -> np.ndarray:
    """float32 [x y z] on the grid `affine_ras`, `shape`: linear, smoothed first along axes that become coarser.

    Half a voxel around the scan still belongs to its outermost voxels; farther out the value is `outside`.
    """
    return _interpolate(replace(volume, array=_antialiased(volume, affine_ras)), affine_ras, shape, sitk.sitkLinear, outside)


def _antialiased(volume: Volume, affine_ras: np.ndarray) -> np.ndarray:
    """The volume's array, smoothed along the axes on which the grid `affine_ras` is coarser."""
    ratio = _coarser_by(volume.affine_ras, affine_ras)
    sigma = np.where(ratio > 1.01, SIGMA_PER_VOXEL * np.sqrt(np.maximum(ratio**2 - 1, 0)), 0.0)
    return _smoothed(volume.array, sigma)


def _interpolate(volume: Volume, affine_ras: np.ndarray, shape: tuple[int, int, int], how: int, outside: float) -> np.ndarray:
    # Transposing makes the array's memory [z y x], which is how SimpleITK orders a volume whose first index is x.
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.T, dtype=np.float32))
    between = np.linalg.solve(volume.affine_ras, affine_ras)  # index on the new grid -> index on the scan's
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(between[:3, :3].ravel().tolist())
    transform.SetTranslation(between[:3, 3].tolist())
    identity = np.eye(3).ravel().tolist()
    moved = sitk.Resample(image, list(shape), transform, how, [0.0] * 3, [1.0] * 3, identity, outside, sitk.sitkFloat32)
    return np.ascontiguousarray(sitk.GetArrayViewFromImage(moved).T)


def _smoothed(array: np.ndarray, sigma_voxels: np.ndarray) -> np.ndarray:
    """Gaussian along each axis whose sigma is above zero and which has enough voxels."""
    image = None
    for axis, sigma in enumerate(sigma_voxels):
        if sigma > 0 and array.shape[axis] >= 4:
            image = sitk.GetImageFromArray(np.ascontiguousarray(array.T, dtype=np.float32)) if image is None else image
            image = sitk.RecursiveGaussian(image, float(sigma), False, sitk.RecursiveGaussianImageFilter.ZeroOrder, axis)
    return array if image is None else np.ascontiguousarray(sitk.GetArrayViewFromImage(image).T)


def _coarser_by(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """For each axis of the source, how many of its voxels a voxel of the target spans."""
    return np.linalg.norm(np.linalg.solve(source, target)[:3, :3], axis=1)


def _corner_indices(shape: tuple[int, int, int]) -> np.ndarray:
    return np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), dtype=np.float64).reshape(3, -1)
