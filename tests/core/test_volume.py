"""Geometry of a volume: spacing, and when two grids are the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.core.volume import Volume, grid_distance_mm, same_grid

spacings = st.tuples(*[st.floats(0.1, 10)] * 3)
angles = st.tuples(*[st.floats(-np.pi, np.pi)] * 3)


@settings(deadline=None)
@given(spacings, angles)
def test_spacing_does_not_depend_on_how_the_scan_is_turned(
    spacing_mm: tuple[float, float, float], turn: tuple[float, float, float]
) -> None:
    volume = _volume(_rotation(turn) @ np.diag(spacing_mm))
    assert volume.spacing_mm == pytest.approx(spacing_mm)


def test_mirrored_axes_have_positive_spacing() -> None:
    assert _volume(np.diag([-2.0, -1.0, 3.0])).spacing_mm == (2, 1, 3)


def test_other_voxels_keep_the_grid_and_the_origin() -> None:
    volume = _volume(np.eye(3))
    other = volume.with_array(volume.array + 1)
    assert other.affine_ras is volume.affine_ras
    assert other.origin is volume.origin
    assert (other.array - volume.array == 1).all()


def test_voxels_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4, 5\)"):
        _volume(np.eye(3)).with_array(np.zeros((5, 4, 3), dtype=np.float32))


@settings(deadline=None)
@given(st.floats(-50, 50), st.integers(0, 2))
def test_a_shift_is_a_distance_and_makes_another_grid(shift_mm: float, axis: int) -> None:
    volume = _volume(np.diag([1.0, 2.0, 3.0]))
    shifted = _volume(np.diag([1.0, 2.0, 3.0]), origin_mm=shift_mm * np.eye(3)[axis])
    assert grid_distance_mm(volume, shifted) == pytest.approx(abs(shift_mm))
    assert same_grid(volume, shifted, tolerance_mm=0.5) == (abs(shift_mm) <= 0.5)


def test_a_wrong_spacing_shows_at_the_far_corner() -> None:
    """1 % on an axis of five voxels of 1 mm is .04 mm at its end."""
    volume, stretched = _volume(np.eye(3)), _volume(np.diag([1.0, 1.0, 1.01]))
    assert grid_distance_mm(volume, stretched) == pytest.approx(0.04)
    assert not same_grid(volume, stretched)


def test_a_mirrored_grid_is_not_the_same_though_it_covers_the_same_room() -> None:
    mirrored = _volume(np.diag([-1.0, 1.0, 1.0]), origin_mm=np.array([2.0, 0, 0]))
    assert not same_grid(_volume(np.eye(3)), mirrored)


def test_grids_of_different_shape_differ() -> None:
    longer = Volume(array=np.zeros((3, 4, 6), dtype=np.float32), affine_ras=np.eye(4))
    assert not same_grid(_volume(np.eye(3)), longer)


def _volume(directions: np.ndarray, origin_mm: np.ndarray | None = None) -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = directions
    affine[:3, 3] = 0 if origin_mm is None else origin_mm
    return Volume(array=np.arange(60, dtype=np.float32).reshape(3, 4, 5), affine_ras=affine)


def _rotation(turn: tuple[float, float, float]) -> np.ndarray:
    turned = np.eye(3)
    for axis, angle in enumerate(turn):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[[i, j], [i, j]] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        turned = turned @ step
    return turned
