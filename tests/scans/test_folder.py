"""Finding scans: all formats under one roof, names that never collide, one directory one DICOM case, errors that say what was there."""

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, SecondaryCaptureImageStorage, generate_uid

from medsynth.core.errors import ScanError, UsageError
from medsynth.scans import folder
from medsynth.scans.folder import Choices, Found

ARRAY = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def _nifti(path: Path, array: np.ndarray = ARRAY, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def _itk(path: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(path))
    return path


def _slices(directory: Path, n: int, number: int = 1, **tags: Any) -> str:
    """n axial slices of one series; returns its UID."""
    directory.mkdir(parents=True, exist_ok=True)
    uid = generate_uid()
    for k in range(n):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID, image.SeriesInstanceUID = MRImageStorage, generate_uid(), uid
        image.Modality, image.SeriesNumber, image.SeriesDescription = "MR", number, "t1 mpr/tra"
        image.PatientName, image.PatientID = "Doe^Jane", "MRN-4711"
        image.Rows, image.Columns, image.PixelSpacing, image.SliceThickness = 4, 5, [1, 1], 2
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
        image.InstanceNumber, image.ImagePositionPatient, image.ImageOrientationPatient = k + 1, [0, 0, 2 * k], [1, 0, 0, 0, 1, 0]
        for tag, value in tags.items():
            setattr(image, tag, value)
        image.PixelData = np.full((4, 5), 100 * number + k, "<u2").tobytes()
        image.save_as(directory / f"IM{number}{k:03d}", enforce_file_format=True)
    return uid


def _find(path: Path, **choices: Any) -> list[Found]:
    return folder.find(path, choices=Choices(**choices))


def _read(found: Found, **choices: Any) -> np.ndarray:
    return folder.read(found, choices=Choices(**choices)).array


def test_all_formats_below_a_folder_are_found_and_read(tmp_path: Path) -> None:
    for name in ("a.nii", "b.NII.GZ", "c.mgz", "deep/er/d.nii.gz"):
        _nifti(tmp_path / name.lower()) if not name.endswith("mgz") else nib.save(nib.MGHImage(ARRAY, np.eye(4)), tmp_path / name)
    (tmp_path / "b.nii.gz").rename(tmp_path / "b.NII.GZ")
    for name in ("e.nrrd", "f.mha", "g.mhd"):
        _itk(tmp_path / name)
    _slices(tmp_path / "h", 3)
    found = _find(tmp_path)
    assert [(item.case, item.kind) for item in found] == [
        ("a", "nifti"), ("b", "nifti"), ("c", "nifti"), ("d", "nifti"), ("e", "nrrd"), ("f", "mha"), ("g", "mha"), ("h", "dicom"),
    ]  # fmt: skip
    assert [len(item.files) for item in found] == [1, 1, 1, 1, 1, 1, 2, 3]
    for item in found:
        volume = folder.read(item, choices=Choices())
        assert (volume.origin.case, volume.origin.kind, volume.array.dtype) == (item.case, item.kind, np.float32)
        assert sorted(volume.shape) == ([3, 4, 5])


def test_real_folder_of_three_series_gives_three_cases(shared_data: Path) -> None:
    found = _find(shared_data / "dicom" / "mr_prostate_ProstateX-0000")
    assert [(item.case, len(item.files), item.problem) for item in found] == [
        ("adc", 19, None),
        ("dwi_highb", 19, None),
        ("t2_tra", 19, None),
    ]
    assert len({item.series for item in found}) == 3


def test_real_series_without_any_identifier_is_one_case(shared_data: Path) -> None:
    (found,) = _find(shared_data / "dicom" / "ct_abdomen_j2k")
    assert (found.case, len(found.files), found.series, found.problem) == ("ct_abdomen_j2k", 20, "", None)


def test_one_file_is_one_scan(tmp_path: Path) -> None:
    _slices(tmp_path, 3)
    for path, case in [(_nifti(tmp_path / "x y.ü.nii.gz"), "x y.ü"), (tmp_path / "IM1001", "IM1001")]:
        (found,) = _find(path)
        assert (found.case, found.files) == (case, (path,))
        assert _read(found).size in (60, 20)


def test_relative_folder_gives_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _slices(tmp_path / "patient 7", 3)
    monkeypatch.chdir(tmp_path / "patient 7")
    assert _find(Path())[0].case == "patient 7"


def test_hidden_files_and_our_own_by_products_are_passed_over(tmp_path: Path) -> None:
    _nifti(tmp_path / "a.nii")
    for name in (".hidden.nii", ".git/b.nii", ".medsynth-part-c.nii", "d.part.nii", "e.nii.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "a.nii").read_bytes())
    for name in ("a.json", "a.png", "failures.csv", "notes.txt"):
        (tmp_path / name).write_text("{}")
    assert [item.case for item in _find(tmp_path)] == ["a"]


def test_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("s1/t1.nii", "s2/t1.nii", "s2/flair.nii", "T1.nii", "x/scans/t2.nii", "y/scans/t2.nii"):
        _nifti(tmp_path / name)
    for subject in ("s1", "s2"):
        _slices(tmp_path / subject / "DICOM", 3)
    assert [item.case for item in _find(tmp_path)] == ["T1", "s1_DICOM", "s1_t1", "s2_DICOM", "flair", "s2_t1", "x_scans_t2", "y_scans_t2"]


def test_equal_names_in_one_folder_are_told_apart_by_their_format(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "sub/b.nii", "sub_b.nii"):
        _nifti(tmp_path / name)
    _itk(tmp_path / "a.mha")
    assert [item.case for item in _find(tmp_path)] == ["a_mha", "a_nii", "a_nii_gz", "b", "sub_b"]


@pytest.mark.parametrize(
    "names", [("b/c.nii", "a/b/c.nii", "b_c.nii"), ("x/a.nii", "a.nii", "x_a.nii"), ("A.nii", "sub/a.nii", "sub_a.nii")]
)
def test_no_two_scans_ever_share_a_name(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        _nifti(tmp_path / name)
    cases = [item.case.casefold() for item in _find(tmp_path)]
    assert len(set(cases)) == len(names)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    _slices(tmp_path / "data" / "scan", 3)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "patient").symlink_to(tmp_path / "data" / "scan")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert [item.case for item in _find(tmp_path / "in")] == ["patient"]


def test_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"E-PATH.*nowhere") as caught:
        _find(tmp_path / "nowhere")
    assert str(tmp_path) not in str(caught.value)


def test_empty_folder_says_what_was_found_instead(tmp_path: Path) -> None:
    for name in ("a.txt", "b.TXT", "c.pdf", "README"):
        (tmp_path / name).write_text("text")
    _slices(tmp_path / "report", 1, SOPClassUID=SecondaryCaptureImageStorage)
    with pytest.raises(ScanError) as caught:
        _find(tmp_path)
    assert caught.value.code == "E-EMPTY"
    assert "2 .txt" in caught.value.cause
    assert "2 without ending" in caught.value.cause
    assert "secondary captures): 1" in caught.value.cause
    with pytest.raises(ScanError, match=r"E-EMPTY: a\.txt is no scan"):
        _find(tmp_path / "a.txt")


def test_two_series_in_a_directory_are_ambiguous_and_do_not_stop_the_others(tmp_path: Path) -> None:
    _slices(tmp_path / "both", 3, number=4)
    _slices(tmp_path / "both", 5, number=7, SeriesDescription="t2 tse")
    _slices(tmp_path / "one", 3)
    both, one = _find(tmp_path)
    assert one.problem is None
    with pytest.raises(ScanError) as caught:
        _read(both)
    assert caught.value.code == "E-SERIES"
    assert "both holds 2 series: number 4, t1 mpr/tra, 3 slices; number 7, t2 tse, 5 slices" in caught.value.cause
    assert "--series" in caught.value.remedy
    assert not any(secret in str(caught.value) for secret in ("Doe", "4711", str(tmp_path)))


def test_series_is_chosen_by_number_identifier_or_description(tmp_path: Path) -> None:
    _slices(tmp_path / "both", 3, number=4)
    uid = _slices(tmp_path / "both", 5, number=7, SeriesDescription="T2 tse 4 mm")
    for choice in ("7", uid, "t2", "TSE"):
        (found,) = _find(tmp_path, series=choice)
        assert (found.case, found.series, len(found.files), found.problem) == ("both_7_T2-tse-4-mm", uid, 5, None)
        assert _read(found).max() == 704
    assert _find(tmp_path, series="4")[0].case == "both_4_t1-mpr-tra"  # the number, though the other description holds a 4
    assert _find(tmp_path, series="t")[0].problem is not None


def test_series_without_identifiers_are_told_apart_by_number(tmp_path: Path) -> None:
    _slices(tmp_path, 3, number=4, SeriesInstanceUID="")
    _slices(tmp_path, 3, number=7, SeriesInstanceUID="")
    (found,) = _find(tmp_path, series="7")
    assert _read(found).min() == 700


def test_chosen_series_that_a_directory_lacks_is_reported_where_there_was_a_choice(tmp_path: Path) -> None:
    _slices(tmp_path / "p1", 3, number=4)
    _slices(tmp_path / "p1", 3, number=7)
    _slices(tmp_path / "p2", 3, number=1)
    _slices(tmp_path / "p2", 3, number=2)
    _slices(tmp_path / "p3", 3, number=1)  # a single other series: as in a study sorted into one folder for each series
    found = _find(tmp_path, series="7")
    assert [(item.case, item.problem is None) for item in found] == [("p1_7_t1-mpr-tra", True), ("p2", False)]
    with pytest.raises(ScanError, match="no series matches '7'"):
        _read(found[1])


def test_series_that_matches_nothing_lists_what_there_is(tmp_path: Path) -> None:
    _slices(tmp_path / "p1", 3, number=4)
    _nifti(tmp_path / "a.nii")
    with pytest.raises(ScanError, match=r"E-SERIES: no series matches 'flair'; there are: number 4, t1 mpr/tra, 3 slices"):
        _find(tmp_path, series="flair")


@pytest.mark.parametrize(("n", "tags"), [(9, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}), (2, {})])
def test_localisers_do_not_compete_and_are_noted(tmp_path: Path, n: int, tags: dict[str, Any]) -> None:
    _slices(tmp_path / "p1", 3, number=4)
    _slices(tmp_path / "p1", n, number=1, SeriesDescription="scout", **tags)
    (found,) = _find(tmp_path)
    assert found.case == "p1_4_t1-mpr-tra"
    volume = folder.read(found, choices=Choices())
    assert volume.shape == (5, 4, 3)
    assert volume.origin.notes == (f"left out as a localiser or too short: series number 1, scout, {n} slices",)
    assert _find(tmp_path, series="1")[0].problem is None


