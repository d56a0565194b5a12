"""A synthetic CT as a derived DICOM series: valid, on the source's grid, traceable, and the same bytes every time."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage
from pydicom.valuerep import format_number_as_ds

from medsynth.core.errors import ScanError, UsageError
from medsynth.core.volume import Origin, Volume
from medsynth.scans import dicom_write

RECIPE: dict[str, Any] = {"model": "mri2ct-tiny", "model_sha256": "ab" * 32, "settings": "overlap 0.5"}
REAL_SERIES = ("dicom/mr_head_VS-SEG-001", "dicom/mr_prostate_ProstateX-0000/t2_tra", "dicom/ct_abdomen_j2k")
COLUMNS, ROWS = 9, 7
TURN, TILT = np.deg2rad(20), np.deg2rad(-35)
ROW = np.array([np.cos(TURN), np.sin(TURN), 0])
COLUMN = np.array([-np.sin(TURN) * np.cos(TILT), np.cos(TURN) * np.cos(TILT), np.sin(TILT)])
TYPE_1 = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "ImageType",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "RescaleIntercept", "RescaleSlope", "PixelData",
)  # fmt: skip
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
    "AccessionNumber", "SeriesNumber", "PatientPosition", "PositionReferenceIndicator", "AcquisitionNumber", "Manufacturer",
    "SliceThickness", "InstanceNumber", "KVP",
)  # fmt: skip
POOR = tuple(set(TYPE_2) - {"KVP"})  # an MR has no KVP that could be taken away
POORER = (*POOR, "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID")
NAMES = [
    pytest.param("ISO_IR 192", "Łukasz^Ζωή^Иван", id="utf-8"),
    pytest.param("ISO_IR 100", "Müller^Zoë", id="latin-1"),
    pytest.param(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう", id="japanese"),
    pytest.param("GB18030", "Wang^XiaoDong=王^小东", id="chinese"),
]
needs_dciodvfy = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian package dicom3tools) is not installed")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four slices of a small oblique MR series, in the order of z."""
    return mr_series(tmp_path / "source")


@needs_dciodvfy
@pytest.mark.parametrize("series", REAL_SERIES)
def test_real_series_give_files_without_errors(series: str, shared_data: Path, tmp_path: Path) -> None:
    dicom_write.write(synthetic_ct(real_slices(shared_data / series, 3)), tmp_path / "ct", **RECIPE)
    assert dciodvfy_errors(tmp_path / "ct") == []


@needs_dciodvfy
@pytest.mark.parametrize("part", ["KNEE", "HEAD", "PARTIALBODY", ""])
def test_laterality_is_there_exactly_where_it_must_be(part: str, tmp_path: Path) -> None:
    dicom_write.write(synthetic_ct(mr_series(tmp_path / "source", BodyPartExamined=part)), tmp_path / "ct", **RECIPE)
    assert dciodvfy_errors(tmp_path / "ct") == []


@needs_dciodvfy
@pytest.mark.parametrize("without", [(), POOR, POORER], ids=["rich", "poor", "poorer"])
def test_poor_headers_give_files_without_errors(without: tuple[str, ...], tmp_path: Path) -> None:
    dicom_write.write(synthetic_ct(mr_series(tmp_path / "source", without=without)), tmp_path / "ct", **RECIPE)
    assert dciodvfy_errors(tmp_path / "ct") == []


@pytest.mark.parametrize("without", [(), POOR, POORER], ids=["rich", "poor", "poorer"])
def test_every_required_attribute_is_there(without: tuple[str, ...], tmp_path: Path) -> None:
    dicom_write.write(synthetic_ct(mr_series(tmp_path / "source", without=without)), tmp_path / "ct", **RECIPE)
    for image in written(tmp_path / "ct"):
        assert [keyword for keyword in TYPE_1 if image.get(keyword) in (None, "")] == []
        assert [keyword for keyword in TYPE_2 if keyword not in image] == []
        assert image.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert (image.SOPClassUID, image.Modality, image.ImageType) == (CTImageStorage, "CT", ["DERIVED", "SECONDARY", "AXIAL"])
        assert (image.RescaleSlope, image.RescaleIntercept, image.BitsStored, image.PixelRepresentation) == (1, -1024, 16, 0)


@pytest.mark.parametrize("series", ["", *REAL_SERIES])
def test_another_reader_finds_the_same_hu_and_grid(series: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    slices = real_slices(request.getfixturevalue("shared_data") / series, 3) if series else mr_series(tmp_path / "source")
    ct = synthetic_ct(slices)
    dicom_write.write(ct, tmp_path / "ct", **RECIPE)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "ct")))
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image).T, ct.array)
    np.testing.assert_allclose(affine_ras(image), ct.affine_ras, atol=1e-5)


