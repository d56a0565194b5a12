"""`medsynth sparse-ct --method fdk`: a patient of spheres from stacks of projections with RTK's geometry, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import cone_scan
import nibabel as nib
import numpy as np
import phantom
import pytest
import SimpleITK as sitk
from commandline import contents, failures, medsynth, record, status
from PIL import Image

from medsynth.core.errors import Exit, UsageError
from medsynth.physics import rtk
from medsynth.physics.ct import MU_WATER_PER_MM as WATER

VIEWS, COLUMNS, ROWS, CELL_MM = 90, 72, 40, 2.5
ANGLES = cone_scan.full_turn(VIEWS)
# Water; at the patient's left, front and head a part of 500 HU; at the right and back air.
BODY: list[cone_scan.Sphere] = [((0, 0, 0), 40, WATER), ((20, 9, 14), 8, 0.5 * WATER), ((-18, 0, -14), 8, -WATER)]


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    return cone_scan.projections(BODY, ANGLES, cone_scan.places_mm(COLUMNS, CELL_MM), cone_scan.places_mm(ROWS, CELL_MM))


@pytest.fixture(scope="module")
def scans(stack: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `geometry.xml` and, in a folder of its own, the stack; skipped without RTK."""
    folder = tmp_path_factory.mktemp("scans")
    cone_scan.write_geometry(folder / "geometry.xml", ANGLES)
    (folder / "in").mkdir()
    cone_scan.write_stack(folder / "in" / "patient.mha", stack, CELL_MM)
    return folder


