"""`medsynth mri2ct`: what it writes for a folder that mixes formats, and where."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import phantom
import pydicom
import pytest
import SimpleITK as sitk
from commandline import contents, medsynth, record, status
from PIL import Image
from scipy.spatial.transform import Rotation
from tiny_model import write_tiny_model

from medsynth.core.errors import Exit
from medsynth.core.volume import Volume
from medsynth.scans import folder, itk
from medsynth.verbs import synthesize

AIR_HU = -1000


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One head as NIfTI, MHA, NRRD and DICOM, in folders and under names that need care."""
    scans = tmp_path_factory.mktemp("mixed") / "in Ä"
    phantom.write_nifti(scans / "scan one.nii.gz")
    phantom.write_nifti(scans / "naïve Ελένη" / "oblique [1].nii", affine=oblique())
    phantom.write_nifti(scans / "sheared.nii.gz", affine=sheared())
    write_sagittal(scans / "sagittal.mha", phantom.mr_head())
    itk.write(phantom.volume(phantom.mr_head()), scans / "plain.nrrd", dtype="int16")
    phantom.write_dicom(scans / "séries 1")
    return scans


@pytest.fixture(scope="module")
def finished(mixed: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results for all of them."""
    out = tmp_path_factory.mktemp("finished") / "out put"
    result = medsynth("mri2ct", mixed, out, "--model", model)
    assert (result.exit_code, result.stderr) == (0, "")
    return out


def oblique() -> np.ndarray:
    """A turned grid."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (8, -5, 11), degrees=True).as_matrix()
    return turn @ phantom.affine_ras()


def write_sagittal(path: Path, array: np.ndarray) -> Path:
    """MetaImage whose axes run to the front, the head, and the left: the order of sagittal slices."""
    affine = phantom.affine_ras() @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = phantom.affine_ras()[:3, 3] * (-1, 1, 1)
    affine[:, :3] = affine[:, [1, 2, 0]]
    itk.write(phantom.volume(np.ascontiguousarray(array[::-1].transpose(1, 2, 0)), affine=affine), path, dtype="float32")
    return path


def sheared() -> np.ndarray:
    affine = phantom.affine_ras()
    affine[:3, 2] += 0.2 * affine[:3, 1]
    return affine


def sources(scans: Path) -> dict[str, Volume]:
    """Case -> the scan as it is read."""
    found = folder.find(scans, choices=folder.Choices())
    return {item.case: folder.read(item, choices=folder.Choices()) for item in found}


def test_every_format_gives_a_ct_on_its_own_grid(mixed: Path, finished: Path) -> None:
    scans = sources(mixed)
    assert set(scans) == {"scan one", "oblique [1]", "sheared", "sagittal", "plain", "séries 1"}
    for case, scan in scans.items():
        image = nib.load(finished / f"{case}_ct.nii.gz")
        assert image.shape == scan.shape
        assert np.allclose(image.affine, scan.affine_ras, rtol=0, atol=1e-5), case


@pytest.mark.parametrize("name", ["scan one.nii.gz", "naïve Ελένη/oblique [1].nii", "sheared.nii.gz"])
def test_a_nifti_files_header_comes_back_bit_by_bit(name: str, mixed: Path, finished: Path) -> None:
    source = nib.load(mixed / name)
    result = nib.load(finished / f"{Path(name).name.split('.')[0]}_ct.nii.gz")
    assert result.shape == source.shape
    assert np.array_equal(result.affine, source.affine)


def test_a_real_head_from_freesurfer_gives_a_ct_on_its_own_grid(shared_data: Path, model: Path, tmp_path: Path) -> None:
    """Its axes run to the left, the feet and the front."""
    scan = shared_data / "mr" / "mne_ecog" / "T1.mgz"
    assert medsynth("mri2ct", scan, tmp_path, "--model", model).exit_code == 0
    source, result = nib.load(scan), nib.load(tmp_path / "T1_ct.nii.gz")
    assert result.shape == source.shape
    assert np.allclose(result.affine, source.affine, rtol=0, atol=1e-4)
    inside = np.asarray(result.dataobj) != AIR_HU
    assert inside[np.asarray(source.dataobj) > 60].mean() > 0.99


def test_values_are_hu_as_whole_numbers_with_air_around_the_head(mixed: Path, finished: Path) -> None:
    for case in sources(mixed):
        image = nib.load(finished / f"{case}_ct.nii.gz")
        ct_hu = np.asarray(image.dataobj)
        assert image.get_data_dtype() == np.int16
        assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
        assert ct_hu.min() >= -1024
        assert ct_hu.max() <= 3000
        assert ct_hu[0, 0, -1] == ct_hu[-1, -1, -1] == AIR_HU
        assert 0.3 < (ct_hu == AIR_HU).mean() < 0.9


def test_each_ct_has_a_picture_and_a_sidecar_that_says_how_it_was_made(finished: Path, model: Path) -> None:
    weights = (model / "card.toml").read_text(encoding="utf-8").split('sha256 = "')[1][:64]
    for case in status(finished):
        with Image.open(finished / f"{case}_ct.png") as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 200
        sidecar = json.loads((finished / f"{case}_ct.json").read_text(encoding="utf-8"))
        assert sidecar["Model"] == {"Name": "tiny", "Version": "0", "Revision": "local", "Sha256": weights}
        assert sidecar["Units"] == "HU"
        assert sidecar["Output"]["Name"] == f"{case}_ct.nii.gz"
        assert sidecar["InputScale"]["half_width"] > 100
        assert "research only" in sidecar["Description"]


def test_the_record_says_what_was_run_and_what_became_of_each_scan(finished: Path) -> None:
    said = record(finished)
    assert said["state"] == "finished"
    assert said["settings"]["task"] == "mri2ct"
    assert said["model"]["name"] == "tiny"
    assert said["device"]
    assert said["precision"]
    assert set(status(finished).values()) == {"done"}
    assert all(set(case["seconds"]) == {"read", "network", "write"} for case in said["cases"])
    assert not (finished / "failures.csv").exists()


def test_the_folder_is_a_bids_derivative(finished: Path) -> None:
    description = json.loads((finished / "dataset_description.json").read_text(encoding="utf-8"))
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "medsynth"


def test_nothing_else_is_left(finished: Path) -> None:
    expected = {f"{case}_ct.{ending}" for case in status(finished) for ending in ("nii.gz", "png", "json")}
    assert {path.name for path in finished.iterdir()} == expected | {"run.json", "dataset_description.json"}


def test_no_path_and_no_patient_is_in_the_record_the_sidecars_and_the_list_of_failures(mixed: Path, model: Path, tmp_path: Path) -> None:
    scans = tmp_path / "folder-of-the-user"
    phantom.write_dicom(scans / "series")
    phantom.write_dicom(scans / "gap", leave_out=(30,))
    (scans / "broken.nii.gz").write_bytes(b"no gzip")
    result = medsynth("mri2ct", scans, tmp_path / "out", "--model", model)
    written = [path.read_text(encoding="utf-8") for path in tmp_path.glob("out/*") if path.suffix in (".json", ".csv")]
    assert len(written) == 4
    for text in written:
        for secret in ("folder-of-the-user", str(tmp_path), "Phantom", "Ελένη", "PHANTOM-ID"):
            assert secret not in text
    assert "Phantom" not in result.output
    assert "folder-of-the-user" not in result.output


WRITERS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "NIfTI": lambda folder, array: phantom.write_nifti(folder / "a.nii.gz", array),
    "NIfTI, oblique": lambda folder, array: phantom.write_nifti(folder / "a.nii.gz", array, oblique()),
    "MetaImage, sagittal": lambda folder, array: write_sagittal(folder / "a.mha", array),
    "DICOM": lambda folder, array: phantom.write_dicom(folder / "a", array),
}