def test_voxels_are_rounded_and_clipped_to_what_fits(files: list[Path], tmp_path: Path) -> None:
    ct = synthetic_ct(files)
    ct.array[:4, 0, 0] = [-3000.0, 1e6, 40.4, -99.6]
    dicom_write.write(ct, tmp_path / "ct", **RECIPE)
    first = written(tmp_path / "ct")[0]
    assert (first.pixel_array[0, :4].astype(int) - 1024).tolist() == [-1024, 64511, 40, -100]


def test_integer_voxels_come_out_as_they_are(files: list[Path], tmp_path: Path) -> None:
    ct = synthetic_ct(files)
    dicom_write.write(ct.with_array(ct.array.astype(np.int16)), tmp_path / "ct", **RECIPE)
    assert all((ct.array[:, :, k] == image.pixel_array.T - 1024.0).all() for k, image in enumerate(written(tmp_path / "ct")))


def test_the_same_scan_gives_the_same_bytes_again(files: list[Path], tmp_path: Path) -> None:
    for name in ("first", "again"):
        dicom_write.write(synthetic_ct(files), tmp_path / name, **RECIPE)
    assert contents(tmp_path / "first") == contents(tmp_path / "again")


@pytest.mark.parametrize("change", [{"model_sha256": "cd" * 32}, {"settings": "overlap 0.25"}])
def test_another_model_or_setting_gives_other_uids(change: dict[str, str], files: list[Path], tmp_path: Path) -> None:
    dicom_write.write(synthetic_ct(files), tmp_path / "one", **RECIPE)
    dicom_write.write(synthetic_ct(files), tmp_path / "other", **(RECIPE | change))
    one, other = written(tmp_path / "one"), written(tmp_path / "other")
    assert len({image.SOPInstanceUID for image in one + other}) == 2 * len(files)
    assert len({image.SeriesInstanceUID for image in one + other}) == 2
    assert {(image.StudyInstanceUID, image.FrameOfReferenceUID) for image in one + other} == {("1.2.3.1", "1.2.3.3")}


def test_each_image_refers_to_its_own_slice(files: list[Path], tmp_path: Path) -> None:
    dicom_write.write(synthetic_ct(files), tmp_path / "ct", **RECIPE)
    for image, source in zip(written(tmp_path / "ct"), map(pydicom.dcmread, files), strict=True):
        (reference,) = image.SourceImageSequence
        assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (source.SOPClassUID, source.SOPInstanceUID)
        assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert image.ImagePositionPatient == source.ImagePositionPatient
        assert image.AcquisitionTime == source.AcquisitionTime


def test_references_of_headers_without_uids_come_from_the_file_meta_information(tmp_path: Path) -> None:
    slices = mr_series(tmp_path / "source", SOPClassUID="", SOPInstanceUID="", without=("StudyInstanceUID",))
    for name, model in (("one", "a"), ("other", "b")):
        dicom_write.write(synthetic_ct(slices), tmp_path / name, **(RECIPE | {"model": model}))
    one, other = written(tmp_path / "one")[1], written(tmp_path / "other")[1]
    assert one.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4.2"
    assert one.StudyInstanceUID == other.StudyInstanceUID


def test_the_series_says_that_it_is_synthetic_and_what_made_it(files: list[Path], tmp_path: Path) -> None:
    dicom_write.write(synthetic_ct(files), tmp_path / "ct", **(RECIPE | {"model": "modèle\\" + "x" * 80}))
    image = written(tmp_path / "ct")[0]
    scanner, processor = image.ContributingEquipmentSequence
    assert image.SeriesDescription == "Synthetic CT, research only: mod?le/" + "x" * 28
    assert RECIPE["model_sha256"] in image.DerivationDescription
    assert RECIPE["settings"] in image.DerivationDescription
    assert (scanner.Manufacturer, scanner.InstitutionName) == ("ACME", "Klinik für Köpfe")
    assert (processor.Manufacturer, image.Manufacturer, image.SeriesNumber) == ("medsynth", "medsynth", 701)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_patient_and_study_are_copied_and_nothing_private_or_of_mr(syntax: UID, tmp_path: Path) -> None:
    coded = Dataset()
    coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning = "113100", "DCM", "Basic Application Confidentiality Profile"
    coded.private_block(0x0019, "ACME", create=True).add_new(0x10, "LO", "secret")
    slices = mr_series(tmp_path / "source", syntax=syntax, PatientIdentityRemoved="YES", DeidentificationMethodCodeSequence=[coded])
    dicom_write.write(synthetic_ct(slices), tmp_path / "ct", **RECIPE)
    image, source = written(tmp_path / "ct")[0], pydicom.dcmread(slices[0])
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "PatientWeight",
        "PregnancyStatus",
        "StudyID",
        "StudyDate",
    ):
        assert image[keyword] == source[keyword]
    assert image.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert not any(element.tag.is_private for element in image.iterall())
    assert not any(keyword in image for keyword in ("RepetitionTime", "EchoTime", "MagneticFieldStrength", "ScanningSequence"))


