"""NRRD and MetaImage: grids agree with SimpleITK's in the other axes, several numbers a voxel must be chosen from, damage is refused."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medsynth.core.errors import ScanError
from medsynth.core.volume import Origin, Volume
from medsynth.scans import itk

OBLIQUE = np.array([[0.8, -0.6, 0, 1], [0.6, 0.8, 0, 2], [0, 0, -1, 3], [0, 0, 0, 1.0]]) @ np.diag([1.5, 2, 3, 1])


def _array(shape: tuple[int, ...] = (5, 6, 7)) -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 3000, shape).astype(np.float32)


def _volume(array: np.ndarray, affine: np.ndarray = OBLIQUE) -> Volume:
    return Volume(array=array, affine_ras=affine, origin=Origin(kind="mha", case="scan", files=()))


@pytest.mark.parametrize("name", ["3DCT_lung.mha", "brain1_image.nrrd"])
def test_real_scan_lies_where_simpleitk_puts_it(shared_data: Path, name: str) -> None:
    path = shared_data / "formats" / name
    volume = itk.read(path, case="scan")
    image = sitk.ReadImage(str(path))
    for index in [(0, 0, 0), tuple(n - 1 for n in image.GetSize())]:
        lps = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(volume.affine_ras @ [*index, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-6)
    np.testing.assert_array_equal(volume.array, sitk.GetArrayViewFromImage(image).T)
    assert volume.array.dtype == np.float32


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_written_scan_comes_back_and_two_writings_have_the_same_bytes(tmp_path: Path, ending: str) -> None:
    first, second = tmp_path / f"Schädel 1{ending}", tmp_path / f"second{ending}"
    for path in (first, second):
        itk.write(_volume(_array()), path, dtype="int16")
    assert first.read_bytes() == second.read_bytes()
    volume = itk.read(first, case="scan")
    np.testing.assert_array_equal(volume.array, _array())
    np.testing.assert_allclose(volume.affine_ras, OBLIQUE, atol=1e-9)
    assert volume.origin.notes == ()
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([first.name, second.name])


def test_sheared_grid_is_refused_for_writing(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    with pytest.raises(ScanError, match=r"E-GEOMETRY.*sheared"):
        itk.write(_volume(_array(), sheared), tmp_path / "ct.mha", dtype="int16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_one_of_several_volumes_must_be_chosen(tmp_path: Path, ending: str) -> None:
    frames = [sitk.GetImageFromArray(_array() + k) for k in range(3)]
    sitk.WriteImage(sitk.JoinSeries(frames), str(tmp_path / f"time{ending}"))
    sitk.WriteImage(sitk.Compose(frames), str(tmp_path / f"vector{ending}"))
    for name in (f"time{ending}", f"vector{ending}"):
        with pytest.raises(ScanError, match=r"E-DIM.*holds 3 volumes"):
            itk.read(tmp_path / name, case="scan")
        volume = itk.read(tmp_path / name, case="scan", volume=2)
        np.testing.assert_array_equal(volume.array, (_array() + 2).T)


def test_complex_values_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkComplexFloat32), str(tmp_path / "k.nrrd"))
    with pytest.raises(ScanError, match="E-DIM"):
        itk.read(tmp_path / "k.nrrd", case="scan")


def test_flat_image_gets_a_third_axis(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(_array((4, 5)))
    image.SetSpacing([2, 3])
    sitk.WriteImage(image, str(tmp_path / "flat.mha"))
    volume = itk.read(tmp_path / "flat.mha", case="scan")
    assert volume.shape == (5, 4, 1)
    assert volume.spacing_mm == (2, 3, 1)


def test_nrrd_without_patient_axes_is_noted(tmp_path: Path) -> None:
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nspacings: 1 2 3\nendian: little\nencoding: raw\n\n"
    (tmp_path / "bare.nrrd").write_bytes(header + bytes(16))
    volume = itk.read(tmp_path / "bare.nrrd", case="scan")
    assert volume.spacing_mm == (1, 2, 3)
    assert "no patient axes" in volume.origin.notes[0]


def test_modality_is_taken_from_a_metaimage(tmp_path: Path) -> None:
    itk.write(_volume(_array()), tmp_path / "ct.mha", dtype="int16")
    data = (tmp_path / "ct.mha").read_bytes()
    (tmp_path / "ct.mha").write_bytes(data.replace(b"DimSize", b"Modality = MET_MOD_CT\nDimSize", 1))
    assert itk.read(tmp_path / "ct.mha", case="scan").origin.modality == "CT"


@pytest.mark.parametrize(("header", "data"), [("ct.mhd", "ct.raw"), ("ct.nhdr", "ct.raw")])
def test_header_names_its_data_file(tmp_path: Path, header: str, data: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(_array()), str(tmp_path / header))
    assert itk.files(tmp_path / header) == (tmp_path / header, tmp_path / data)
    np.testing.assert_array_equal(itk.read(tmp_path / header, case="ct").array, _array().T)
    (tmp_path / data).unlink()
    assert itk.files(tmp_path / header) == (tmp_path / header,)
    with pytest.raises(ScanError, match="E-READ"):
        itk.read(tmp_path / header, case="ct")


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_damaged_files_are_refused_by_name_without_their_folder(tmp_path: Path, ending: str) -> None:
    itk.write(_volume(_array()), tmp_path / f"whole{ending}", dtype="int16")
    data = (tmp_path / f"whole{ending}").read_bytes()
    for name, part in {"half": data[: len(data) * 3 // 4], "empty": b"", "text": b"hello"}.items():
        path = tmp_path / f"{name}{ending}"
        path.write_bytes(part)
        with pytest.raises(ScanError) as caught:
            itk.read(path, case="scan")
        assert caught.value.code == "E-READ"
        assert path.name in caught.value.cause
        assert str(tmp_path) not in str(caught.value)