@pytest.mark.parametrize("written", WRITERS)
def test_what_is_computed_lies_where_the_scan_shows_it(written: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a network that copies its input, a turned or mirrored result cannot hide: the head is shaded along every axis."""
    monkeypatch.setattr(synthesize, "predictor", lambda *_: lambda image: image.clone() / 2)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in phantom.shape()], indexing="ij")
    given = WRITERS[written](tmp_path, phantom.mr_head() * np.maximum(1 + 0.7 * x + 0.5 * y + 0.5 * z, 0))
    assert medsynth("mri2ct", given, tmp_path / "out", "--model", model).exit_code == 0
    ct_hu, scan = np.asarray(nib.load(tmp_path / "out" / "a_ct.nii.gz").dataobj, dtype=np.float32), sources(given)["a"].array
    head = ct_hu >= 980  # a signal of zero becomes 988 HU, less where it is blended with the air outside
    assert head.mean() > 0.2
    alike = np.corrcoef(ct_hu[head], scan[head])[0, 1]
    assert alike > 0.92
    assert all(np.corrcoef(ct_hu[head], np.flip(scan, axis)[head])[0, 1] < alike - 0.1 for axis in range(3))


def test_the_format_of_the_input_can_be_kept(mixed: Path, model: Path, tmp_path: Path) -> None:
    result = medsynth("mri2ct", mixed, tmp_path, "--model", model, "--format", "same")
    assert result.exit_code == 0
    scans = sources(mixed)
    for name, case in {
        "sagittal_ct.mha": "sagittal",
        "plain_ct.nrrd": "plain",
        "scan one_ct.nii.gz": "scan one",
        "séries 1_ct": "séries 1",
    }.items():
        (output,) = sources(tmp_path / name).values()
        assert output.shape == scans[case].shape
        assert np.allclose(output.affine_ras, scans[case].affine_ras, rtol=0, atol=1e-4), name
        assert output.array.min() >= -1024
    assert sitk.ReadImage(tmp_path / "sagittal_ct.mha").GetPixelID() == sitk.sitkInt16


def test_a_dicom_series_gives_a_derived_one_with_the_same_values_as_nifti(mixed: Path, finished: Path, model: Path, tmp_path: Path) -> None:
    result = medsynth("mri2ct", mixed / "séries 1", tmp_path, "--model", model, "--format", "dicom")
    assert result.exit_code == 0
    header = pydicom.dcmread(tmp_path / "séries 1_ct" / "ct_0001.dcm")
    assert (header.Modality, list(header.ImageType)) == ("CT", ["DERIVED", "SECONDARY", "AXIAL"])
    assert "tiny" in header.DerivationDescription
    (series,) = sources(tmp_path / "séries 1_ct").values()
    (as_nifti,) = sources(finished / "séries 1_ct.nii.gz").values()
    assert np.array_equal(series.array, as_nifti.array)
    assert medsynth("mri2ct", mixed / "séries 1", tmp_path, "--model", model, "--format", "dicom").exit_code == 0
    assert status(tmp_path) == {"séries 1": "skipped"}


def test_two_runs_give_the_same_bytes(mixed: Path, finished: Path, model: Path, tmp_path: Path) -> None:
    assert medsynth("mri2ct", mixed, tmp_path / "again", "--model", model).exit_code == 0
    assert contents(tmp_path / "again") == contents(finished)


def test_results_inside_the_folder_of_scans_are_no_scans(one: Path, model: Path, tmp_path: Path) -> None:
    scans = shutil.copytree(one, tmp_path / "in")
    for expected in ("done", "skipped"):
        assert medsynth("mri2ct", scans, scans / "ct" / "first", "--model", model).exit_code == 0
        assert status(scans / "ct" / "first") == {"head": expected}


def test_a_folder_that_holds_nothing_but_results_is_empty(one: Path, model: Path, tmp_path: Path) -> None:
    scans = shutil.copytree(one, tmp_path / "in")
    medsynth("mri2ct", scans, scans / "ct", "--model", model)
    (scans / "head.nii.gz").unlink()
    result = medsynth("mri2ct", scans, scans / "ct", "--model", model)
    assert result.exit_code == Exit.INPUT
    assert "E-EMPTY" in result.stderr


def test_results_are_not_written_among_the_scans(one: Path, model: Path) -> None:
    result = medsynth("mri2ct", one, one.parent / "in" / ".." / "in", "--model", model)
    assert result.exit_code == Exit.USAGE
    assert "E-OUTPUT" in result.stderr
    assert [path.name for path in one.iterdir()] == ["head.nii.gz"]


def test_a_file_where_the_results_should_go_is_an_error_of_usage(one: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine", encoding="utf-8")
    result = medsynth("mri2ct", one, tmp_path / "taken", "--model", model)
    assert result.exit_code == Exit.USAGE
    assert "E-OUTPUT" in result.stderr
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "mine"


def test_a_file_can_be_given_instead_of_a_folder(one: Path, one_finished: Path, model: Path, tmp_path: Path) -> None:
    assert medsynth("mri2ct", one / "head.nii.gz", tmp_path / "out", "--model", model).exit_code == 0
    assert contents(tmp_path / "out") == contents(one_finished)


def test_a_model_for_another_task_is_refused(one: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", task='"sparse-ct"')
    result = medsynth("mri2ct", one, tmp_path / "out", "--model", other)
    assert result.exit_code == Exit.USAGE
    assert "E-MODEL" in result.stderr