@pytest.mark.parametrize(("character_set", "name"), NAMES)
def test_names_in_any_character_set_keep_their_bytes(character_set: str | list[str], name: str, tmp_path: Path) -> None:
    slices = mr_series(tmp_path / "source", SpecificCharacterSet=character_set, PatientName=name, InstitutionName=name)
    dicom_write.write(synthetic_ct(slices), tmp_path / "ct", **RECIPE)
    image, source = written(tmp_path / "ct")[0], pydicom.dcmread(slices[0])
    assert image.get_item("PatientName").value == source.get_item("PatientName").value
    assert (image.SpecificCharacterSet, image.PatientName) == (character_set, name)
    assert image.ContributingEquipmentSequence[0].InstitutionName == name


def test_a_name_that_its_character_set_cannot_hold_keeps_its_bytes(tmp_path: Path) -> None:
    slices = mr_series(tmp_path / "source", PatientName="Müller^Jörg", PatientComments="ISO_IR 100")
    for path in slices:
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 192"))
    dicom_write.write(synthetic_ct(slices), tmp_path / "ct", **RECIPE)
    assert all("Müller^Jörg".encode("latin-1") in data for data in contents(tmp_path / "ct").values())


@pytest.mark.parametrize("thickness", ["0", "", None])
def test_a_slice_without_thickness_gets_the_distance_of_the_slices(thickness: str | None, tmp_path: Path) -> None:
    dicom_write.write(synthetic_ct(mr_series(tmp_path / "source", SliceThickness=thickness)), tmp_path / "ct", **RECIPE)
    image = written(tmp_path / "ct")[0]
    assert (image.SliceThickness, image.SpacingBetweenSlices) == (2.5, 2.5)


def test_decimals_that_are_too_long_are_shortened(files: list[Path], tmp_path: Path) -> None:
    ct = synthetic_ct(files)
    for path in files:
        path.write_bytes(path.read_bytes().replace(b"DS\x0a\x000.75\\1.25 ", b"DS\x1a\x000.7500000000000000004\\1.25"))
    dicom_write.write(ct, tmp_path / "ct", **RECIPE)
    assert pydicom.dcmread(files[0]).get_item("PixelSpacing").value == b"0.7500000000000000004\\1.25"
    assert written(tmp_path / "ct")[0].get_item("PixelSpacing").value == b"0.75\\1.25 "


def test_lossy_compression_of_one_slice_marks_all(files: list[Path], tmp_path: Path) -> None:
    source = pydicom.dcmread(files[2])
    source.LossyImageCompression, source.LossyImageCompressionRatio, source.LossyImageCompressionMethod = "01", "12.5", "ISO_15444_1"
    source.save_as(files[2])
    dicom_write.write(synthetic_ct(files), tmp_path / "ct", **RECIPE)
    images = written(tmp_path / "ct")
    assert {(image.LossyImageCompression, image.LossyImageCompressionRatio) for image in images} == {("01", 12.5)}


def test_burned_in_text_is_refused_unless_allowed(tmp_path: Path) -> None:
    ct = synthetic_ct(mr_series(tmp_path / "source", BurnedInAnnotation="YES"))
    with pytest.raises(ScanError, match="E-BURNEDIN"):
        dicom_write.write(ct, tmp_path / "ct", **RECIPE)
    dicom_write.write(ct, tmp_path / "ct", **RECIPE, allow_burned_in=True)
    assert {image.BurnedInAnnotation for image in written(tmp_path / "ct")} == {"YES"}


