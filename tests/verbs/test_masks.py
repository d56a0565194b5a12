"""`medsynth mri2ct --mask`: the CT is air outside the mask, which is found by name and may lie on a grid of its own."""

from pathlib import Path

import nibabel as nib
import numpy as np
import phantom
from commandline import medsynth

from medsynth.core.errors import Exit

AIR_HU = -1000


def half_mask() -> np.ndarray:
    """The right half of the head."""
    mask = phantom.head_mask()
    mask[: mask.shape[0] // 2] = False
    return mask


def is_air_left_of_the_middle(out: Path, case: str) -> bool:
    ct_hu = np.asarray(nib.load(out / f"{case}_ct.nii.gz").dataobj)
    middle = ct_hu.shape[0] // 2
    return bool((ct_hu[: middle - 1] == AIR_HU).all() and (ct_hu[middle + 1 :] != AIR_HU).any())


def test_a_mask_for_one_scan_limits_the_ct(one: Path, model: Path, tmp_path: Path) -> None:
    mask = phantom.write_nifti(tmp_path / "any name.nii.gz", half_mask())
    assert medsynth("mri2ct", one, tmp_path / "out", "--model", model, "--mask", mask).exit_code == 0
    assert is_air_left_of_the_middle(tmp_path / "out", "head")


def test_masks_in_a_folder_are_found_by_name_and_may_lie_on_another_grid(model: Path, tmp_path: Path) -> None:
    for name in ("a", "b c"):
        phantom.write_nifti(tmp_path / "in" / f"{name}.nii.gz")
    phantom.write_nifti(tmp_path / "masks" / "a_mask.nii.gz", half_mask())
    finer = phantom.affine_ras() @ np.diag([0.5, 0.5, 0.5, 1.0])
    finer[:3, 3] -= phantom.SPACING_MM / 4
    phantom.write_nifti(tmp_path / "masks" / "b c.nii.gz", half_mask().repeat(2, 0).repeat(2, 1).repeat(2, 2), finer)
    result = medsynth("mri2ct", tmp_path / "in", tmp_path / "out", "--model", model, "--mask", tmp_path / "masks")
    assert result.exit_code == 0
    assert is_air_left_of_the_middle(tmp_path / "out", "a")
    assert is_air_left_of_the_middle(tmp_path / "out", "b c")


def test_a_scan_without_its_mask_stops_the_run_before_it_begins(one: Path, model: Path, tmp_path: Path) -> None:
    phantom.write_nifti(tmp_path / "masks" / "other.nii.gz", half_mask())
    result = medsynth("mri2ct", one, tmp_path / "out", "--model", model, "--mask", tmp_path / "masks")
    assert result.exit_code == Exit.USAGE
    assert "E-MASK" in result.stderr
    assert "head" in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_trusted_in_a_scans_header_is_trusted_in_its_masks(model: Path, tmp_path: Path) -> None:
    for name, array in (("head", phantom.mr_head()), ("mask", half_mask())):
        image = nib.Nifti1Image(array.astype(np.int16), phantom.affine_ras())
        image.header.set_qform(np.diag([2.0, 2.0, 2.0, 1.0]), code=1)
        nib.save(image, tmp_path / f"{name}.nii.gz")
    options = ("--model", model, "--mask", tmp_path / "mask.nii.gz")
    assert medsynth("mri2ct", tmp_path / "head.nii.gz", tmp_path / "out", *options).exit_code == Exit.INPUT
    assert medsynth("mri2ct", tmp_path / "head.nii.gz", tmp_path / "out", *options, "--trust", "sform").exit_code == 0
    assert is_air_left_of_the_middle(tmp_path / "out", "head")