@pytest.fixture(scope="module")
def made(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    run(scans / "in" / "patient.mha", out, scans / "geometry.xml")
    return out


def run(source: Path, out: Path, xml: Path, *options: object) -> Any:
    result = medsynth("sparse-ct", source, out, "--method", "fdk", "--geometry", xml, *options)
    assert result.exit_code == 0, result.output
    return result


def refused(source: Path, out: Path, *options: object) -> tuple[str, str]:
    """Code and text of the only case, which fails."""
    assert medsynth("sparse-ct", source, out, "--method", "fdk", *options).exit_code in (Exit.INPUT, Exit.USAGE)
    (case,) = record(out)["cases"]
    return case["code"], f"{case['cause']}; {case['remedy']}"


def hu_at(file: Path, left_mm: float, head_mm: float, front_mm: float) -> float:
    """Mean HU within 4 mm of a point of the patient."""
    image = nib.load(file)
    places = nib.affines.apply_affine(image.affine, np.moveaxis(np.indices(image.shape), 0, -1))
    near = np.linalg.norm(places - (-left_mm, front_mm, head_mm), axis=-1) < 4
    return float(np.asarray(image.dataobj)[near].mean())


def test_hu_are_right_in_the_middle_and_where_the_patient_has_them(made: Path) -> None:
    ct = made / "patient_ct.nii.gz"
    assert hu_at(ct, 0, 0, 0) == pytest.approx(0, abs=10)
    assert hu_at(ct, 20, 9, 14) == pytest.approx(500, abs=15)
    assert hu_at(ct, -18, 0, -14) == pytest.approx(-1000, abs=15)
    assert hu_at(ct, -20, 9, 14) == pytest.approx(0, abs=15)
    assert hu_at(ct, 20, -9, 14) == pytest.approx(0, abs=15)
    assert hu_at(ct, 20, 9, -14) == pytest.approx(0, abs=15)


def test_the_volume_fills_the_field_of_view_and_what_is_out_of_view_is_air(made: Path) -> None:
    image = nib.load(made / "patient_ct.nii.gz")
    voxel_mm = CELL_MM * cone_scan.SOURCE_MM / cone_scan.DETECTOR_MM
    assert image.header.get_zooms() == pytest.approx([voxel_mm] * 3, rel=1e-5)
    assert image.get_data_dtype() == np.int16
    assert image.shape == (71, 39, 71)
    assert np.asarray(image.dataobj)[0, :, 0].tolist() == [-1000] * 39


def test_files_record_and_sidecar_are_those_of_the_other_methods(made: Path) -> None:
    assert set(contents(made)) == {"patient_ct.nii.gz", "patient_ct.png", "patient_ct.json", "dataset_description.json"}
    sidecar = json.loads((made / "patient_ct.json").read_text(encoding="utf-8"))
    (case,) = record(made)["cases"]
    said = sidecar["Reconstruction"]
    assert said == case["measured"]
    assert (said["Method"], said["Views"], said["Evaluations"], said["RelativeResidual"]) == ("fdk", VIEWS, 0, {})
    assert said["Geometry"]["beam"] == "cone"
    assert said["Geometry"]["turn_deg"] == 360
    assert said["Geometry"]["source_to_detector_mm"] == cone_scan.DETECTOR_MM
    assert said["Noise"] == {"measured": True}
    assert any("head first on the back" in text for text in sidecar["Warnings"])
    assert set(case["seconds"]) == {"read", "reconstruct", "write"}
    with Image.open(made / "patient_ct.png") as picture:
        assert min(picture.size) > 200


def test_counts_become_line_integrals(scans: Path, stack: np.ndarray, made: Path, tmp_path: Path) -> None:
    counts = cone_scan.write_stack(tmp_path / "patient.mha", (1e5 * np.exp(-stack)).astype(np.float32), CELL_MM)
    code, said = refused(counts, tmp_path / "as integrals", "--geometry", scans / "geometry.xml")
    assert code == "E-SINOGRAM"
    assert "--counts" in said
    run(counts, tmp_path / "out", scans / "geometry.xml", "--counts", "--i0", "1e5")
    a, b = (np.asarray(nib.load(folder / "patient_ct.nii.gz").dataobj).astype(int) for folder in (made, tmp_path / "out"))
    assert np.abs(a - b).max() <= 2
    measured = record(tmp_path / "out")["cases"][0]["measured"]
    assert measured["Noise"] == {"measured": True, "i0": 1e5}
    assert 0 < measured["ExpectedRelativeNoise"] < 0.1


@pytest.mark.parametrize("ending", [".mhd", ".nrrd", ".nii.gz"])
def test_every_format_of_itk_gives_the_same_ct(ending: str, scans: Path, stack: np.ndarray, made: Path, tmp_path: Path) -> None:
    file = cone_scan.write_stack(tmp_path / f"patient{ending}", stack, CELL_MM)
    run(file, tmp_path / "out", scans / "geometry.xml")
    a, b = (np.asarray(nib.load(folder / "patient_ct.nii.gz").dataobj).astype(int) for folder in (made, tmp_path / "out"))
    assert np.abs(a - b).max() <= 1


def test_a_folder_is_gone_through_each_stack_with_the_geometry_beside_it(scans: Path, stack: np.ndarray, tmp_path: Path) -> None:
    folder = shutil.copytree(scans / "in", tmp_path / "in")
    shutil.copy(scans / "geometry.xml", folder / "patient_geometry.xml")
    part = [2.0 * view for view in range(101)]
    cone_scan.write_geometry(folder / "part_geometry.xml", part)
    cone_scan.write_stack(
        folder / "part.mha",
        cone_scan.projections(BODY, part, cone_scan.places_mm(COLUMNS, CELL_MM), cone_scan.places_mm(ROWS, CELL_MM)),
        CELL_MM,
    )
    cone_scan.write_stack(folder / "alone.mha", stack, CELL_MM)
    result = medsynth("sparse-ct", folder, tmp_path / "out", "--method", "fdk")
    assert result.exit_code == Exit.PARTIAL
    assert status(tmp_path / "out") == {"alone": "failed", "part": "done", "patient": "done"}
    assert failures(tmp_path / "out") == {"alone": "E-GEOMETRY"}
    assert "a turn of 200 degrees" in result.stderr
    assert hu_at(tmp_path / "out" / "part_ct.nii.gz", 0, 0, 0) == pytest.approx(0, abs=10)


def test_a_second_run_skips_what_is_there_and_another_geometry_does_not(scans: Path, tmp_path: Path) -> None:
    xml = Path(shutil.copy(scans / "geometry.xml", tmp_path))
    for change, expected in ((lambda: None, "done"), (lambda: None, "skipped"), (lambda: xml.write_text(xml.read_text() + "\n"), "done")):
        change()
        run(scans / "in", tmp_path / "out", xml)
        assert status(tmp_path / "out") == {"patient": expected}


def _nan(stack: np.ndarray) -> np.ndarray:
    changed = stack.copy()
    changed[3, 7, 5] = np.nan
    return changed


def _dead_view(stack: np.ndarray) -> np.ndarray:
    changed = stack.copy()
    changed[11] = 0
    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_nan, "view 3, row 7, column 5"),
        (_dead_view, "view 11 has the same value"),
        (lambda stack: stack[:-1], "geometry.xml describes 90 projections, there are 89"),
        (lambda stack: np.exp(-stack), "transmissions"),
        (lambda stack: stack[0], "columns, rows, views"),
    ],
)
def test_projections_that_cannot_be_are_named(change: Any, words: str, scans: Path, stack: np.ndarray, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(change(stack))
    image.SetSpacing([CELL_MM, CELL_MM, 1.0][: image.GetDimension()])
    image.SetOrigin([-(COLUMNS - 1) / 2 * CELL_MM, -(ROWS - 1) / 2 * CELL_MM, 0.0][: image.GetDimension()])
    sitk.WriteImage(image, tmp_path / "patient.mha")
    code, said = refused(tmp_path / "patient.mha", tmp_path / "out", "--geometry", scans / "geometry.xml")
    assert code == "E-SINOGRAM"
    assert words in said


def test_a_stack_without_origin_or_with_turned_axes_is_named(scans: Path, stack: np.ndarray, tmp_path: Path) -> None:
    corner = cone_scan.write_stack(tmp_path / "corner.mha", stack, CELL_MM, centred=False)
    code, said = refused(corner, tmp_path / "out", "--geometry", scans / "geometry.xml")
    assert code == "E-SINOGRAM"
    assert "does not see the isocentre" in said
    assert "origin" in said
    turned = sitk.ReadImage(corner)
    turned.SetDirection([-1, 0, 0, 0, -1, 0, 0, 0, 1])
    sitk.WriteImage(turned, tmp_path / "turned.mha")
    code, said = refused(tmp_path / "turned.mha", tmp_path / "turned", "--geometry", scans / "geometry.xml")
    assert code == "E-SINOGRAM"
    assert "directions" in said


def test_a_damaged_stack_is_named(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "patient.mha").write_bytes((scans / "in" / "patient.mha").read_bytes()[:1000])
    assert refused(tmp_path / "patient.mha", tmp_path / "out", "--geometry", scans / "geometry.xml")[0] == "E-READ"


def test_dicom_is_no_stack_of_projections(scans: Path, tmp_path: Path) -> None:
    phantom.write_dicom(tmp_path / "in")
    code, said = refused(tmp_path / "in", tmp_path / "out", "--geometry", scans / "geometry.xml")
    assert code == "E-SINOGRAM"
    assert "DICOM" in said


@pytest.mark.parametrize(("angles", "words"), [(ANGLES[:30], "116 degrees"), (np.deg2rad(ANGLES).tolist(), "radians")])
def test_a_turn_that_is_too_short_is_refused(angles: list[float], words: str, stack: np.ndarray, tmp_path: Path) -> None:
    xml = cone_scan.write_geometry(tmp_path / "geometry.xml", angles)
    file = cone_scan.write_stack(tmp_path / "patient.mha", stack[: len(angles)], CELL_MM)
    code, said = refused(file, tmp_path / "out", "--geometry", xml)
    assert code == "E-VIEWS"
    assert words in said


def test_a_geometry_that_rtk_cannot_read_stops_the_run(scans: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.xml"
    bad.write_text("<?xml version='1.0'?><other/>", encoding="utf-8")
    result = medsynth("sparse-ct", scans / "in", tmp_path / "out", "--method", "fdk", "--geometry", bad)
    assert result.exit_code == Exit.USAGE
    assert "E-RTK" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--method", "fdk", "--geometry", "XML", "--model", "run"), "E-OPTION", "--model is for the network"),
        (("--method", "fdk", "--geometry", "XML", "--passes", "2"), "E-OPTION", "--passes is for the network"),
        (("--method", "fdk", "--geometry", "XML", "--views", "18"), "E-OPTION", "--views is for CT volumes"),
        (("--method", "fdk", "--geometry", "XML", "--format", "same"), "E-OPTION", "--format same"),
        (("--method", "fdk", "--geometry", "XML", "--device", "cuda:0"), "E-DEVICE", "processor"),
        (("--method", "fdk", "--geometry", "TOML"), "E-GEOMETRY", "no .xml"),
        (("--method", "fdk", "--geometry", "missing.xml"), "E-PATH", "missing.xml"),
        (("--method", "tv", "--geometry", "XML"), "E-OPTION", "--method fdk"),
        (("--geometry", "XML"), "E-OPTION", "--method fdk"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_go_with_a_cone_beam_are_named(options: tuple[str, ...], code: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "geometry.xml").write_text("<RTKThreeDCircularGeometry/>", encoding="utf-8")
    (tmp_path / "scan.toml").write_text("", encoding="utf-8")
    scan = cone_scan.write_stack(tmp_path / "patient.mha", np.zeros((3, 4, 5), dtype=np.float32), 1.0)
    places = {"XML": str(tmp_path / "geometry.xml"), "TOML": str(tmp_path / "scan.toml")}
    result = medsynth("sparse-ct", scan, tmp_path / "out", *(places.get(option, option) for option in options))
    assert result.exit_code == Exit.USAGE
    assert code in result.stderr
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


def test_without_rtk_the_command_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent() -> None:
        raise UsageError("E-RTK", "cone-beam reconstruction needs ITK-RTK, which is not installed", remedy="pip install medsynth[rtk]")

    monkeypatch.setattr(rtk, "load", absent)
    (tmp_path / "geometry.xml").write_text("<RTKThreeDCircularGeometry/>", encoding="utf-8")
    scan = cone_scan.write_stack(tmp_path / "patient.mha", np.zeros((3, 4, 5), dtype=np.float32), 1.0)
    result = medsynth("sparse-ct", scan, tmp_path / "out", "--method", "fdk", "--geometry", tmp_path / "geometry.xml")
    assert result.exit_code == Exit.USAGE
    assert "pip install medsynth[rtk]" in result.stderr
    assert not (tmp_path / "out").exists()
