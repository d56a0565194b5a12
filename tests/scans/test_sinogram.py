"""Sinogram files: formats, what is found, and what cannot be a measurement."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import SimpleITK as sitk

from medsynth.core.errors import Exit, MedsynthError, ScanError, UsageError
from medsynth.scans import sinogram

SHAPE = (2, 8, 20)


def disc() -> np.ndarray:
    """Line integrals [2 8 20] of a disc in the middle; the ends of the detector see air."""
    u = np.arange(20) - 9.5
    chord = 0.4 * np.sqrt(np.clip(36 - u**2, 0, None))
    return np.broadcast_to(chord, SHAPE).astype(np.float32) * np.linspace(1, 1.1, 8, dtype=np.float32)[:, None]


def counts() -> np.ndarray:
    return np.rint(1e4 * np.exp(-disc())).astype(np.float32)


def save(path: Path, array: np.ndarray) -> sinogram.Found:
    if path.suffix == ".npz":
        np.savez(path, **{"sinogram": array})
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    (found,) = sinogram.find(path)
    return found


@pytest.mark.parametrize("name", ["a_sino.npz", "a.npy", "a_sino.mha", "a_sino.nrrd"])
def test_every_format_gives_the_same_array(name: str, tmp_path: Path) -> None:
    found = save(tmp_path / name, disc())
    assert found.case == "a"
    assert np.array_equal(sinogram.read(found), disc())


def test_hdf5_gives_the_same_array(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["sinogram"] = disc()
        file["angles"] = np.arange(8)
    (found,) = sinogram.find(tmp_path / "a.h5")
    assert np.array_equal(sinogram.read(found), disc())


def test_without_h5py_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.h5").write_bytes(b"\x89HDF")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UsageError) as caught:
        sinogram.read(sinogram.find(tmp_path / "a.h5")[0])
    assert (caught.value.code, caught.value.remedy) == ("E-H5PY", "pip install h5py")


def test_an_hdf5_file_is_read_through_h5py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class File(dict[str, np.ndarray]):
        def __init__(self, path: Path, mode: str) -> None:
            super().__init__(only=disc())

        def __enter__(self) -> "File":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    fake = ModuleType("h5py")
    fake.File = File  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "h5py", fake)
    (tmp_path / "a.hdf5").touch()
    assert np.array_equal(sinogram.read(sinogram.find(tmp_path / "a.hdf5")[0]), disc())


def test_two_axes_are_one_slice(tmp_path: Path) -> None:
    assert sinogram.read(save(tmp_path / "a.npy", disc()[0])).shape == (1, 8, 20)


def test_the_array_may_have_any_name_if_it_is_the_only_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", projections=disc())
    np.savez(tmp_path / "b.npz", projections=disc(), angles=np.arange(8))
    assert sinogram.read(sinogram.find(tmp_path / "a.npz")[0]).shape == SHAPE
    with pytest.raises(ScanError, match="projections, angles"):
        sinogram.read(sinogram.find(tmp_path / "b.npz")[0])


def test_what_is_written_is_read_and_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a_sino.npz", "b_sino.npz"):
        sinogram.write(disc(), tmp_path / name)
    assert np.array_equal(sinogram.read(sinogram.find(tmp_path / "a_sino.npz")[0]), disc())
    assert (tmp_path / "a_sino.npz").read_bytes() == (tmp_path / "b_sino.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_sino.npz", "b_sino.npz"]


def test_in_a_folder_sinograms_are_known_by_name_or_by_the_geometry_beside_them(tmp_path: Path) -> None:
    for name in ("a_sino.npz", "b.mha", "scan.mha", "other.npy", ".hidden_sino.npz"):
        save(tmp_path / name, disc()) if not name.endswith("mha") else sitk.WriteImage(sitk.GetImageFromArray(disc()), tmp_path / name)
    (tmp_path / "b_geometry.toml").touch()
    found = sinogram.find(tmp_path)
    assert [(item.case, item.geometry and item.geometry.name) for item in found] == [("a", None), ("b", "b_geometry.toml")]


def test_in_a_folder_without_such_names_all_arrays_are_sinograms(tmp_path: Path) -> None:
    save(tmp_path / "x.npy", disc())
    sitk.WriteImage(sitk.GetImageFromArray(disc()), tmp_path / "scan.mha")
    assert [item.case for item in sinogram.find(tmp_path)] == ["x"]


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a_sino.npz", disc())
    save(tmp_path / "a_sino.npy", disc())
    with pytest.raises(ScanError, match="two sinograms are named a"):
        sinogram.find(tmp_path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 half", b"no array"])
@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_a_damaged_file_is_named(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ScanError) as caught:
        sinogram.read(sinogram.find(tmp_path / name)[0])
    assert caught.value.code == "E-READ"
    assert str(tmp_path) not in caught.value.cause


@pytest.mark.parametrize("array", [np.zeros((2, 2, 2, 2)), np.zeros(5), np.array([[["a"]]]), np.zeros((2, 0, 3))])
def test_what_is_no_stack_of_numbers_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ScanError) as caught:
        sinogram.read(save(tmp_path / "a.npy", array))
    assert (caught.value.code, caught.value.exit) == ("E-SINOGRAM", Exit.INPUT)


def test_nan_is_named_with_its_place(tmp_path: Path) -> None:
    array = disc()
    array[1, 3, 7] = np.nan
    with pytest.raises(MedsynthError, match="first in slice 1, view 3, cell 7"):
        sinogram.read(save(tmp_path / "a.npy", array))


def test_line_integrals_with_air_at_the_ends_are_taken_without_a_word() -> None:
    assert sinogram.problem_of_integrals(disc()) == ("", "")
    assert sinogram.notes_on_integrals(disc()) == ()


def test_counts_given_as_line_integrals_are_recognised() -> None:
    cause, remedy = sinogram.problem_of_integrals(counts())
    assert "look like counts" in cause
    assert "--counts" in remedy


def test_transmissions_given_as_line_integrals_are_recognised() -> None:
    assert "transmissions" in sinogram.problem_of_integrals(np.exp(-disc()))[0]


@pytest.mark.parametrize(
    ("place", "words"), [((slice(None), 2), "view 2 has"), ((slice(None), slice(None), 9), "cell 9 has"), ((slice(None), 3), "view 3 has")]
)
def test_a_missing_row_is_named(place: tuple[slice | int, ...], words: str) -> None:
    array = disc()
    array[place] = 0
    assert words in sinogram.problem_of_integrals(array)[0]
    dark = counts()
    dark[place] = 0
    assert words in sinogram.problem_of_counts(dark, 1e4)[0]


def test_several_missing_cells_and_one_at_the_end_are_named() -> None:
    array = disc()
    array[:, :, [8, 9]] = 0
    array[:, :, 0] = 11.5
    assert "cells 0, 8, 9 have" in sinogram.problem_of_integrals(array)[0]


def test_an_empty_sinogram_is_named() -> None:
    assert "all values are 0" in sinogram.problem_of_integrals(np.zeros(SHAPE, dtype=np.float32))[0]


def test_counts_are_checked_against_i0() -> None:
    assert sinogram.problem_of_counts(counts(), 1e4) == ("", "")
    cause, remedy = sinogram.problem_of_counts(counts(), 1e3)
    assert "more than the 1000 that were sent" in cause
    assert "--i0 1e+04" in remedy
    assert "is --i0 right?" in sinogram.notes_on_counts(counts(), 1e6)[0]
    assert "below zero" in sinogram.problem_of_counts(counts() - 9000, 1e4)[0]
    assert "leave out --counts" in sinogram.problem_of_counts(disc(), 1e4)[1]


def test_cells_without_a_photon_are_noted() -> None:
    dark = counts()
    dark[0, 0, 9] = 0
    assert sinogram.problem_of_counts(dark, 1e4) == ("", "")
    assert "1 readings" in sinogram.notes_on_counts(dark, 1e4)[0]


def test_an_object_beyond_the_detectors_ends_is_noted() -> None:
    assert "beyond the detector" in sinogram.notes_on_integrals(disc()[:, :, 5:])[0]
