"""DICOM series: geometry from the headers alone, whatever the files are called; gaps, tilt and mixtures are found, values are exact."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from scipy import ndimage

from medsynth.core.errors import ScanError
from medsynth.core.volume import Volume
from medsynth.scans import dicom

OBLIQUE = np.array([[0.8, 0.6, 0], [-0.48, 0.64, 0.6]])  # directions of the rows and of the columns, in LPS
STEP_MM = 2.5


def _header(**tags: Any) -> Dataset:
    """What every image here has: 12 bits, 3 rows of 2 mm, 4 columns of 1 mm, in the axial plane."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid()
    header.SeriesInstanceUID, header.StudyInstanceUID = "1.2.3.4", "1.2.3"
    header.PatientName, header.PatientID, header.Modality = "Doe^Jane", "MRN-4711", "CT"
    header.Rows, header.Columns, header.PixelSpacing, header.SliceThickness = 3, 4, [2, 1], STEP_MM
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.ImageOrientationPatient, header.RescaleSlope, header.RescaleIntercept = [1, 0, 0, 0, 1, 0], 1, -1024
    for tag, value in tags.items():
        if value is None:
            delattr(header, tag)
        else:
            setattr(header, tag, value)
    return header


def _save(header: Dataset, stored: np.ndarray, path: Path) -> Path:
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.PixelData = stored.astype("<u2").tobytes()
    header.save_as(path, enforce_file_format=True)
    return path


def _stored(n: int) -> np.ndarray:
    """[z y x], all values different."""
    return np.arange(n * 12).reshape(n, 3, 4) * 7 % 4096


