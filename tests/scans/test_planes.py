"""Planes: left is left, up is up, and positions hold, however a scan is stored."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from medsynth.core.errors import UsageError
from medsynth.core.volume import Volume
from medsynth.scans import folder, planes

SPACING = np.array([2.0, 1.5, 3.0])
SHAPE = (40, 52, 30)
ORIGIN = np.array([-37.0, -60.0, 100.0])


def phantom() -> Volume:
    """In RAS+: a body of 1, and in it a 5 to the right, a 7 in front, a 9 at the top, all through the middle."""
    array = np.zeros(SHAPE, dtype=np.float32)
    array[5:35, 6:46, 5:25] = 1
    array[28:33, 24:28, 13:17] = 5
    array[18:22, 38:44, 13:17] = 7
    array[18:22, 24:28, 20:24] = 9
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = ORIGIN
    return Volume(array=array, affine_ras=affine)


def stored(volume: Volume, order: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """The same voxels at the same places, with the axes of the array in another order and running the other way."""
    array = volume.array.transpose(order)
    affine = volume.affine_ras.copy()
    affine[:, :3] = affine[:, list(order)]
    for axis, flip in enumerate(flips):
        if flip:
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
            array = np.flip(array, axis)
    return Volume(array=np.ascontiguousarray(array), affine_ras=affine)


def views(volume: Volume, at_mm: planes.Point | None = None) -> tuple[Volume, tuple[planes.Plane, ...]]:
    turned = planes.nearest_ras(volume)
    return turned, planes.through(turned, planes.coarse(turned.array) > 0, at_mm)


def middle(mask: np.ndarray) -> tuple[float, float]:
    """Of the marked pixels: 0 to 1 from the top, 0 to 1 from the left."""
    down, across = np.argwhere(mask).mean(0) / (np.array(mask.shape) - 1)
    return float(down), float(across)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_every_storage_order_shows_right_on_the_left_front_and_head_at_the_top(order: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    scan, (axial, coronal, sagittal) = views(stored(phantom(), order, flips))
    for plane, lefts, tops in ((axial, 5, 7), (coronal, 5, 9), (sagittal, 7, 9)):
        pixels = planes.cut(scan, plane)
        assert middle(pixels == lefts)[1] < 0.3, plane.name
        assert middle(pixels == lefts)[0] == pytest.approx(0.5, abs=0.07), plane.name
        assert middle(pixels == tops)[0] < 0.35, plane.name
        assert middle(pixels == tops)[1] == pytest.approx(0.5, abs=0.07), plane.name
    assert axial.letters == ("R", "L", "A", "P")
    assert coronal.letters == ("R", "L", "S", "I")
    assert sagittal.letters == ("A", "P", "S", "I")
    assert (axial.spacing_mm, coronal.spacing_mm, sagittal.spacing_mm) == ((1.5, 2.0), (3.0, 2.0), (3.0, 1.5))


@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_a_point_in_mm_picks_the_same_slices_in_every_storage_order(flips: tuple[bool, ...]) -> None:
    at_mm = (ORIGIN[0] + 30 * 2.0 + 0.3, ORIGIN[1] + 26 * 1.5, ORIGIN[2] + 15 * 3.0 - 1.0)
    scan, (axial, coronal, sagittal) = views(stored(phantom(), (2, 0, 1), flips), at_mm)
    assert [plane.index for plane in (sagittal, coronal, axial)] == [30, 26, 15]
    assert [plane.position_mm for plane in (sagittal, coronal, axial)] == pytest.approx([23.0, -21.0, 145.0])
    assert (planes.cut(scan, sagittal) == 5).any()
    assert axial.where == ("z = 145.0 mm",)


def test_an_oblique_scan_says_how_far_it_is_tilted_and_names_both_directions() -> None:
    angle = np.deg2rad(30)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = phantom()
    _, (axial, coronal, sagittal) = views(Volume(array=volume.array, affine_ras=turn @ volume.affine_ras))
    assert axial.letters == ("R", "L", "AS", "PI")
    assert coronal.letters == ("R", "L", "SP", "IA")
    assert [plane.tilt_degrees for plane in (axial, coronal, sagittal)] == pytest.approx([30, 30, 0], abs=1e-4)
    assert "tilted 30°" in axial.where


def test_a_small_tilt_keeps_single_letters() -> None:
    angle = np.deg2rad(10)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = phantom()
    _, (axial, _, sagittal) = views(Volume(array=volume.array, affine_ras=turn @ volume.affine_ras))
    assert axial.letters == ("R", "L", "A", "P")
    assert sagittal.tilt_degrees == pytest.approx(10, abs=1e-4)


def test_planes_go_through_the_middle_of_the_body_and_keep_a_margin_around_it() -> None:
    _, (axial, coronal, sagittal) = views(phantom())
    assert abs(sagittal.index - 19.5) <= 1
    assert abs(coronal.index - 25.5) <= 1
    assert abs(axial.index - 14.5) <= 1
    across, down = axial.box[0], axial.box[1]
    assert (across.start, across.stop, down.start, down.stop) == (1, 39, 1, 51)


def test_specks_far_from_the_body_do_not_widen_the_picture() -> None:
    volume = phantom()
    wide = np.pad(volume.array, ((0, 0), (0, 60), (0, 0)))
    wide[20, 100, 15] = 1
    _, (axial, _, _) = views(Volume(array=wide, affine_ras=volume.affine_ras))
    assert axial.box[1].stop < 60


def test_an_empty_scan_is_shown_whole() -> None:
    _, (axial, _, _) = views(phantom().with_array(np.zeros(SHAPE, dtype=np.float32)))
    assert axial.box == (slice(0, 40), slice(0, 52), slice(0, 30))


def test_a_point_outside_the_scan_is_refused_with_the_scan_s_reach() -> None:
    with pytest.raises(UsageError) as caught:
        views(phantom(), (0.0, 0.0, 0.0))
    assert caught.value.code == "E-AT"
    assert "x -37 to 41, y -60 to 16, z 100 to 187" in caught.value.remedy


def test_turning_a_scan_copies_no_voxels() -> None:
    volume = stored(phantom(), (2, 0, 1), (True, False, True))
    assert np.shares_memory(planes.nearest_ras(volume).array, volume.array)


def test_a_real_patient_s_liver_is_on_the_left_of_the_picture_and_the_left_kidney_on_the_right(shared_data: Path) -> None:
    path = shared_data / "ct" / "totalseg_abdomenpelvis_3mm_seg.nii.gz"
    (found,) = folder.find(path, choices=folder.Choices())
    labels = planes.nearest_ras(folder.read(found, choices=folder.Choices()))
    right_kidney, left_kidney, liver = 2, 3, 5
    at = labels.affine_ras @ [*np.argwhere(np.isin(labels.array, [right_kidney, left_kidney])).mean(0), 1.0]
    axial, coronal, _ = planes.through(labels, planes.coarse(labels.array) > 0, (float(at[0]), float(at[1]), float(at[2])))
    for plane in (axial, coronal):
        pixels = planes.cut(labels, plane)
        assert middle(pixels == right_kidney)[1] < 0.5 < middle(pixels == left_kidney)[1]
    coronal_pixels = planes.cut(labels, coronal)
    assert middle(coronal_pixels == liver)[0] < middle(coronal_pixels == right_kidney)[0]
