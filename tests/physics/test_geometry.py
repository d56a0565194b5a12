"""The geometry as data: what it says about the scan, what it refuses, and its file."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medsynth.core.errors import MedsynthError, ScanError, UsageError
from medsynth.physics.geometry import (
    Geometry,
    ImageGrid,
    Scan,
    Target,
    fan,
    from_toml,
    insist_fits,
    insist_source_outside,
    parallel,
    to_toml,
    uncovered_mm,
)

FAN_FILE = 'beam = "fan"\nviews = 18\ndetectors = 736\npitch_mm = 1.2858\n'
TARGET = Target(affine=((-0.7, 0, 0, 90), (0, -0.7, 0, 80.5), (0, 0, 3, -40), (0, 0, 0, 1)), shape=(256, 256, 30))


def refusal(text: str) -> MedsynthError:
    with pytest.raises(UsageError) as caught:
        from_toml(text, "case_geometry.toml")
    assert caught.value.code == "E-GEOMETRY"
    return caught.value


def test_the_benchmarks_fan_sees_a_circle_of_475_mm() -> None:
    assert fan(18).field_of_view_mm == pytest.approx(475, abs=1)
    assert fan(18).pitch_at_isocentre_mm == pytest.approx(0.7047, abs=1e-4)
    assert fan(4).angles_deg == (0, 90, 180, 270)


def test_parallel_rays_turn_half_a_circle_and_see_their_width() -> None:
    scan = parallel(4, detectors=100, pitch_mm=2)
    assert scan.angles_deg == (0, 45, 90, 135)
    assert scan.field_of_view_mm == pytest.approx(200)
    assert scan.pitch_at_isocentre_mm == 2


def test_an_offset_narrows_the_field_of_view_on_both_sides() -> None:
    assert parallel(4, detectors=100, pitch_mm=2, detector_offset_mm=-15).field_of_view_mm == pytest.approx(170)
    assert fan(4, detector_offset_mm=30).field_of_view_mm == fan(4, detector_offset_mm=-30).field_of_view_mm < fan(4).field_of_view_mm


def test_truncation_is_named_in_mm() -> None:
    scan = parallel(4, detectors=100, pitch_mm=2)
    assert uncovered_mm(scan, 99) == 0
    assert uncovered_mm(scan, 112) == pytest.approx(12)


@pytest.mark.parametrize(
    ("geometry", "complete"),
    [
        (fan(7), True),
        (parallel(7), True),
        (Geometry(beam="fan", angles_deg=(300, 60, 180), detectors=9, pitch_mm=1), True),
        (Geometry(beam="fan", angles_deg=(-90, 0, 90, 180.01), detectors=9, pitch_mm=1), True),
        (Geometry(beam="parallel", angles_deg=(0, 90, 180, 270), detectors=9, pitch_mm=1), True),
        (Geometry(beam="fan", angles_deg=(0, 45, 90, 135), detectors=9, pitch_mm=1), False),
        (Geometry(beam="fan", angles_deg=(0, 100, 240), detectors=9, pitch_mm=1), False),
        (Geometry(beam="fan", angles_deg=(0, 90, 180, 270, 360), detectors=9, pitch_mm=1), False),
        (Geometry(beam="parallel", angles_deg=(0, 30, 60, 90), detectors=9, pitch_mm=1), False),
    ],
)
def test_a_complete_turn_is_told_from_a_short_or_uneven_one(geometry: Geometry, complete: bool) -> None:
    assert geometry.is_complete == complete


def test_radians_are_named() -> None:
    error = refusal('[geometry]\nbeam = "fan"\nangles_deg = [0.0, 1.57, 3.14, 4.71]\ndetectors = 736\npitch_mm = 1.2858\n')
    assert "radians" in error.cause
    assert "180 / pi" in error.remedy
    assert "case_geometry.toml" in error.cause


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[geometry\n", "not TOML"),
        ("", "geometry"),
        (f"[geometry]\n{FAN_FILE}pich_mm = 3\n", "pich_mm"),
        (f"[geometry]\n{FAN_FILE}angles_deg = [0.0, 20.0]\n", "both"),
        (f"[geometry]\n{FAN_FILE}source_to_isocentre_mm = 1085.6\nsource_to_detector_mm = 595.0\n", "not beyond"),
        (f"[geometry]\n{FAN_FILE}detector_offset_mm = 500.0\n", "do not see the isocentre"),
        (f"[geometry]\n{FAN_FILE}".replace("fan", "cone"), "beam"),
        (f"[geometry]\n{FAN_FILE}".replace("18", "0"), "0 views"),
        (f"[geometry]\n{FAN_FILE}".replace("18", '"18"'), "'18'"),
        (f"[geometry]\n{FAN_FILE}".replace("1.2858", "-1"), "pitch_mm"),
        (f"[geometry]\n{FAN_FILE}".replace("1.2858", "nan"), "pitch_mm"),
        (f"[geometry]\n{FAN_FILE}source_to_isocentre_mm = 500\n".replace("fan", "parallel"), "source_to_isocentre_mm"),
        ('[geometry]\nbeam = "fan"\nangles_deg = []\ndetectors = 736\npitch_mm = 1.0\n', "angles_deg"),
        (
            f"[geometry]\n{FAN_FILE}[image]\naffine = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]\nshape = [4, 4, 4]\n",
            "no volume",
        ),
        (f"[geometry]\n{FAN_FILE}[image]\naffine = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]\nshape = [4, 4, 4]\n", "four rows"),
        (f"[geometry]\n{FAN_FILE}[object]\n", "object"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_with_what_is_wrong(text: str, named: str) -> None:
    assert named in refusal(text).cause


def test_a_source_within_the_image_is_refused() -> None:
    insist_source_outside(fan(18), ImageGrid(size=256, pixel_mm=2))
    insist_source_outside(parallel(18), ImageGrid(size=256, pixel_mm=20))
    with pytest.raises(UsageError, match="E-GEOMETRY"):
        insist_source_outside(fan(18), ImageGrid(size=256, pixel_mm=3.3))  # the edge is outside the source's circle, the corner is not


@pytest.mark.parametrize(
    ("shape", "named"),
    [((5, 736, 18), "another order"), ((18, 736), "axis of length 1"), ((5, 18, 735), "slices"), ((0, 18, 736), "0, 18")],
)
def test_a_sinogram_of_another_shape_is_refused(shape: tuple[int, ...], named: str) -> None:
    insist_fits(fan(18), (5, 18, 736))
    with pytest.raises(ScanError, match=f"(?s)E-SINOGRAM.*{named}"):
        insist_fits(fan(18), shape)


def test_a_number_of_views_stands_for_equally_spaced_angles() -> None:
    assert from_toml(f"[geometry]\n{FAN_FILE}", "x").geometry == fan(18)
    text = '[geometry]\nbeam = "parallel"\nviews = 18\ndetectors = 10\npitch_mm = 0.7\n'
    assert from_toml(text, "x").geometry == parallel(18, detectors=10, pitch_mm=0.7)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["fan", "parallel"]),
    st.lists(st.floats(-400, 400), min_size=1, max_size=5),
    st.integers(50, 1000),
    st.floats(0.5, 3),
    st.floats(-10, 10),
    st.booleans(),
)
def test_a_file_reads_back_equal(beam: str, angles: list[float], detectors: int, pitch: float, offset: float, with_image: bool) -> None:
    angles = [7.0, *angles]  # not all near 0: those are refused as radians
    values = {"beam": beam, "angles_deg": angles, "detectors": detectors, "pitch_mm": pitch, "detector_offset_mm": offset}
    scan = Scan(geometry=Geometry.model_validate(values), image=TARGET if with_image else None)
    assert from_toml(to_toml(scan), "x") == scan


@pytest.mark.parametrize("geometry", [fan(36), fan(5, source_to_isocentre_mm=570, source_to_detector_mm=1040), parallel(36)])
def test_equally_spaced_views_are_written_as_their_number(geometry: Geometry) -> None:
    text = to_toml(Scan(geometry=geometry))
    assert f"views = {geometry.views}\n" in text
    assert from_toml(text, "x").geometry == geometry


def test_geometries_are_fixed_and_can_be_keys() -> None:
    assert {fan(18): 1}[fan(18)] == 1
    with pytest.raises(ValidationError):
        fan(18).pitch_mm = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_a_geometry_is_read_without_torch() -> None:
    command = "import sys, medsynth.physics.geometry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
