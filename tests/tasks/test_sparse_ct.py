"""The rules of `sparse-ct`: its grid, which scans it refuses, what it warns of."""

from dataclasses import replace

import body
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medsynth.core.errors import ScanError
from medsynth.core.volume import Volume
from medsynth.physics.geometry import fan, parallel
from medsynth.tasks import sparse_ct
from medsynth.tasks.sparse_ct import TASK, image_of_view, insist_projectable, plane_grid, warn_of_pixels, warn_of_views

GEOMETRY = fan(24, detectors=64, pitch_mm=3.0)


def insist(scan: Volume, *, force: bool = False, detectors: int = 64) -> tuple[str, ...]:
    return insist_projectable(scan, fan(24, detectors=detectors, pitch_mm=3.0), force=force)


def refusal(scan: Volume, *, detectors: int = 64) -> ScanError:
    with pytest.raises(ScanError) as caught:
        insist(scan, detectors=detectors)
    assert "--force" in caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "size", "pixel_mm"),
    [
        ((512, 512, 20), 0.78125, 256, 1.5625),
        ((352, 300, 9), 1.4, 352, 1.4),
        ((353, 300, 9), 1.0, 192, 2.0),
        ((1024, 1024, 9), 0.4, 352, 1.2),
        ((122, 101, 9), 3.0, 256, 1.5),
        ((237, 199, 9), 1.5, 240, 1.5),
        ((512, 512, 9), 1.03, 256, 2.06),
        ((360, 360, 9), 1.2, 192, 2.4),
        ((360, 360, 9), 1.25, 368, 1.25),
        ((5, 3, 1), 1.0, 16, 1.0),
    ],
)
def test_pixels_are_binned_or_divided_voxels(shape: tuple[int, int, int], spacing_mm: float, size: int, pixel_mm: float) -> None:
    grid = plane_grid(shape, body.affine_ras((spacing_mm, spacing_mm, 3.0), shape))
    assert (grid.size, grid.pixel_mm) == (size, pytest.approx(pixel_mm))


def test_of_two_spacings_the_finer_one_counts() -> None:
    assert plane_grid((100, 60, 4), body.affine_ras((1.0, 1.7, 3.0), (100, 60, 4))).pixel_mm == pytest.approx(1.0)


def test_the_grid_does_not_depend_on_the_order_of_the_axes() -> None:
    shape, affine = (40, 48, 6), body.affine_ras((1.5, 1.5, 3.0), (40, 48, 6))
    turned = affine[:, [2, 0, 1, 3]]
    assert np.allclose(plane_grid((6, 40, 48), turned).affine_ras, plane_grid(shape, affine).affine_ras)


def test_a_body_in_view_is_projected_without_a_word() -> None:
    assert insist(body.volume()) == ()


def test_no_ct_is_refused_by_its_header_or_its_values() -> None:
    mr = body.volume()
    by_header = replace(mr, origin=replace(mr.origin, modality="MR"))
    by_values = mr.with_array(mr.array + 1000)
    for scan in (by_header, by_values, mr.with_array(np.full_like(mr.array, -1000))):
        assert refusal(scan).code == "E-MODALITY"
    assert "this is MR" in insist(by_header, force=True)[0]


def test_a_patient_outside_the_field_of_view_is_named_with_side_slices_and_mm() -> None:
    array = np.full(body.SHAPE, -1000.0, dtype=np.float32)
    array[:30, 6:34, 2:] = 40  # to the patient's left
    scan = body.volume().with_array(array)
    error = refusal(scan, detectors=36)
    assert error.code == "E-FOV"
    for words in ("left", "slices 2 to 5 of 6", "mm of the object", "field of view of 59 mm"):
        assert words in error.cause
    assert error.cause in insist(scan, force=True, detectors=36)


def test_the_remedy_for_truncation_is_a_detector_that_sees_it_all() -> None:
    array = np.full(body.SHAPE, -1000.0, dtype=np.float32)
    array[:30, 6:34] = 40
    scan = body.volume().with_array(array)
    remedy = refusal(scan, detectors=36).remedy
    cells = int(remedy.split("--geometry with ")[1].split()[0])
    assert insist(scan, detectors=cells) == insist(scan, detectors=200)
    assert refusal(scan, detectors=cells - 4).code == "E-FOV"


def test_a_table_outside_the_field_of_view_is_only_a_warning() -> None:
    array = body.ct_hu()
    array[:, 1:3] = 200
    (warning,) = insist(body.volume().with_array(array), detectors=44)[:1]
    assert "a table" in warning
    assert "back" not in warning.split("(")[0]


@pytest.mark.parametrize(("value", "words"), [(-3024.0, "-3024 HU, below any tissue"), (9000.0, "9000 HU are projected as they are")])
def test_values_beyond_hu_are_named(value: float, words: str) -> None:
    array = body.ct_hu()
    array[20, 20, 3] = value
    assert words in " ".join(insist(body.volume().with_array(array)))


def test_an_object_at_the_edge_of_the_scans_own_image_is_named_with_the_side() -> None:
    array = body.ct_hu()
    array[-1, 10:30] = 0
    assert any("own image (right)" in text for text in insist(body.volume().with_array(array)))


def test_oblique_planes_are_named() -> None:
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("x", 12, degrees=True).as_matrix()
    assert any("tilted by 12 degrees" in text for text in insist(body.volume(turn @ body.affine_ras())))


def test_few_views_are_warned_of() -> None:
    assert "1 cm" in warn_of_views(18)[0]
    assert "invented" in warn_of_views(29)[0]
    assert "sulci" in warn_of_views(36)[0]
    assert warn_of_views(60) == warn_of_views(72) == ()


def test_pixels_far_from_those_that_models_learn_from_are_warned_of() -> None:
    assert "pixels of 0.82 mm" in warn_of_pixels(0.82)[0]
    assert "pixels of 2.06 mm" in warn_of_pixels(2.06)[0]
    assert warn_of_pixels(0.9) == warn_of_pixels(1.4) == warn_of_pixels(1.8) == ()


@pytest.mark.parametrize("geometry", [fan(18), parallel(18), fan(18, detectors=64, pitch_mm=3.0)])
def test_without_an_image_the_field_of_view_is_filled(geometry: object) -> None:
    shape, affine = image_of_view(geometry, 3)  # type: ignore[arg-type]
    grid = plane_grid(shape, affine)
    assert grid.size * grid.pixel_mm > geometry.field_of_view_mm - 0.01  # type: ignore[attr-defined]
    assert grid.pixel_mm == pytest.approx(affine[0, 0])
    assert shape[2] == 3


def test_it_maps_no_volume_to_a_volume() -> None:
    assert TASK.learns_from == "projections"
    with pytest.raises(TypeError, match="verb of its own"):
        TASK.prepare(body.volume(), None, False)


def test_an_empty_grid_takes_no_memory() -> None:
    assert sparse_ct.empty((512, 512, 4000), np.eye(4)).array.strides == (0, 0, 0)
