"""Resampling to a card's grid and back: the scan's own grid exactly, values in the right place, no aliasing on the way down."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from medsynth.core.volume import Volume
from medsynth.scans import grid

SHAPE = (40, 36, 32)
DEEP = (slice(4, -4),) * 3  # beyond the reach of what lies outside
SMALL = (14, 12, 16)
CARD_MM = (2.0, 2.0, 2.0)
ORIGIN_MM = (-31.5, 12.25, 7.0)


def affine(*, spacing_mm: tuple[float, ...] = (1.0, 1.2, 1.5), turn: tuple[float, ...] = (0, 0, 0), shear: float = 0.0) -> np.ndarray:
    """Columns of spacing_mm, turned by Euler angles in degrees; shear moves each slice along x, as a gantry tilt does."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.diag(spacing_mm)
    matrix[:3, 2] += shear * matrix[:3, 0]
    matrix[:3, 3] = ORIGIN_MM
    return matrix


def permuted(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """The plain grid with its axes in another order and direction."""
    matrix = affine()
    matrix[:3, :3] = matrix[:3, list(order)] * signs
    return matrix


GRIDS = {
    "RAS": affine(),
    "LPS": permuted((0, 1, 2), (-1, -1, 1)),
    "sagittal": permuted((1, 2, 0), (1, 1, 1)),
    "coronal, feet first": permuted((0, 2, 1), (-1, -1, 1)),
    "mirrored": permuted((0, 1, 2), (-1, 1, 1)),
    "oblique": affine(turn=(12, -7, 20)),
    "sheared": affine(shear=0.3),
    "oblique, sheared and mirrored": affine(turn=(35, 5, -10), shear=-0.2) @ np.diag([-1.0, 1, 1, 1]),
    "thick slices": affine(spacing_mm=(0.6, 0.6, 5.0)),
    "coarser than the card": affine(spacing_mm=(3.0, 3.5, 4.0)),
}
every_grid = pytest.mark.parametrize("matrix", [pytest.param(matrix, id=name) for name, matrix in GRIDS.items()])


def places_mm(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[3 x y z]: where each voxel lies."""
    return np.tensordot(matrix[:3, :3], np.indices(shape), 1) + matrix[:3, 3].reshape(3, 1, 1, 1)


def ramp(matrix: np.ndarray, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A value that rises linearly through the room."""
    x, y, z = places_mm(matrix, shape)
    return (3 * x - 2 * y + 0.5 * z + 40).astype(np.float32)


def smooth(matrix: np.ndarray, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """HU-like waves with a period of 25 mm, far above the spacing of the grids."""
    x, y, z = places_mm(matrix, shape)
    return (500 * np.sin(2 * np.pi * x / 25) * np.cos(2 * np.pi * y / 25) + 200 * np.sin(2 * np.pi * z / 25)).astype(np.float32)


def scan(array: np.ndarray, matrix: np.ndarray) -> Volume:
    return Volume(array=array.astype(np.float32), affine_ras=matrix)


def inside(
    matrix: np.ndarray, other: np.ndarray, other_shape: tuple[int, ...], shape: tuple[int, ...] = SHAPE, margin: float = 2.0
) -> np.ndarray:
    """bool: which voxels of `matrix` lie at least `margin` voxels inside the other grid."""
    where = np.linalg.solve(other[:3, :3], (places_mm(matrix, shape) - other[:3, 3].reshape(3, 1, 1, 1)).reshape(3, -1)).reshape(3, *shape)
    last = np.array(other_shape).reshape(3, 1, 1, 1) - 1 - margin
    return np.all((where >= margin) & (where <= last), axis=0)


@every_grid
def test_back_gives_the_scans_own_grid_exactly(matrix: np.ndarray) -> None:
    original = scan(smooth(matrix), matrix)
    on_card = grid.to_card(original, CARD_MM)
    returned = grid.back(on_card.array, on_card.affine_ras, original, outside=-1000.0)
    assert returned.shape == original.shape
    assert np.array_equal(returned.affine_ras, matrix)
    assert returned.origin is original.origin


@every_grid
def test_the_card_grid_runs_along_the_patients_axes_at_the_cards_spacing(matrix: np.ndarray) -> None:
    on_card = grid.to_card(scan(ramp(matrix), matrix), CARD_MM)
    assert np.array_equal(on_card.affine_ras[:3, :3], np.diag(CARD_MM))
    assert on_card.array.dtype == np.float32


@every_grid
def test_a_linear_ramp_is_exact_on_the_card_grid(matrix: np.ndarray) -> None:
    on_card = grid.to_card(scan(ramp(matrix), matrix), CARD_MM)
    expected = ramp(on_card.affine_ras, on_card.shape)
    # Smoothing mirrors at the border: six voxels are beyond its reach for these ratios, where the grid is large enough.
    deep = inside(on_card.affine_ras, matrix, SHAPE, on_card.shape, margin=6.0)
    assert deep.sum() > 20
    assert np.abs(on_card.array - expected)[deep].max() < 0.02


@every_grid
def test_a_linear_ramp_on_the_card_grid_is_exact_on_the_scan(matrix: np.ndarray) -> None:
    original = scan(ramp(matrix), matrix)
    on_card = grid.to_card(original, CARD_MM)
    returned = grid.back(ramp(on_card.affine_ras, on_card.shape), on_card.affine_ras, original, outside=0.0)
    assert np.abs(returned.array - original.array)[DEEP].max() < 0.5  # of 3 a mm: what a spline's edge still shifts there


@every_grid
def test_a_smooth_field_survives_there_and_back(matrix: np.ndarray) -> None:
    original = scan(smooth(matrix), matrix)
    on_card = grid.to_card(original, CARD_MM)
    returned = grid.back(on_card.array, on_card.affine_ras, original, outside=0.0)
    error = np.abs(returned.array - original.array)[DEEP]
    assert error.mean() < 45  # of an amplitude of 700: the price of a grid of 2 mm, most with slices of 5 mm
    assert error.max() < 150
    assert np.corrcoef(returned.array[DEEP].ravel(), original.array[DEEP].ravel())[0, 1] > 0.995


@pytest.mark.parametrize("name", ["RAS", "LPS", "sagittal", "coronal, feet first", "mirrored", "thick slices"])
@pytest.mark.parametrize("spacing_mm", [1.5, 2.0, 2.7])
def test_a_constant_stays_constant_to_the_scans_last_voxel(name: str, spacing_mm: float) -> None:
    """A view that cuts the neck must not get a dark plane there, nor its CT one of air."""
    array = np.full(SHAPE, 7.0)
    array[18:20, 16:18, 14:16] = -500.0  # the lowest value, which is what lies outside
    original = scan(array, GRIDS[name])
    on_card = grid.to_card(original, (spacing_mm,) * 3)
    faces = [np.take(on_card.array, k, axis) for axis in range(3) for k in (0, -1)]
    assert max(np.abs(face - 7.0).max() for face in faces) < 0.01
    returned = grid.back(np.full(on_card.shape, 7.0, dtype=np.float32), on_card.affine_ras, original, outside=-1000.0)
    assert np.abs(returned.array - 7.0).max() < 1e-4


def test_outside_the_scan_the_card_grid_holds_its_lowest_value() -> None:
    matrix = affine(turn=(0, 0, 45))
    on_card = grid.to_card(scan(90.0 - np.indices(SHAPE)[0], matrix), CARD_MM)
    assert on_card.array[0, 0, 0] == 90 - (SHAPE[0] - 1)


def test_outside_the_card_grid_the_scan_gets_the_outside_value() -> None:
    original = scan(np.zeros(SHAPE), affine())
    small = affine(spacing_mm=CARD_MM)
    returned = grid.back(np.zeros((3, 3, 3), dtype=np.float32), small, original, outside=-1000.0)
    assert returned.array[0, 0, 0] == 0.0
    assert returned.array[-1, -1, -1] == -1000.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_fine_stripes_become_their_mean_on_a_coarser_grid(axis: int) -> None:
    """Taking every second voxel would give one of the two values."""
    stripes = np.where(np.indices((40, 40, 40))[axis] % 2, 100.0, 0.0)
    on_card = grid.to_card(scan(stripes, np.eye(4)), (3.1, 3.1, 3.1))
    middle = on_card.array[3:-3, 3:-3, 3:-3]
    assert np.abs(middle - 50).max() < 3


def test_a_checkerboard_becomes_its_mean_on_a_coarser_oblique_grid() -> None:
    board = np.where(np.indices((40, 40, 40)).sum(0) % 2, 100.0, 0.0)
    on_card = grid.to_card(scan(board, affine(spacing_mm=(1, 1, 1), turn=(20, 10, 30))), (3.0, 3.0, 3.0))
    deep = inside(on_card.affine_ras, affine(spacing_mm=(1, 1, 1), turn=(20, 10, 30)), (40, 40, 40), on_card.shape, margin=5.0)
    assert np.abs(on_card.array[deep] - 50).max() < 3


def test_a_finer_grid_is_not_smoothed() -> None:
    single = np.zeros((9, 9, 9))
    single[4, 4, 4] = 100.0
    on_card = grid.to_card(scan(single, np.diag([2.0, 2, 2, 1])), (1.0, 1.0, 1.0))
    assert on_card.array.max() == 100.0


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness_mm", [1.0, 5.0])
def test_grids_of_one_voxel_go_there_and_back(axis: int, thickness_mm: float) -> None:
    shape, spacing_mm = [20, 20, 20], [1.0, 1.0, 1.0]
    shape[axis], spacing_mm[axis] = 1, thickness_mm
    original = scan(np.full(shape, 30.0), affine(spacing_mm=tuple(spacing_mm)))
    on_card = grid.to_card(original, CARD_MM)
    returned = grid.back(on_card.array, on_card.affine_ras, original, outside=0.0)
    assert on_card.shape[axis] == 1
    assert np.abs(returned.array - 30).max() < 1e-3


def test_masks_stay_binary_and_in_their_place_on_another_grid() -> None:
    mask = np.zeros((30, 30, 30))
    mask[10:20, 5:25, 8:16] = 3.0  # any label counts
    like = scan(np.zeros((15, 15, 15)), np.diag([2.0, 2, 2, 1]))
    moved = grid.mask_to(scan(mask, np.eye(4)), like)
    assert moved.dtype == np.bool_
    assert moved.shape == like.shape
    x, y, z = places_mm(like.affine_ras, like.shape)
    assert np.array_equal(moved, (x >= 10) & (x < 20) & (y >= 5) & (y < 25) & (z >= 8) & (z < 16))


def test_a_mask_is_empty_beyond_its_own_grid() -> None:
    like = scan(np.zeros((12, 12, 12)), np.eye(4))
    moved = grid.mask_to(scan(np.ones((5, 5, 5)), np.eye(4)), like)
    assert moved[:5, :5, :5].all()
    assert moved.sum() == 125


angles = st.tuples(*[st.floats(-180, 180) for _ in range(3)])
steps_mm = st.tuples(*[st.floats(0.5, 4) for _ in range(3)])


@settings(max_examples=15, deadline=None)
@given(turn=angles, spacing_mm=steps_mm, shear=st.floats(-0.4, 0.4), mirrored=st.booleans(), card_mm=st.floats(1, 4))
def test_any_grid_is_covered_and_comes_back_exactly_with_what_it_shows(
    turn: tuple[float, ...], spacing_mm: tuple[float, ...], shear: float, mirrored: bool, card_mm: float
) -> None:
    matrix = affine(turn=turn, spacing_mm=spacing_mm, shear=shear) @ np.diag([-1.0 if mirrored else 1.0, 1, 1, 1])
    original = scan(ramp(matrix, SMALL), matrix)
    on_card = grid.to_card(original, (card_mm, card_mm, card_mm))
    returned = grid.back(ramp(on_card.affine_ras, on_card.shape), on_card.affine_ras, original, outside=0.0)
    assert returned.shape == SMALL
    assert np.array_equal(returned.affine_ras, matrix)
    assert inside(matrix, on_card.affine_ras, on_card.shape, SMALL, margin=-0.496).all()
    coarser = np.linalg.norm(np.linalg.solve(on_card.affine_ras, matrix)[:3, :3], axis=1).max()
    deep = inside(matrix, on_card.affine_ras, on_card.shape, SMALL, margin=4.0 * max(1.0, float(coarser)))
    assert np.abs(returned.array - original.array)[deep].max(initial=0.0) < 1e-3 * np.ptp(original.array)
