"""Slices on a square grid and back: exact where the lattices coincide, true to means elsewhere, right way round."""

import body
import numpy as np
import pytest

from medsynth.core.volume import Volume
from medsynth.scans import inplane, planes

FULL = slice(0, None)


def scan(shape: tuple[int, int, int] = (10, 8, 3), spacing_mm: tuple[float, float, float] = (1.0, 1.0, 4.0)) -> Volume:
    rng = np.random.default_rng(0)
    array = rng.uniform(-1000, 1000, shape).astype(np.float32)
    return Volume(array=array, affine_ras=body.affine_ras(spacing_mm, shape))


@pytest.mark.parametrize("shape", [(10, 8, 3), (11, 7, 3), (1, 9, 2)])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_whole_voxels_and_parts_of_voxels_come_back_exactly(shape: tuple[int, int, int], parts: int) -> None:
    given = scan(shape)
    grid = inplane.square_grid(given, 1 / parts, 16)
    image = inplane.onto(given, grid, FULL)
    assert image.shape == (shape[2], grid.size, grid.size)
    assert grid.size % 16 == 0
    assert np.allclose(inplane.off(image, grid, given), given.array, atol=2e-3)


def test_binned_voxels_are_means() -> None:
    given = scan((32, 32, 2))
    grid = inplane.square_grid(given, 2.0, 16)
    image = inplane.onto(given, grid, FULL)
    binned = given.array.reshape(16, 2, 16, 2, 2).mean((1, 3))
    assert np.allclose(image, binned.T[:, ::-1, ::-1], atol=2e-3)


def test_coming_back_to_finer_voxels_keeps_the_means_of_smooth_images() -> None:
    x, y = np.meshgrid(np.linspace(-3, 3, 32), np.linspace(-3, 3, 32), indexing="ij")
    array = (900 * np.exp(-(x**2) - (y - 0.5) ** 2) - 1000).astype(np.float32)[:, :, None]
    given = Volume(array=array, affine_ras=body.affine_ras((1.0, 1.0, 2.0), (32, 32, 1)))
    grid = inplane.square_grid(given, 2.0, 16)
    image = inplane.onto(given, grid, FULL)
    back = given.with_array(inplane.off(image, grid, given))
    blocks = image[0, ::-1, ::-1].T.repeat(2, axis=0).repeat(2, axis=1)[:, :, None]
    assert np.abs(back.array - array).mean() < 0.1 * np.abs(blocks - array).mean()
    assert np.abs(inplane.onto(back, grid, FULL) - image).mean() < 0.3


def test_no_value_is_invented_at_an_edge() -> None:
    given = body.volume(shape=(48, 40, 2))
    grid = inplane.square_grid(given, 3.0, 16)
    back = inplane.off(inplane.onto(given, grid, FULL), grid, given)
    assert back.min() >= given.array.min()
    assert back.max() <= given.array.max()


@pytest.mark.parametrize("edge", range(10, 15))
@pytest.mark.parametrize("axis", [0, 1])
def test_a_voxel_of_many_pixels_is_their_mean_at_an_edge_too(axis: int, edge: int) -> None:
    """Air and water on pixels of .8 mm, in voxels of five pixels across one axis."""
    steps, shape = ((4.0, 0.8, 3.0), (8, 40, 1)) if axis == 0 else ((0.8, 4.0, 3.0), (40, 8, 1))
    given = Volume(array=np.zeros(shape, dtype=np.float32), affine_ras=body.affine_ras(steps, shape))
    grid = inplane.square_grid(given, 0.8, 2)
    assert grid.size == 40
    pixels = np.full((40, 40), -1000.0, dtype=np.float32)  # [x y] in RAS+
    pixels[(slice(edge, None), slice(None)) if axis == 0 else (slice(None), slice(edge, None))] = 0
    back = inplane.off(np.ascontiguousarray(pixels.T[None, ::-1, ::-1]), grid, given)[:, :, 0]
    means = pixels.reshape(8, 5, 40).mean(1) if axis == 0 else pixels.reshape(40, 8, 5).mean(2)
    assert np.allclose(back, means, atol=0.01)


def test_the_finer_grid_lies_where_the_coarser_one_does() -> None:
    given = scan((12, 12, 2))
    grid = inplane.square_grid(given, 1.5, 16)
    fine = inplane.onto(given, grid, FULL, finer=2)
    means = fine.reshape(2, grid.size, 2, grid.size, 2).mean((2, 4))
    assert np.allclose(means, inplane.onto(given, grid, FULL), atol=1e-2)


def test_slices_are_in_lps_and_some_of_them_can_be_had() -> None:
    given = body.volume()
    grid = inplane.square_grid(given, 1.5, 16)
    image = inplane.onto(given, grid, slice(2, 4))
    assert image.shape[0] == 2
    across = np.flatnonzero((image[0] < -700)[20:28].any(axis=0) & (image[0] > -950)[20:28].any(axis=0))
    lung = np.argwhere((image[0] > -850) & (image[0] < -750)).mean(0)
    assert across.size
    assert lung[1] < grid.size / 2  # x grows to the left: the right lung comes first
    bone = np.argwhere(image[0] > 500).mean(0)
    assert bone[0] > grid.size / 2  # y grows to the back


def test_a_shear_in_the_plane_is_resampled() -> None:
    affine = body.affine_ras()
    affine[:3, 1] += 0.1 * affine[:3, 0]
    given = body.volume(affine)
    grid = inplane.square_grid(given, 1.5, 16)
    back = inplane.off(inplane.onto(given, grid, FULL), grid, given)
    assert np.corrcoef(back.ravel(), given.array.ravel())[0, 1] > 0.98


def test_the_affine_of_the_grid_says_where_its_pixels_lie() -> None:
    given = scan((11, 8, 3), (1.0, 1.0, 4.0))
    grid = inplane.square_grid(given, 1.0, 16)
    middle = grid.affine_ras @ [(grid.size - 1) / 2, (grid.size - 1) / 2, 2, 1]
    assert np.allclose(middle, given.affine_ras @ [11 // 2 - 0.5, 8 // 2 - 0.5, 2, 1])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_the_order_of_a_scans_own_axes_comes_back(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.diag(np.array(signs) * (1.0, 2.0, 3.0))[:, order]
    given = Volume(array=np.random.default_rng(0).random((4, 5, 6), dtype=np.float32), affine_ras=affine)
    assert np.array_equal(inplane.as_stored(planes.nearest_ras(given).array, given), given.array)
