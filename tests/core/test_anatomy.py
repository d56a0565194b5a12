"""Parts of the body from a slice alone."""

import numpy as np
import pytest

from medsynth.core.anatomy import CHEST, HEAD, TRUNK, region_of

PIXEL_MM = 1.5


def section(width_mm: float, depth_mm: float, lungs: float = 0.0) -> np.ndarray:
    """An ellipse of tissue in air, with two ellipses of lung that are so large a part of its width."""
    y, x = np.mgrid[-128:128, -128:128] * PIXEL_MM
    slice_hu = np.where((x / width_mm * 2) ** 2 + (y / depth_mm * 2) ** 2 < 1, 40.0, -1000.0)
    for side in (-1, 1):
        inside = ((x - side * width_mm / 4.5) / (lungs * width_mm + 1e-6)) ** 2 + (y / (0.3 * depth_mm)) ** 2 < 1
        slice_hu[inside] = -850.0
    return slice_hu


@pytest.mark.parametrize(
    ("slice_hu", "region"),
    [
        (section(150, 190), HEAD),
        (section(340, 230), TRUNK),
        (section(340, 230, lungs=0.15), CHEST),
        (section(150, 190, lungs=0.08), HEAD),  # the airways of a face
        (np.full((64, 64), -1000.0), HEAD),
    ],
)
def test_size_and_lungs_tell_the_part(slice_hu: np.ndarray, region: int) -> None:
    assert region_of(slice_hu, PIXEL_MM) == region


def test_a_table_under_a_head_does_not_make_it_a_trunk() -> None:
    slice_hu = section(150, 190)
    slice_hu[200:202] = 0.0
    assert region_of(slice_hu, PIXEL_MM) == HEAD


def test_the_part_does_not_depend_on_the_size_of_the_pixels() -> None:
    fine = np.kron(section(340, 230, lungs=0.15), np.ones((3, 3)))
    assert region_of(fine, PIXEL_MM / 3) == CHEST