def test_localiser_in_its_own_folder_is_left_out_beside_scans_but_not_alone(tmp_path: Path) -> None:
    _slices(tmp_path / "scout", 3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert [item.case for item in _find(tmp_path)] == ["scout"]
    _slices(tmp_path / "t1", 3)
    assert [item.case for item in _find(tmp_path)] == ["t1"]
    assert [item.case for item in _find(tmp_path / "scout")] == ["scout"]


def test_different_modalities_in_one_directory_are_ambiguous_too(tmp_path: Path) -> None:
    _slices(tmp_path / "p1", 3, number=1)
    _slices(tmp_path / "p1", 3, number=2, Modality="CT", SOPClassUID=CTImageStorage)
    assert isinstance(_find(tmp_path)[0].problem, ScanError)


def test_choices_reach_the_readers(tmp_path: Path) -> None:
    _slices(tmp_path / "gap", 5)
    (tmp_path / "gap" / "IM1002").unlink()
    (gap,) = _find(tmp_path / "gap")
    with pytest.raises(ScanError, match="E-GAP"):
        _read(gap)
    assert _read(gap, allow_gaps=True)[0, 0].tolist() == [100, 101, 102, 103, 104]
    (series,) = _find(_nifti(tmp_path / "4d.nii", np.stack([ARRAY, ARRAY + 1], axis=-1)))
    assert _read(series, volume=1).min() == 1
    image = nib.Nifti1Image(ARRAY, np.eye(4))
    image.set_qform(np.diag([1, 1, 1, 1]), code=1)
    image.set_sform(np.diag([-1, -1, 1, 1]), code=1)
    nib.save(image, tmp_path / "forms.nii")
    (forms,) = _find(tmp_path / "forms.nii")
    assert folder.read(forms, choices=Choices(trust="qform")).affine_ras[0, 0] == 1


def test_a_few_nans_become_the_smallest_value_with_a_note(tmp_path: Path) -> None:
    array = np.linspace(-5, 10, 1000, dtype=np.float32).reshape(10, 10, 10)
    array[3, 3, :2] = np.nan, np.inf
    (found,) = _find(_nifti(tmp_path / "a.nii", array))
    volume = folder.read(found, choices=Choices())
    assert volume.array[3, 3, :2].tolist() == [-5, -5]
    assert volume.origin.notes == ("NaN or infinite voxels set to the smallest value, -5: 2",)


def test_many_nans_are_refused(tmp_path: Path) -> None:
    array = np.zeros((10, 10, 10), np.float32)
    array[:2] = np.nan
    (found,) = _find(_nifti(tmp_path / "a.nii", array))
    with pytest.raises(ScanError, match="E-READ: a: 20% of the voxels"):
        _read(found)


@pytest.mark.parametrize(
    "affine",
    [np.diag([1, 0, 1, 1.0]), np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), np.diag([np.nan, 1, 1, 1])],
    ids=["no spacing", "plane", "NaN"],
)
def test_impossible_grids_are_refused(tmp_path: Path, affine: np.ndarray) -> None:
    path = _nifti(tmp_path / "a.nii.gz")
    header = nib.load(path).header
    header["srow_x"], header["srow_y"], header["srow_z"] = affine[:3]
    header["sform_code"], header["qform_code"] = 1, 0
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + ARRAY.tobytes(order="F")))
    with pytest.raises(ScanError, match="E-GEOMETRY"):
        _read(_find(path)[0])


def test_damaged_scan_is_found_and_fails_only_when_read(tmp_path: Path) -> None:
    _nifti(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(b"")
    a, b = _find(tmp_path)
    assert _read(a).size == 60
    with pytest.raises(ScanError, match=r"E-READ: b\.nii\.gz"):
        _read(b)
