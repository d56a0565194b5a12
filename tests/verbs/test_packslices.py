"""Packing CTs for training on slices: their own spacing, their own orientation, once, and patients kept apart."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsynth.core.errors import ScanError
from medsynth.verbs.packslices import pack, split


def test_a_scan_is_packed_from_feet_to_head_left_and_back_last(tmp_path: Path) -> None:
    """Whatever way its file runs: here from head to feet and from back to front."""
    array = _ct()
    path = _write(tmp_path / "ct" / "a.nii.gz", array[:, ::-1, ::-1], np.diag([2.0, -3.0, -4.0, 1.0]))
    (stack,) = _pack(path.parent, tmp_path)
    assert stack.spacing_mm == (4.0, 3.0, 2.0)
    assert np.array_equal(stack.ct_hu, array.astype(np.int16)[::-1, ::-1].transpose(2, 1, 0))


def test_what_was_packed_is_not_packed_again_and_a_changed_scan_is(tmp_path: Path) -> None:
    path = _write(tmp_path / "ct" / "a.nii.gz", _ct())
    first = _pack(path.parent, tmp_path)[0].digest
    assert _pack(path.parent, tmp_path)[0].digest == first
    _write(path, _ct() + 1)
    assert _pack(path.parent, tmp_path)[0].digest != first


def test_what_is_no_ct_is_left_out_with_a_line_unless_it_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    data = _write(tmp_path / "ct" / "a.nii.gz", _ct()).parent
    _write(data / "labels.nii.gz", np.abs(_ct()) % 7)
    assert [stack.name for stack in pack(data, tmp_path / "cache", say=said.append)] == ["a"]
    assert any(line.startswith("left out: labels") for line in said)
    with pytest.raises(ScanError, match="no CT") as caught:
        pack(data, tmp_path / "cache", names=("labels",), say=said.append)
    assert caught.value.code == "E-MODALITY"


def test_a_scan_that_the_card_names_and_the_folder_lacks_is_named(tmp_path: Path) -> None:
    data = _write(tmp_path / "ct" / "a.nii.gz", _ct()).parent
    with pytest.raises(ScanError, match="no scan b") as caught:
        pack(data, tmp_path / "cache", names=("a", "b"), say=print)
    assert caught.value.code == "E-DATA"


def test_scans_of_one_patient_stay_on_one_side(tmp_path: Path) -> None:
    data = tmp_path / "ct"
    for patient in ("p1", "p2", "p3"):
        for scan in ("early", "late"):
            _write(data / patient / f"{scan}.nii.gz", _ct())
    stacks = _pack(data, tmp_path)
    training, validation = split(data, stacks, share=0.3, seed=0)
    sides = [{stack.name.split("_")[0] for stack in side} for side in (training, validation)]
    assert len(training) + len(validation) == len(stacks) == 6
    assert not sides[0] & sides[1]
    assert sides[0]
    assert sides[1]


@pytest.mark.parametrize("names", [("ct/a", "ct/b"), ("Images/a", "Images/b"), ("scans/ct/a", "scans/mr/b"), ("CT/p1/a", "CT/p2/a")])
def test_a_folder_that_names_a_quantity_or_a_role_is_no_patient(names: tuple[str, str], tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in names:
        _write(data / f"{name}.nii.gz", _ct())
    training, validation = split(data, _pack(data, tmp_path), share=0.3, seed=0)
    assert (len(training), len(validation)) == (1, 1)


def test_a_patient_below_such_a_folder_stays_on_one_side(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("images/p1/early", "images/p1/late", "images/p2/early", "images/p2/late"):
        _write(data / f"{name}.nii.gz", _ct())
    sides = split(data, _pack(data, tmp_path), share=0.3, seed=0)
    assert [len({"p1" in stack.name for stack in side}) for side in sides] == [1, 1]


def test_one_patient_alone_cannot_be_split(tmp_path: Path) -> None:
    for scan in ("a", "b"):
        _write(tmp_path / "ct" / "p1" / f"{scan}.nii.gz", _ct())
    with pytest.raises(ScanError, match="2 CTs of 1 patient") as caught:
        split(tmp_path / "ct", _pack(tmp_path / "ct", tmp_path), share=0.3, seed=0)
    assert caught.value.code == "E-PAIRS"
    assert "table" not in caught.value.remedy  # none is read


def _pack(data: Path, root: Path) -> list:
    return pack(data, root / "cache", say=lambda _: None)


def _ct() -> np.ndarray:
    """A body that is another along each axis, with air and bone."""
    array = np.full((12, 14, 6), -1000.0)
    array[2:10, 3:12] = 40 + np.arange(6)
    array[3:6, 4:7] = 900
    return array


def _write(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine), path)
    return path
