"""What a cone-beam scan sees, the grid that fills it, and the scans that FDK cannot take; all without RTK."""

from typing import Any

import numpy as np
import pytest

from medsynth.core.errors import MedsynthError
from medsynth.physics.cone import MOST_VOXELS, ConeBeam, Detector, centred_detector, grid_of_view, in_view, insist_possible

DETECTOR = centred_detector((101, 51), (2.0, 2.0))
TURN = tuple(3.0 * view for view in range(120))
SHORT = tuple(2.0 * view for view in range(101))


def beam(**changes: Any) -> ConeBeam:
    """A full turn of DETECTOR, twice as far from the source as the isocentre."""
    values: dict[str, Any] = {
        "angles_deg": TURN,
        "source_to_isocentre_mm": 500.0,
        "source_to_detector_mm": 1000.0,
        "across_mm": (-50.0, 50.0),
        "along_mm": (-25.0, 25.0),
    }
    return ConeBeam(**(values | changes))


def test_the_volume_fills_the_field_of_view_with_voxels_of_the_pitch_at_the_isocentre() -> None:
    grid, scan = grid_of_view(beam(), DETECTOR), beam()
    assert grid.spacing_mm == (1.0, 1.0, 1.0)
    assert 2 * scan.radius_mm == pytest.approx(99.5, abs=0.1)
    assert grid.shape == (100, 50, 100)
    assert [first + last for first, *_, last in grid.axes_mm] == pytest.approx([0, 0, 0])


def test_the_volume_follows_a_detector_that_is_shifted_along_the_axis() -> None:
    assert np.mean(grid_of_view(beam(along_mm=(-5.0, 45.0)), DETECTOR).axes_mm[1]) == pytest.approx(20)


def test_a_fine_detector_gives_no_more_voxels_than_are_sane() -> None:
    fine = centred_detector((2001, 1001), (0.1, 0.1))
    grid = grid_of_view(beam(), fine)
    assert max(grid.shape) == MOST_VOXELS
    assert len(set(grid.spacing_mm)) == 1


def test_a_displaced_detector_sees_up_to_its_farther_end() -> None:
    assert beam(across_mm=(-10.0, 50.0)).radius_mm == beam().radius_mm
    assert beam(across_mm=(-48.0, 50.0)).radius_mm < beam().radius_mm


def test_voxels_at_the_ends_of_the_cone_are_out_of_view_away_from_the_axis() -> None:
    grid = grid_of_view(beam(), DETECTOR)
    seen = in_view(beam(), grid)
    (x, y, z), middle = grid.axes_mm, seen.shape[0] // 2
    assert seen[middle, 0, middle]
    assert not seen[0, 0, middle]
    assert not seen[0, 25, 0]
    assert seen[0, 25, middle]
    for i, j, k in ((10, 1, 50), (30, 0, 60), (50, 3, 9)):
        nearest = 500 - np.hypot(x[i], z[k])  # from the source, in the view that is closest
        assert seen[i, j, k] == (abs(y[j]) / nearest * 500 <= 25)


def test_the_head_of_a_patient_on_the_back_is_up_and_the_front_is_front() -> None:
    affine = grid_of_view(beam(), DETECTOR).affine_ras
    assert np.linalg.det(affine[:3, :3]) == pytest.approx(1)  # no mirror image
    assert (affine[:3, :3] @ [1, 0, 0]).tolist() == [-1, 0, 0]  # x: to the left
    assert (affine[:3, :3] @ [0, 1, 0]).tolist() == [0, 0, 1]  # y: to the head
    assert (affine[:3, :3] @ [0, 0, 1]).tolist() == [0, 1, 0]  # z: to the front


def test_a_turn_is_told_from_a_part_of_one_whatever_the_step_and_the_start() -> None:
    assert not beam().is_short
    assert not beam(angles_deg=tuple(30.0 * view for view in range(12))).is_short
    assert not beam(angles_deg=TURN[:50] + TURN[51:]).is_short  # a view left out
    assert not beam(angles_deg=3 * tuple(30.0 * view for view in range(13))).is_short  # taken several times
    part = beam(angles_deg=tuple((310 + angle) % 360 for angle in SHORT))
    assert part.is_short
    assert part.turn_deg == pytest.approx(200)


def test_what_fdk_takes_is_taken() -> None:
    for scan in (beam(), beam(angles_deg=SHORT), beam(across_mm=(-10.0, 50.0)), beam(along_mm=(-5.0, 45.0))):
        insist_possible(scan, DETECTOR)


@pytest.mark.parametrize(
    ("changes", "detector", "words"),
    [
        ({"source_to_detector_mm": 0.0}, DETECTOR, "E-GEOMETRY.*parallel"),
        ({"source_to_isocentre_mm": 1000.0, "source_to_detector_mm": 500.0}, DETECTOR, "E-GEOMETRY.*exchanged"),
        ({"curved_mm": 900.0}, DETECTOR, "E-GEOMETRY.*curved"),
        ({"climb_mm": 80.0}, DETECTOR, "E-GEOMETRY.*helix"),
        ({"angles_deg": TURN[:60]}, DETECTOR, "E-VIEWS.*turn through 177 degrees"),
        ({"angles_deg": TURN[:40] + TURN[60:90]}, DETECTOR, "E-VIEWS.*leave out 63 and 93"),
        ({"angles_deg": tuple(np.deg2rad(TURN).tolist())}, DETECTOR, "E-VIEWS.*radians"),
        ({"angles_deg": (0.0, 180.0)}, DETECTOR, "E-VIEWS.*2 views"),
        ({"angles_deg": SHORT, "across_mm": (-10.0, 50.0)}, DETECTOR, "E-VIEWS.*displaced"),
        ({"across_mm": (0.0, 100.0)}, DETECTOR.model_copy(update={"first_mm": (0.0, -50.0)}), "E-SINOGRAM.*u from 0 to 200 mm.*origin"),
        ({"along_mm": (0.0, 50.0)}, DETECTOR.model_copy(update={"first_mm": (-100.0, 0.0)}), "E-SINOGRAM.*v from 0 to 100 mm.*origin"),
        ({"across_mm": (-2000.0, 2000.0)}, centred_detector((101, 51), (80.0, 2.0)), "E-SINOGRAM.*spacing"),
        ({"across_mm": (-0.05, 0.05)}, centred_detector((101, 51), (0.002, 2.0)), "E-SINOGRAM.*spacing"),
        ({"along_mm": (0.0, 0.0)}, centred_detector((101, 1), (2.0, 2.0)), "E-SINOGRAM.*single row"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_scan_that_fdk_cannot_take_is_named_with_the_remedy(changes: dict[str, Any], detector: Detector, words: str) -> None:
    with pytest.raises(MedsynthError, match=f"(?s){words}"):
        insist_possible(beam(**changes), detector)
