"""NIfTI and MGH: what is read agrees with nibabel and SimpleITK, what tools get wrong is refused, what is written comes back."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medsynth.core.errors import ScanError
from medsynth.core.volume import Origin, Volume
from medsynth.scans import nifti
from medsynth.scans.files import replacing

AFFINES = {
    "mirrored": np.array([[-1.5, 0, 0, 40], [0, 2, 0, -30], [0, 0, 3, 5], [0, 0, 0, 1.0]]),
    "permuted": np.array([[0, 0, 3, 5], [0, -2, 0, 30], [1.5, 0, 0, -40], [0, 0, 0, 1.0]]),
    "oblique": np.array([[0.8, -0.6, 0, 1], [0.6, 0.8, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1.0]]) @ np.diag([1.5, 2, 3, 1]),
}
SHEARED = np.array([[1, 0.2, 0, -3], [0, 1, 0.3, 4], [0, 0, 2, 5], [0, 0, 0, 1.0]])


def _array(shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 3000, shape).astype(np.int16)


def _volume(array: np.ndarray, affine: np.ndarray = AFFINES["oblique"]) -> Volume:
    return Volume(array=array, affine_ras=affine, origin=Origin(kind="nifti", case="scan", files=()))


def _with_forms(path: Path, qform: tuple[np.ndarray, int], sform: tuple[np.ndarray, int]) -> Path:
    image = nib.Nifti1Image(_array(), np.eye(4))
    image.set_sform(*sform)
    image.set_qform(*qform)
    nib.save(image, path)
    return path


def _moved(affine: np.ndarray, mm: float) -> np.ndarray:
    return affine + np.array([[0, 0, 0, mm], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("affine", [*AFFINES.values(), SHEARED], ids=[*AFFINES, "sheared"])
def test_array_and_affine_are_those_of_the_header(tmp_path: Path, affine: np.ndarray, name: str) -> None:
    nib.save(nib.Nifti1Image(_array(), affine), tmp_path / name)
    volume = nifti.read(tmp_path / name, case="scan")
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, _array())
    np.testing.assert_allclose(volume.affine_ras, affine, rtol=1e-6)


def test_real_scan_lies_where_nibabel_and_simpleitk_put_it(shared_data: Path) -> None:
    path = shared_data / "mr" / "UIH_T1w_1mm.nii.gz"
    volume = nifti.read(path, case="scan")
    np.testing.assert_array_equal(volume.affine_ras, nib.load(path).affine)
    image = sitk.ReadImage(str(path))
    corner = [n - 1 for n in volume.shape]
    lps = image.TransformIndexToPhysicalPoint(corner)
    np.testing.assert_allclose(volume.affine_ras @ [*corner, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-3)
    np.testing.assert_array_equal(volume.array, sitk.GetArrayViewFromImage(image).T)


def test_mgz_is_read_like_nibabel(shared_data: Path) -> None:
    path = shared_data / "mr" / "mne_ecog" / "T1.mgz"
    volume = nifti.read(path, case="T1")
    image = nib.load(path)
    np.testing.assert_array_equal(volume.affine_ras, image.affine)
    np.testing.assert_array_equal(volume.array[:, 100], np.asarray(image.dataobj)[:, 100])
    assert volume.origin.kind == "nifti"


def test_disagreeing_orientations_are_refused_with_their_distance(tmp_path: Path) -> None:
    path = _with_forms(tmp_path / "scan.nii", (_moved(AFFINES["oblique"], 20), 1), (AFFINES["oblique"], 1))
    with pytest.raises(ScanError, match=r"scan\.nii: qform and sform differ by 20 mm") as caught:
        nifti.read(path, case="scan")
    assert caught.value.code == "E-FORM"
    assert "--trust" in caught.value.remedy


@pytest.mark.parametrize(("trust", "x_mm"), [("sform", 1.0), ("qform", 21.0)])
def test_trusted_orientation_is_used(tmp_path: Path, trust: nifti.Trust, x_mm: float) -> None:
    path = _with_forms(tmp_path / "scan.nii", (_moved(AFFINES["oblique"], 20), 1), (AFFINES["oblique"], 1))
    assert nifti.read(path, case="scan", trust=trust).affine_ras[0, 3] == pytest.approx(x_mm)


def test_rounding_is_no_disagreement(tmp_path: Path) -> None:
    path = _with_forms(tmp_path / "scan.nii", (_moved(AFFINES["oblique"], 1e-3), 1), (AFFINES["oblique"], 2))
    assert nifti.read(path, case="scan").affine_ras[0, 3] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("qcode", "scode", "x_mm"), [(1, 0, 21.0), (0, 1, 1.0)])
def test_only_an_orientation_with_a_code_counts(tmp_path: Path, qcode: int, scode: int, x_mm: float) -> None:
    path = _with_forms(tmp_path / "scan.nii", (_moved(AFFINES["oblique"], 20), qcode), (AFFINES["oblique"], scode))
    for trust in ("", "sform", "qform"):
        assert nifti.read(path, case="scan", trust=trust).affine_ras[0, 3] == pytest.approx(x_mm)


def test_missing_orientation_is_noted_and_the_spacing_kept(tmp_path: Path) -> None:
    path = _with_forms(tmp_path / "scan.nii", (AFFINES["oblique"], 0), (AFFINES["oblique"], 0))
    volume = nifti.read(path, case="scan")
    assert "no orientation" in volume.origin.notes[0]
    np.testing.assert_allclose(volume.spacing_mm, [1.5, 2, 3], rtol=1e-6)
    np.testing.assert_array_equal(volume.affine_ras, nib.load(path).affine)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("micron", 0.001), ("mm", 1), ("unknown", 1)])
def test_lengths_are_in_mm_whatever_the_header_counts_in(tmp_path: Path, unit: str, factor: float) -> None:
    image = nib.Nifti1Image(_array(), AFFINES["oblique"])
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "scan.nii")
    volume = nifti.read(tmp_path / "scan.nii", case="scan")
    np.testing.assert_allclose(volume.spacing_mm, np.array([1.5, 2, 3]) * factor, rtol=1e-6)
    assert bool(volume.origin.notes) == (factor != 1)


def test_one_volume_of_a_4d_file_must_be_chosen(tmp_path: Path) -> None:
    array = _array((4, 5, 6, 3))
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "bold.nii.gz")
    with pytest.raises(ScanError, match=r"bold\.nii\.gz holds 3 volumes") as caught:
        nifti.read(tmp_path / "bold.nii.gz", case="bold")
    assert (caught.value.code, caught.value.remedy) == ("E-DIM", "choose one: --volume K, with K from 0 to 2")
    np.testing.assert_array_equal(nifti.read(tmp_path / "bold.nii.gz", case="bold", volume=2).array, array[..., 2])
    with pytest.raises(ScanError, match="has no volume 3"):
        nifti.read(tmp_path / "bold.nii.gz", case="bold", volume=3)


@pytest.mark.parametrize("shape", [(4, 5, 6, 1), (4, 5, 6, 1, 1)])
def test_axes_of_length_one_are_no_fourth_dimension(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nib.save(nib.Nifti1Image(_array(shape), np.eye(4)), tmp_path / "scan.nii")
    assert nifti.read(tmp_path / "scan.nii", case="scan").shape == (4, 5, 6)


@pytest.mark.parametrize("shape", [(4, 5, 1), (1, 5, 6), (4, 5)])
def test_thin_images_keep_three_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    nib.save(nib.Nifti1Image(_array(shape), np.eye(4)), tmp_path / "scan.nii")
    assert nifti.read(tmp_path / "scan.nii", case="scan").shape == (*shape, 1)[:3]


def test_values_that_are_no_single_numbers_are_refused(tmp_path: Path) -> None:
    colour = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for what, array in {"colour": colour, "complex": np.zeros((4, 5, 6), np.complex64), "vectors": _array((4, 5, 6, 1, 3))}.items():
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scan.nii")
        with pytest.raises(ScanError, match=f"E-DIM.*{what}"):
            nifti.read(tmp_path / "scan.nii", case="scan", volume=0)


@pytest.mark.parametrize("make", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_versions_and_byte_orders_are_read_with_slope_and_intercept(tmp_path: Path, make: type, order: str) -> None:
    header = make.header_class(endianness=order)
    header.set_data_dtype(np.int16)
    image = make(_array().astype(np.float32) / 4 - 7, AFFINES["oblique"], header)
    nib.save(image, tmp_path / "scan.nii.gz")
    volume = nifti.read(tmp_path / "scan.nii.gz", case="scan")
    np.testing.assert_allclose(volume.array, _array() / 4 - 7, atol=0.05)
    np.testing.assert_allclose(volume.array, nib.load(tmp_path / "scan.nii.gz").get_fdata(), atol=1e-4)


def _damaged() -> dict[str, bytes]:
    whole = nib.Nifti1Image(_array((20, 20, 20)), np.eye(4)).to_bytes()
    packed = gzip.compress(whole)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 255
    return {
        "half.nii.gz": packed[: len(packed) // 2],
        "nochecksum.nii.gz": packed[:-6],
        "header.nii.gz": packed[:40],
        "flipped.nii.gz": bytes(flipped),
        "half.nii": whole[: len(whole) // 2],
        "header.nii": whole[:200],
        "empty.nii.gz": b"",
        "empty.nii": b"",
        "text.nii": b"this is a text file, and a long one at that. " * 40,
        "text.nii.gz": b"short",
        "short.mgz": b"short",
        "half.mgz": gzip.compress(nib.MGHImage(_array((20, 20, 20)), np.eye(4)).to_bytes()[:4000]),
        "text.mgz": b"this is a text file, and a long one at that. " * 40,
    }


@pytest.mark.parametrize("name", _damaged())
def test_damaged_files_are_refused_by_name_without_their_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(_damaged()[name])
    with pytest.raises(ScanError) as caught:
        nifti.read(tmp_path / name, case="scan")
    assert caught.value.code == "E-READ"
    assert name in caught.value.cause
    assert str(tmp_path) not in str(caught.value)


def test_names_with_spaces_and_umlauts_are_read_and_written(tmp_path: Path) -> None:
    path = tmp_path / "Schädel MR 頭.nii.gz"
    nifti.write(_volume(_array().astype(np.float32)), path, dtype="int16")
    np.testing.assert_array_equal(nifti.read(path, case="scan").array, _array())


@pytest.mark.parametrize(("dtype", "low", "high"), [("int16", -32768, 32767), ("uint8", 0, 255)])
def test_integers_do_not_drift(tmp_path: Path, dtype: nifti.Dtype, low: int, high: int) -> None:
    values = np.resize(np.arange(low, high + 1), (64, 64, 16)).astype(np.float32)
    nifti.write(_volume(values), tmp_path / "ct.nii.gz", dtype=dtype)
    image = nib.load(tmp_path / "ct.nii.gz")
    assert image.get_data_dtype() == np.dtype(dtype)
    assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(np.asarray(image.dataobj), values)
    again = nifti.read(tmp_path / "ct.nii.gz", case="scan")
    nifti.write(again, tmp_path / "again.nii.gz", dtype=dtype)
    assert (tmp_path / "again.nii.gz").read_bytes() == (tmp_path / "ct.nii.gz").read_bytes()


def test_fractions_are_rounded_not_cut(tmp_path: Path) -> None:
    nifti.write(_volume(np.full((2, 2, 2), -1000.6, np.float32)), tmp_path / "ct.nii", dtype="int16")
    assert nifti.read(tmp_path / "ct.nii", case="ct").array.max() == -1001


@pytest.mark.parametrize("affine", AFFINES.values(), ids=list(AFFINES))
def test_written_grid_is_the_same_for_nibabel_and_simpleitk(tmp_path: Path, affine: np.ndarray) -> None:
    nifti.write(_volume(_array().astype(np.float32), affine), tmp_path / "ct.nii.gz", dtype="float32")
    header = nib.load(tmp_path / "ct.nii.gz").header
    assert (header["qform_code"], header["sform_code"], header.get_xyzt_units()[0]) == (1, 1, "mm")
    np.testing.assert_allclose(header.get_qform(), affine, atol=1e-5)
    np.testing.assert_allclose(header.get_sform(), affine, atol=1e-5)
    image = sitk.ReadImage(str(tmp_path / "ct.nii.gz"))
    point = image.TransformIndexToPhysicalPoint((4, 5, 6))
    np.testing.assert_allclose(np.array(point) * [-1, -1, 1], (affine @ [4, 5, 6, 1])[:3], atol=1e-4)


def test_sheared_grid_is_written_as_sform_alone(tmp_path: Path) -> None:
    nifti.write(_volume(_array().astype(np.float32), SHEARED), tmp_path / "ct.nii", dtype="int16")
    header = nib.load(tmp_path / "ct.nii").header
    assert (header["qform_code"], header["sform_code"]) == (0, 1)
    np.testing.assert_allclose(nifti.read(tmp_path / "ct.nii", case="ct").affine_ras, SHEARED, rtol=1e-6)


def test_same_volume_gives_the_same_bytes_under_any_name_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = _volume(_array().astype(np.float32))
    nifti.write(volume, tmp_path / "one.nii.gz", dtype="int16")
    monkeypatch.setattr("time.time", lambda: 2e9)
    nifti.write(volume, tmp_path / "another.nii.gz", dtype="int16")
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "another.nii.gz").read_bytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 40000.0])
def test_values_that_do_not_fit_leave_the_earlier_file_alone(tmp_path: Path, bad: float) -> None:
    (tmp_path / "ct.nii").write_bytes(b"earlier")
    array = np.zeros((2, 2, 2), np.float32)
    array[0, 0, 0] = bad
    with pytest.raises(ScanError, match="E-VALUES"):
        nifti.write(_volume(array), tmp_path / "ct.nii", dtype="int16")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"earlier"]


def test_failure_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "ct.nii").write_bytes(b"earlier")

    def fail() -> None:
        with replacing(tmp_path / "ct.nii") as part:
            part.write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"earlier"]