def test_a_grid_that_is_not_the_slices_is_refused(files: list[Path], tmp_path: Path) -> None:
    ct = synthetic_ct(files)
    shifted, sheared = ct.affine_ras.copy(), ct.affine_ras.copy()
    shifted[0, 3] += 0.5
    sheared[:3, 2] += 0.1 * ct.affine_ras[:3, 1]
    refused = [
        replace(ct, array=np.repeat(ct.array, 2, axis=2)),
        replace(ct, array=ct.array.transpose(1, 0, 2)),
        replace(ct, affine_ras=shifted),
        replace(ct, affine_ras=sheared),
        replace(ct, origin=replace(ct.origin, files=tuple(reversed(files)))),
        replace(ct, origin=replace(ct.origin, kind="nifti")),
    ]
    for volume in refused:
        with pytest.raises(ScanError, match=r"E-GRID[\s\S]*NIfTI"):
            dicom_write.write(volume, tmp_path / "ct", **RECIPE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_slices_a_little_off_an_even_grid_keep_their_own_positions(files: list[Path], tmp_path: Path) -> None:
    source = pydicom.dcmread(files[1])
    moved = np.array(source.ImagePositionPatient, float) + 0.25 * np.cross(ROW, COLUMN)
    source.ImagePositionPatient = [format_number_as_ds(float(x)) for x in moved]
    source.save_as(files[1])
    dicom_write.write(synthetic_ct(files), tmp_path / "ct", **RECIPE)
    assert written(tmp_path / "ct")[1].ImagePositionPatient == source.ImagePositionPatient


def test_slices_without_position_are_refused(files: list[Path], tmp_path: Path) -> None:
    ct = synthetic_ct(files)
    source = pydicom.dcmread(files[1])
    del source.ImagePositionPatient
    source.save_as(files[1])
    with pytest.raises(ScanError, match="E-GRID"):
        dicom_write.write(ct, tmp_path / "ct", **RECIPE)


def test_nan_is_refused(files: list[Path], tmp_path: Path) -> None:
    ct = synthetic_ct(files)
    ct.array[3, 2, 1] = np.nan
    with pytest.raises(ScanError, match="E-VALUES"):
        dicom_write.write(ct, tmp_path / "ct", **RECIPE)


def test_a_failure_leaves_the_earlier_result_and_nothing_else(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom_write.write(synthetic_ct(files), tmp_path / "ct", **RECIPE)
    before, save = contents(tmp_path / "ct"), Dataset.save_as

    def fail_on_third(self: Dataset, path: Path, **options: Any) -> None:
        if path.name == "ct_0003.dcm":
            raise OSError("no space left on device")
        save(self, path, **options)

    monkeypatch.setattr(Dataset, "save_as", fail_on_third)
    with pytest.raises(OSError, match="no space"):
        dicom_write.write(synthetic_ct(files, seed=1), tmp_path / "ct", **RECIPE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct", "source"]
    assert contents(tmp_path / "ct") == before


def test_a_result_replaces_an_earlier_one_and_what_a_killed_run_left(files: list[Path], tmp_path: Path) -> None:
    dicom_write.write(synthetic_ct(files), tmp_path / "ct", **RECIPE)
    for leftover in (".medsynth-part-ct", ".medsynth-old-ct"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "ct_0099.dcm").touch()
    dicom_write.write(synthetic_ct(files[:3]), tmp_path / "ct", **RECIPE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ct", "source"]
    assert sorted(contents(tmp_path / "ct")) == ["ct_0001.dcm", "ct_0002.dcm", "ct_0003.dcm"]


def test_folders_with_anything_else_are_never_replaced(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    for folder in (tmp_path / "mine", tmp_path / "source", tmp_path, files[0]):
        with pytest.raises(UsageError, match="E-OUTPUT"):
            dicom_write.write(synthetic_ct(files), folder, **RECIPE)
    assert all(path.exists() for path in (*files, tmp_path / "mine" / "notes.txt"))


def test_a_series_of_ours_is_never_replaced_by_what_is_made_from_it(files: list[Path], tmp_path: Path) -> None:
    dicom_write.write(synthetic_ct(files), tmp_path / "ct", **RECIPE)
    with pytest.raises(UsageError, match="E-OUTPUT"):
        dicom_write.write(synthetic_ct(sorted((tmp_path / "ct").iterdir())), tmp_path / "ct", **RECIPE)


def mr_series(folder: Path, *, syntax: UID = ExplicitVRLittleEndian, without: tuple[str, ...] = (), **attributes: Any) -> list[Path]:
    """Four slices of an oblique MR series, in the order of z; attributes replace those of every slice."""
    folder.mkdir()
    paths = [folder / f"slice {k}" for k in range(4)]
    for k, path in enumerate(paths):
        mr = mr_slice(k)
        for keyword, value in attributes.items():
            setattr(mr, keyword, value)
        for keyword in without:
            delattr(mr, keyword)
        mr.file_meta = FileMetaDataset()
        mr.file_meta.TransferSyntaxUID = syntax
        mr.file_meta.MediaStorageSOPClassUID, mr.file_meta.MediaStorageSOPInstanceUID = MRImageStorage, f"1.2.3.4.{k + 1}"
        mr.save_as(path, enforce_file_format=True)
    return paths


def mr_slice(k: int) -> Dataset:
    mr = Dataset()
    mr.SpecificCharacterSet, mr.ImageType = "ISO_IR 100", ["ORIGINAL", "PRIMARY", "M"]
    mr.SOPClassUID, mr.SOPInstanceUID, mr.Modality, mr.Manufacturer = MRImageStorage, f"1.2.3.4.{k + 1}", "MR", "ACME"
    mr.ManufacturerModelName, mr.InstitutionName = "Scan-O-Mat", "Klinik für Köpfe"
    mr.PatientName, mr.PatientID, mr.PatientBirthDate, mr.PatientSex, mr.PatientWeight = "Doe^Jane", "4711", "19700101", "F", "60"
    mr.StudyInstanceUID, mr.SeriesInstanceUID, mr.FrameOfReferenceUID = "1.2.3.1", "1.2.3.2", "1.2.3.3"
    mr.StudyDate, mr.StudyTime, mr.StudyID, mr.AccessionNumber, mr.ReferringPhysicianName = "20240229", "101112", "S1", "A1", ""
    mr.SeriesNumber, mr.AcquisitionNumber, mr.InstanceNumber, mr.AcquisitionTime = 7, 1, 40 - k, f"1011{k:02d}"
    mr.BodyPartExamined, mr.PatientPosition, mr.PositionReferenceIndicator, mr.PregnancyStatus = "HEAD", "HFS", "", 4
    mr.RepetitionTime, mr.EchoTime, mr.MagneticFieldStrength, mr.ScanningSequence = "1900", "2.5", "3", "GR"
    mr.private_block(0x0019, "ACME", create=True).add_new(0x10, "LO", "secret")
    position = np.array([-31.25, 12.5, 100.0]) + 2.5 * k * np.cross(ROW, COLUMN)
    mr.ImagePositionPatient = [format_number_as_ds(float(x)) for x in position]
    mr.ImageOrientationPatient = [format_number_as_ds(float(x)) for x in (*ROW, *COLUMN)]
    mr.SliceThickness, mr.PixelSpacing, mr.Rows, mr.Columns = "2", ["0.75", "1.25"], ROWS, COLUMNS
    mr.SamplesPerPixel, mr.PhotometricInterpretation = 1, "MONOCHROME2"
    mr.BitsAllocated, mr.BitsStored, mr.HighBit, mr.PixelRepresentation = 16, 12, 11, 0
    mr.add_new("PixelData", "OW", bytes(2 * COLUMNS * ROWS))
    return mr


def real_slices(folder: Path, count: int) -> list[Path]:
    """The first slices of a series along its normal."""
    geometry: list[Any] = ["ImagePositionPatient", "ImageOrientationPatient"]
    headers = {path: pydicom.dcmread(path, stop_before_pixels=True, specific_tags=geometry) for path in folder.iterdir()}
    orientation = np.array(next(iter(headers.values())).ImageOrientationPatient, float)
    normal = np.cross(orientation[:3], orientation[3:])
    return sorted(headers, key=lambda path: float(normal @ np.array(headers[path].ImagePositionPatient, float)))[:count]


def synthetic_ct(slices: list[Path], *, seed: int = 0) -> Volume:
    """Random HU on the grid of the slices, whose headers give the affine."""
    first, last = (pydicom.dcmread(path, stop_before_pixels=True) for path in (slices[0], slices[-1]))
    orientation = np.array(first.ImageOrientationPatient, float)
    start, end = (np.array(header.ImagePositionPatient, float) for header in (first, last))
    steps_mm = [orientation[:3] * first.PixelSpacing[1], orientation[3:] * first.PixelSpacing[0], (end - start) / (len(slices) - 1)]
    affine_lps = np.eye(4)
    affine_lps[:3] = np.stack([*steps_mm, start], axis=1)
    array = np.random.default_rng(seed).integers(-1024, 3000, (first.Columns, first.Rows, len(slices))).astype(np.float32)
    origin = Origin(kind="dicom", case="scan", files=tuple(slices))
    return Volume(array=array, affine_ras=np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps, origin=origin)


def affine_ras(image: sitk.Image) -> np.ndarray:
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine_lps[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_lps


def written(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(path) for path in sorted(folder.iterdir())]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def dciodvfy_errors(folder: Path) -> list[str]:
    runs = [subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False) for path in folder.iterdir()]
    lines = [line for run in runs for line in (run.stdout + run.stderr).splitlines()]
    assert lines.count("CTImage") == len(runs), "dciodvfy did not take every file for a CT image"
    return [line for line in lines if "Error" in line]