def _series(
    folder: Path, n: int = 6, leave_out: tuple[int, ...] = (), step: tuple[float, float, float] = (0, 0, STEP_MM), **tags: Any
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for k in range(n):
        header = _header(InstanceNumber=k + 1, ImagePositionPatient=[10 + k * step[0], 20 + k * step[1], 30 + k * step[2]], **tags)
        files.append(_save(header, _stored(n)[k], folder / f"{(k * 5 + 3) % 97:02d}"))
    return [file for k, file in enumerate(files) if k not in leave_out]


def _hu(n: int = 6) -> np.ndarray:
    return (_stored(n) - 1024).T


def _refused(code: str, files: list[Path], **choices: Any) -> ScanError:
    """The error, which must not say who the patient is or where the files lie."""
    with pytest.raises(ScanError) as caught:
        dicom.read(files, case="series", **choices)
    assert caught.value.code == code
    assert not any(secret in str(caught.value) for secret in ("Doe", "4711", str(files[0].parent)))
    return caught.value


@pytest.mark.parametrize("name", ["mr_prostate_ProstateX-0000/adc", "mr_prostate_ProstateX-0000/t2_tra", "ct_abdomen_j2k"])
def test_real_series_agrees_with_simpleitk(shared_data: Path, name: str) -> None:
    volume = dicom.read(sorted((shared_data / "dicom" / name).iterdir()), case="series")
    image = sitk.ReadImage([str(file) for file in volume.origin.files])
    np.testing.assert_array_equal(volume.array, sitk.GetArrayViewFromImage(image).T)
    for index in [(0, 0, 0), tuple(n - 1 for n in image.GetSize())]:
        lps = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(volume.affine_ras @ [*index, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-4)
    assert volume.origin.modality == name[:2].upper()
    assert volume.array.dtype == np.float32


def test_position_decides_the_order_not_names_or_numbers(tmp_path: Path) -> None:
    files = _series(tmp_path)
    volume = dicom.read(sorted(files), case="series")
    np.testing.assert_array_equal(volume.array, _hu())
    np.testing.assert_allclose(volume.affine_ras, [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, STEP_MM, 30], [0, 0, 0, 1]])
    assert volume.origin.files == tuple(files)
    assert (volume.origin.modality, volume.origin.series, volume.origin.notes) == ("CT", "1.2.3.4", ())


def test_oblique_series_keeps_its_grid(tmp_path: Path) -> None:
    normal = np.cross(*OBLIQUE)
    files = _series(tmp_path, step=tuple(-STEP_MM * normal), ImageOrientationPatient=OBLIQUE.ravel().tolist())
    volume = dicom.read(files, case="series")
    np.testing.assert_array_equal(volume.array, _hu()[:, :, ::-1])  # upwards along the normal
    steps_lps = np.column_stack([OBLIQUE[0], 2 * OBLIQUE[1], STEP_MM * normal])
    np.testing.assert_allclose(volume.affine_ras[:3, :3], np.diag([-1, -1, 1]) @ steps_lps, atol=1e-9)
    assert volume.origin.notes == ()


def test_missing_slice_is_named(tmp_path: Path) -> None:
    error = _refused("E-GAP", _series(tmp_path, leave_out=(2,)))
    assert "1 missing slice between instances 2 and 4 (positions 32.50 and 37.50 mm); the others are 2.5 mm apart" in error.cause
    assert "--allow-gaps" in error.remedy


def test_missing_slices_of_a_real_series_are_interpolated_when_allowed(shared_data: Path) -> None:
    files = sorted((shared_data / "dicom" / "mr_prostate_ProstateX-0000" / "adc").iterdir())
    whole = dicom.read(files, case="series")
    kept = [file for k, file in enumerate(whole.origin.files) if k not in (4, 9, 10)]
    _refused("E-GAP", kept)
    volume = dicom.read(kept, case="series", allow_gaps=True)
    np.testing.assert_allclose(volume.affine_ras, whole.affine_ras, atol=1e-3)
    present = [k for k in range(19) if k not in (4, 9, 10)]
    np.testing.assert_allclose(volume.array[:, :, present], whole.array[:, :, present], atol=0.1)
    np.testing.assert_allclose(volume.array[:, :, 4], (whole.array[:, :, 3] + whole.array[:, :, 5]) / 2, atol=0.1)
    np.testing.assert_allclose(volume.array[:, :, 9], (2 * whole.array[:, :, 8] + whole.array[:, :, 11]) / 3, atol=0.1)
    assert "3 missing slices" in volume.origin.notes[0]
    assert "interpolated to 19 slices from 16" in volume.origin.notes[0]


def test_uneven_distances_are_not_averaged(tmp_path: Path) -> None:
    files = _series(tmp_path)
    for k, file in enumerate(files):
        header = pydicom.dcmread(file)
        header.ImagePositionPatient = [10, 20, 30 + round(k**1.3, 4)]
        header.save_as(file)
    assert "unevenly spaced, 1 to 2.04 mm apart" in _refused("E-GAP", files).cause
    volume = dicom.read(files, case="series", allow_gaps=True)
    last_mm = volume.affine_ras[2, 3] + volume.affine_ras[2, 2] * (volume.shape[2] - 1)
    assert last_mm == pytest.approx(30 + 5**1.3, abs=1e-3)


def test_more_missing_than_present_is_refused_even_if_gaps_are_allowed(tmp_path: Path) -> None:
    error = _refused("E-GAP", _series(tmp_path, n=20, leave_out=tuple(range(3, 19))), allow_gaps=True)
    assert "more slices are missing than there are" in error.cause


def test_tilt_of_a_real_scanner_is_removed_slice_by_slice(shared_data: Path) -> None:
    files = sorted((shared_data / "dicom" / "ct_headphantom_tilt").iterdir())
    volume = dicom.read(files, case="phantom")
    assert volume.origin.notes == ("gantry tilt of 18.5 degrees: resampled to a right-angled grid",)
    directions = volume.affine_ras[:3, :3] / volume.spacing_mm
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(volume.spacing_mm, [0.482421875, 0.482421875, 2.5 * np.cos(np.radians(18.5))], atol=1e-4)
    for k in (0, 5, 11):
        _lies_where_its_header_says(volume, k)


def _lies_where_its_header_says(volume: Volume, k: int) -> None:
    """Values of slice k at points in mm, from the file's own header, are found at the same points of the volume."""
    path = volume.origin.files[k]
    header = pydicom.dcmread(path, stop_before_pixels=True)
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
    columns, rows = np.random.default_rng(0).uniform(100, 400, (2, 200))
    x, y = np.reshape([float(v) for v in header.ImageOrientationPatient], (2, 3))
    dy, dx = (float(v) for v in header.PixelSpacing)
    lps = np.array([float(v) for v in header.ImagePositionPatient])[:, None] + np.outer(x * dx, columns) + np.outer(y * dy, rows)
    index = np.linalg.solve(volume.affine_ras, np.vstack([-lps[0], -lps[1], lps[2], np.ones(200)]))[:3]
    np.testing.assert_allclose(index[2], k, atol=1e-3)
    smooth = ndimage.gaussian_filter(values.astype(float), 3)
    found = ndimage.map_coordinates(ndimage.gaussian_filter(volume.array[:, :, k].astype(float), 3), index[:2], order=1)
    np.testing.assert_allclose(found, ndimage.map_coordinates(smooth, [rows, columns], order=1), atol=12)


def test_tilt_to_either_side_loses_no_voxel(tmp_path: Path) -> None:
    for name, drift_mm in (("up", 2.0), ("down", -2.0)):  # one row a slice
        volume = dicom.read(_series(tmp_path / name, step=(0, drift_mm, STEP_MM)), case="series")
        assert volume.shape == (4, 3 + 5, 6)
        for k in range(6):
            start = k if drift_mm > 0 else 5 - k
            np.testing.assert_allclose(volume.array[:, start : start + 3, k], _hu()[:, :, k], atol=1e-3)
        first_row_mm = 20 if drift_mm > 0 else 20 - 10
        np.testing.assert_allclose(
            volume.affine_ras, [[-1, 0, 0, -10], [0, -2, 0, -first_row_mm], [0, 0, STEP_MM, 30], [0, 0, 0, 1]], atol=1e-6
        )
        assert "38.7 degrees" in volume.origin.notes[0]


def test_gap_in_a_tilted_stack_is_filled_on_the_right_angled_grid(tmp_path: Path) -> None:
    volume = dicom.read(_series(tmp_path, step=(0, 2.0, STEP_MM), leave_out=(3,)), case="series", allow_gaps=True)
    assert volume.shape == (4, 8, 6)
    np.testing.assert_allclose(volume.array[:, 4, 3], (_hu()[:, 2, 2] + _hu()[:, 0, 4]) / 2, atol=1e-3)
    assert len(volume.origin.notes) == 2


def test_copies_of_the_same_slice_are_left_out(tmp_path: Path) -> None:
    files = _series(tmp_path)
    copy = tmp_path / "03 (copy)"
    copy.write_bytes(files[0].read_bytes())
    volume = dicom.read([*files, copy], case="series")
    np.testing.assert_array_equal(volume.array, _hu())
    assert volume.origin.notes == ("second copies of slices left out: 1",)


def test_several_echoes_must_be_chosen_from(tmp_path: Path) -> None:
    files = _series(tmp_path / "a", n=4) + _series(tmp_path / "b", n=4, RescaleIntercept=0)
    for file in files[4:]:
        header = pydicom.dcmread(file)
        header.InstanceNumber += 4
        header.save_as(file)
    error = _refused("E-DIM", files)
    assert "series holds 2 volumes" in error.cause
    assert "--volume K, with K from 0 to 1" in error.remedy
    np.testing.assert_array_equal(dicom.read(files, case="series", volume=1).array, _hu(4) + 1024)


def test_overlapping_acquisitions_are_refused(tmp_path: Path) -> None:
    files = _series(tmp_path / "a", n=4) + _series(tmp_path / "b", n=4)[1:]
    assert "1 to 2 slices at one position" in _refused("E-SERIES", files).cause


def test_localiser_planes_are_no_stack(tmp_path: Path) -> None:
    files = _series(tmp_path / "a", n=3) + _series(tmp_path / "b", n=3, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    assert "different orientation" in _refused("E-SERIES", files).cause


@pytest.mark.parametrize("tags", [{"PixelSpacing": [2, 1.5]}, {"Rows": 4, "Columns": 3}])
def test_slices_of_different_size_are_no_stack(tmp_path: Path, tags: dict[str, Any]) -> None:
    files = _series(tmp_path / "a", n=3) + _series(tmp_path / "b", n=6, leave_out=(0, 1, 2), **tags)
    assert "different size" in _refused("E-SERIES", files).cause


def test_slice_beside_the_line_is_refused(tmp_path: Path) -> None:
    files = _series(tmp_path)
    header = pydicom.dcmread(files[2])
    header.ImagePositionPatient = [14, 20, float(header.ImagePositionPatient[2])]
    header.save_as(files[2])
    assert "straight line" in _refused("E-SERIES", files).cause


@pytest.mark.parametrize(
    "tags", [{"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, {"ImageOrientationPatient": [0] * 6}, {"PixelSpacing": [0, 1]}]
)
def test_impossible_orientation_is_refused(tmp_path: Path, tags: dict[str, Any]) -> None:
    _refused("E-GEOMETRY", _series(tmp_path, **tags))


def test_inverted_and_colour_images_are_refused(tmp_path: Path) -> None:
    assert "MONOCHROME1" in _refused("E-MODALITY", _series(tmp_path / "a", PhotometricInterpretation="MONOCHROME1")).cause
    assert "PALETTE COLOR" in _refused("E-DIM", _series(tmp_path / "b", PhotometricInterpretation="PALETTE COLOR")).cause


def test_odd_but_readable_headers_give_no_warnings(tmp_path: Path) -> None:
    """Warnings are errors in these tests; pydicom would warn of long decimals and odd identifiers, and quote them."""
    files = _series(tmp_path, RescaleSlope="1.5")
    for file in files:
        data = file.read_bytes()
        odd = data.replace(b"1.2.3.4\0", b"1.02.3.x").replace(b"DS\x04\x001.5 ", b"DS\x14\x001.500000000000000000")
        assert len(odd) == len(data) + 16
        file.write_bytes(odd)
    volume = dicom.read(files, case="series")
    assert volume.origin.series == "1.02.3.x"
    np.testing.assert_array_equal(volume.array, _stored(6).T * 1.5 - 1024)


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    files = _series(tmp_path, Modality="PT", RescaleIntercept=0)
    slopes = [0.125, 0.5, 1, 2, 0.25, 3]
    for file, slope in zip(files, slopes, strict=True):
        header = pydicom.dcmread(file)
        header.RescaleSlope = slope
        header.save_as(file)
    np.testing.assert_allclose(dicom.read(files, case="series").array, _stored(6).T * slopes, rtol=1e-6)


@pytest.mark.parametrize(("modality", "noted"), [("CT", True), ("MR", False)])
def test_missing_slope_is_noted_where_values_have_a_unit(tmp_path: Path, modality: str, noted: bool) -> None:
    volume = dicom.read(_series(tmp_path, Modality=modality, RescaleSlope=None, RescaleIntercept=None), case="series")
    np.testing.assert_array_equal(volume.array, _stored(6).T)
    assert ("no Rescale Slope" in "".join(volume.origin.notes)) == noted


def test_single_slice_is_one_voxel_thick(tmp_path: Path) -> None:
    volume = dicom.read(_series(tmp_path, n=1), case="series")
    assert volume.shape == (4, 3, 1)
    assert volume.spacing_mm == (1, 2, STEP_MM)
    assert "2.5 mm" in volume.origin.notes[0]


def _noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, (1, 64, 48)).astype(np.uint16)


def test_run_length_encoded_slice_is_decoded(tmp_path: Path) -> None:
    header = _header(InstanceNumber=1, ImagePositionPatient=[0, 0, 0], Rows=64, Columns=48)
    header = pydicom.dcmread(_save(header, _noise(), tmp_path / "slice.dcm"))
    header.compress(RLELossless, generate_instance_uid=False)
    header.save_as(tmp_path / "slice.dcm")
    np.testing.assert_array_equal(dicom.read([tmp_path / "slice.dcm"], case="series").array, _noise().T - 1024.0)


@pytest.mark.parametrize(
    ("compressor", "syntax"),
    [("JPEG2000", pydicom.uid.JPEG2000Lossless), ("JPEG", pydicom.uid.JPEGLosslessSV1)],
)
def test_compressed_slice_is_decoded(tmp_path: Path, compressor: str, syntax: str) -> None:
    image = sitk.GetImageFromArray(_noise())
    for key, value in {"0008|0016": CTImageStorage, "0008|0060": "CT", "0020|0032": "0\\0\\0", "0020|0037": "1\\0\\0\\0\\1\\0"}.items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "slice.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(image)
    assert pydicom.dcmread(tmp_path / "slice.dcm").file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(dicom.read([tmp_path / "slice.dcm"], case="series").array, _noise().T)


def _black_jpeg_ls(rows: int, columns: int) -> bytes:
    """An image of zeros: all lines are runs, whose code is ones (ISO/IEC 14495-1 A.7.1); a zero bit follows each byte of eight ones."""
    orders = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    ones, index = 0, 0
    for _ in range(rows):
        left = columns
        while left >= 1 << orders[index]:
            left, index, ones = left - (1 << orders[index]), min(index + 1, 31), ones + 1
        ones += left > 0
    pairs, rest = divmod(ones, 15)
    bits = ("1" * 8 + "0" + "1" * 7) * pairs + ("1" * rest if rest < 8 else "1" * 8 + "0" + "1" * (rest - 8))
    bits += "0" * (-len(bits) % 8)
    frame = b"\xff\xf7\x00\x0b\x0c" + rows.to_bytes(2, "big") + columns.to_bytes(2, "big") + b"\x01\x01\x11\x00"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    return b"\xff\xd8" + frame + scan + b"\xff\xd9"


def test_jpeg_ls_slice_is_decoded(tmp_path: Path) -> None:
    header = _header(InstanceNumber=1, ImagePositionPatient=[0, 0, 0], Rows=64, Columns=48)
    header.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    header.file_meta.MediaStorageSOPClassUID, header.file_meta.MediaStorageSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    header.PixelData = pydicom.encaps.encapsulate([_black_jpeg_ls(64, 48)])
    header["PixelData"].VR = "OB"
    header.save_as(tmp_path / "slice.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(dicom.read([tmp_path / "slice.dcm"], case="series").array, np.full((48, 64, 1), -1024))


def _group(sequence: str, **tags: Any) -> Dataset:
    item, group = Dataset(), Dataset()
    for tag, value in tags.items():
        setattr(item, tag, value)
    setattr(group, sequence, [item])
    return group


def test_enhanced_multiframe_image_is_read_frame_by_frame(tmp_path: Path) -> None:
    """Frames stored in any order, each with a slope of its own."""
    order, slopes = [3, 0, 4, 1, 2], [1, 2, 0.5, 4, 1]
    header = _header(SOPClassUID=EnhancedMRImageStorage, Modality="MR", NumberOfFrames=5, ImageOrientationPatient=None, PixelSpacing=None)
    del header.SliceThickness, header.RescaleSlope, header.RescaleIntercept
    shared = _group("PixelMeasuresSequence", PixelSpacing=[2, 1], SliceThickness=STEP_MM)
    shared.update(_group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    header.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k, slope in zip(order, slopes, strict=True):
        frame = _group("PlanePositionSequence", ImagePositionPatient=[10, 20, 30 + k * STEP_MM])
        frame.update(_group("PixelValueTransformationSequence", RescaleSlope=slope, RescaleIntercept=-5, RescaleType="US"))
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = frames
    path = _save(header, _stored(5), tmp_path / "enhanced.dcm")
    volume = dicom.read([path], case="enhanced")
    expected = (_stored(5) * np.reshape(slopes, (5, 1, 1)) - 5)[np.argsort(order)]
    np.testing.assert_allclose(volume.array, expected.T)
    np.testing.assert_allclose(volume.affine_ras, [[-1, 0, 0, -10], [0, -2, 0, -20], [0, 0, STEP_MM, 30], [0, 0, 0, 1]])
    assert volume.origin.files == (path,)


def test_truncated_slice_is_refused_by_name(tmp_path: Path) -> None:
    files = _series(tmp_path)
    files[3].write_bytes(files[3].read_bytes()[:-8])
    error = _refused("E-READ", files)
    assert files[3].name in error.cause


def test_what_is_no_plane_of_a_scan_is_no_slice(tmp_path: Path) -> None:
    folder = tmp_path / "others"
    for tags in (
        {"SOPClassUID": SecondaryCaptureImageStorage},
        {"Modality": "RTDOSE"},
        {"Modality": "SEG"},
        {"PixelSpacing": None},
        {"NumberOfFrames": 3},
    ):
        file = _series(folder, n=1, **tags)[0]
        assert dicom.is_dicom(file)
        assert dicom.slices(file) == []
    assert "no image plane" in _refused("E-READ", [file]).cause


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_damaged_header_is_no_slice(tmp_path: Path) -> None:
    whole = _series(tmp_path, n=1)[0].read_bytes()
    for length in range(100, 500, 20):
        (tmp_path / "part").write_bytes(whole[:length])
        assert dicom.slices(tmp_path / "part") == []


def test_file_without_preamble_is_dicom(tmp_path: Path) -> None:
    file = _series(tmp_path, n=1)[0]
    header = pydicom.dcmread(file)
    del header.file_meta, header.preamble
    pydicom.dcmwrite(tmp_path / "old", header, implicit_vr=True, little_endian=True)
    assert dicom.is_dicom(tmp_path / "old")
    np.testing.assert_array_equal(dicom.read([tmp_path / "old"], case="old").array[:, :, 0], _stored(1)[0].T - 1024)
