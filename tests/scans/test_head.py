"""The head's outline in an MR, and whether its skull was removed: on a head drawn by formula, whole, cut by the view, and stripped."""

import numpy as np
import phantom
import pytest
from scipy import ndimage

from medsynth.core.quantity import MR
from medsynth.scans.head import is_stripped, outline

SPACING_MM = (2.0, 2.0, 2.0)
TRUE = phantom.head_mask(2.0)


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    return phantom.mr_head(2.0)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def beyond_mm(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Distances of the voxels that were found outside the true mask."""
    return np.asarray(ndimage.distance_transform_edt(~true, sampling=SPACING_MM))[found & ~true]


def judged_stripped(array: np.ndarray, region: np.ndarray) -> bool:
    return is_stripped(array, region, SPACING_MM, MR().fit(array).half_width)


def test_the_outline_is_the_head_with_a_margin_of_skin(head: np.ndarray) -> None:
    found = outline(head, SPACING_MM)
    assert dice(found, TRUE) > 0.92
    assert (found & TRUE).sum() > 0.99 * TRUE.sum()
    assert np.percentile(beyond_mm(found, TRUE), 95) <= 6
    assert beyond_mm(found, TRUE).max() <= 12  # in the corner between head and neck


def test_cavities_belong_to_the_head(head: np.ndarray) -> None:
    assert outline(head, SPACING_MM)[phantom.sinus_mask(2.0)].all()


def test_dark_skull_is_inside_though_nothing_bright_bridges_it(head: np.ndarray) -> None:
    """Above the skull's base scalp and brain are two bright components with a dark ring between them."""
    above = slice(55, None)
    found = outline(head[:, :, above], SPACING_MM)
    assert (found & TRUE[:, :, above]).sum() > 0.98 * TRUE[:, :, above].sum()


@pytest.mark.parametrize("cut", [np.s_[:, :, 40:], np.s_[:, :, :90], np.s_[30:], np.s_[:, :80], np.s_[:, 30:80, 10:]], ids=str)
def test_where_the_view_cuts_the_head_the_outline_goes_to_its_border(cut: tuple[slice, ...], head: np.ndarray) -> None:
    found, true = outline(head[cut], SPACING_MM), TRUE[cut]
    for axis in range(3):
        for k in (0, -1):
            face, wanted = np.take(found, k, axis), np.take(true, k, axis)
            assert (face & wanted).sum() >= 0.97 * wanted.sum()
    assert dice(found, true) > 0.92


def test_bright_specks_beside_the_head_do_not_belong_to_it(head: np.ndarray) -> None:
    marked = head.copy()
    marked[2:8, 2:8, 100:106] = 900.0
    assert not outline(marked, SPACING_MM)[:10, :10, 98:108].any()


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e5])
def test_the_outline_does_not_depend_on_the_scanners_gain(factor: float, head: np.ndarray) -> None:
    assert dice(outline(head * np.float32(factor), SPACING_MM), outline(head, SPACING_MM)) > 0.999


def test_the_outline_does_not_depend_on_a_constant_below_the_signal(head: np.ndarray) -> None:
    assert dice(outline(head + np.float32(300), SPACING_MM), outline(head, SPACING_MM)) > 0.99


@pytest.mark.parametrize("shape", [(31, 32, 33), (9, 40, 40), (1, 40, 40), (2, 2, 2)], ids=str)
def test_odd_and_thin_images_give_an_outline_of_their_shape(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype=np.float32)
    array[tuple(slice(n // 4, n - n // 4) for n in shape)] = 100.0
    assert outline(array, SPACING_MM).shape == shape


@pytest.mark.parametrize("value", [0.0, -3.5, 1000.0])
def test_nothing_bright_gives_an_empty_outline(value: float) -> None:
    assert not outline(np.full((20, 20, 20), value, dtype=np.float32), SPACING_MM).any()


def test_a_small_bright_thing_in_an_empty_view_is_outlined_alone() -> None:
    array = np.zeros((60, 60, 60), dtype=np.float32)
    array[20:30, 20:30, 20:30] = 100.0
    assert outline(array, SPACING_MM).sum() < 16**3


def test_a_whole_head_has_its_skull(head: np.ndarray) -> None:
    assert not judged_stripped(head, outline(head, SPACING_MM))


@pytest.mark.parametrize("cut", [np.s_[:, :, 55:], np.s_[48:], np.s_[:, 56:]], ids=str)
def test_a_head_that_the_view_cuts_is_not_taken_for_a_stripped_one(cut: tuple[slice, ...], head: np.ndarray) -> None:
    region = outline(head[cut], SPACING_MM)
    assert region.sum() * 8e-3 < 2500  # ml: small enough to be a brain
    assert not judged_stripped(head[cut], region)


def test_a_small_childs_head_is_not_taken_for_a_stripped_one(head: np.ndarray) -> None:
    small_mm = (1.6, 1.6, 1.6)
    region = outline(head, small_mm)
    assert region.sum() * 1.6**3 / 1000 < 2500
    assert not is_stripped(head, region, small_mm, MR().fit(head).half_width)


@pytest.mark.parametrize("margin", [None, 6, 1, 0], ids=["in its old view", "6 voxels of air", "1 voxel", "to its bounding box"])
def test_a_head_without_skull_is_recognised(margin: int | None) -> None:
    array = phantom.stripped(2.0)
    if margin is not None:
        at = np.argwhere(array > 0)
        low, high = np.maximum(at.min(0) - margin, 0), at.max(0) + 1 + margin
        array = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    assert judged_stripped(array, outline(array, SPACING_MM))
