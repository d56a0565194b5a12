"""Which shift two scans show, and which values are no MR and no CT."""

from pathlib import Path

import numpy as np
import phantom
import pytest
from scipy import ndimage

from medsynth.core.volume import Volume
from medsynth.scans import folder, grid
from medsynth.scans.agreement import REACH_MM, Alignment, alignment, no_ct, no_mr

MM = 4.0


def ct_head() -> np.ndarray:
    head = phantom.head_mask()
    return np.where(head, np.where(phantom.mr_head() < 60, 900.0, 40.0), -1000.0).astype(np.float32)


def shifted(ct_hu: np.ndarray, voxels: tuple[int, int, int]) -> np.ndarray:
    """Moved towards higher indices; unknown where nothing came from."""
    return ndimage.shift(ct_hu, voxels, order=0, cval=np.nan)


def around() -> np.ndarray:
    return ndimage.binary_dilation(phantom.head_mask(), iterations=3)


def test_a_pair_in_place_has_no_better_shift() -> None:
    fit = alignment(phantom.mr_head(), ct_head(), around(), MM)
    assert fit.shift_mm == (0, 0, 0)
    assert fit.nmi == fit.shifted_nmi > 1.1
    assert (fit.gain, fit.length_mm) == (0, 0)


@pytest.mark.parametrize("voxels", [(2, 0, 0), (0, -3, 0), (0, 0, 4), (1, -2, 2), (-4, 3, 1)])
def test_the_shift_that_is_found_undoes_the_one_that_was_made(voxels: tuple[int, int, int]) -> None:
    fit = alignment(phantom.mr_head(), shifted(ct_head(), voxels), around(), MM)
    assert fit.shift_mm == pytest.approx([-MM * n for n in voxels])
    assert fit.gain > 0.25
    assert fit.length_mm == pytest.approx(MM * np.linalg.norm(voxels))


def test_no_shift_goes_beyond_the_reach() -> None:
    fit = alignment(phantom.mr_head(), shifted(ct_head(), (12, 0, 0)), around(), MM)
    assert fit.length_mm <= REACH_MM


def test_contrast_does_not_matter() -> None:
    mr = phantom.mr_head()
    fits = [alignment(values.astype(np.float32), shifted(ct_head(), (0, 2, 0)), around(), MM) for values in (mr, 1000 - mr, mr**2 * 7)]
    assert {fit.shift_mm for fit in fits} == {(0, -2 * MM, 0)}


def test_noise_has_nothing_in_common_with_a_ct() -> None:
    noise = np.random.default_rng(0).normal(size=phantom.shape()).astype(np.float32)
    assert alignment(noise, ct_head(), around(), MM).shifted_nmi < 1.02


def test_scans_that_share_next_to_nothing_have_no_shift() -> None:
    nowhere = np.full(phantom.shape(), np.nan, dtype=np.float32)
    empty = np.zeros(phantom.shape(), dtype=bool)
    for fit in (alignment(phantom.mr_head(), nowhere, around(), MM), alignment(phantom.mr_head(), ct_head(), empty, MM)):
        assert fit == Alignment(1.0, (0, 0, 0), 1.0)
        assert fit.gain == 0


def test_a_thin_scan_is_no_fault() -> None:
    fit = alignment(phantom.mr_head()[:, :, :2], ct_head()[:, :, :2], around()[:, :, :2], MM)
    assert fit.length_mm == 0
    assert alignment(phantom.mr_head()[:, :, :4], ct_head()[:, :, :4], around()[:, :, :4], MM).gain < 0.1


def test_a_shift_that_leaves_little_to_compare_does_not_count() -> None:
    """One slice in four that fits perfectly is no fit."""
    rng = np.random.default_rng(0)
    mr, ct_hu = (rng.uniform(-900, 1400, (48, 48, 4)).astype(np.float32) for _ in range(2))
    ct_hu[:, :, 3] = mr[:, :, 0]
    assert alignment(mr, ct_hu, np.ones(mr.shape, dtype=bool), MM).shifted_nmi < 1.2


def test_real_scans_of_one_patient_fit_as_they_are_and_shifts_are_found(shared_data: Path) -> None:
    """No real MR with its CT is at hand; two contrasts of one head are, of which one stands for the CT."""
    t1, t2 = (_real(shared_data / "mr" / "BraTS-GLI-00001-000", name) for name in ("t1n", "t2w"))
    body = t1.array > 0
    as_ct = (t2.array / t2.array.max() * 2000 - 1000).astype(np.float32)
    assert alignment(t1.array, as_ct, body, 3.0).length_mm == 0
    fit = alignment(t1.array, shifted(as_ct, (2, 0, -3)), body, 3.0)
    assert fit.shift_mm == (-6.0, 0.0, 9.0)
    assert fit.gain > 0.25


@pytest.mark.parametrize("name", ["UIH_T1w_1mm.nii.gz", "mne_ecog/T1.mgz"])
def test_real_mrs_are_mrs_and_no_cts(shared_data: Path, name: str) -> None:
    (found,) = folder.find(shared_data / "mr" / name, choices=folder.Choices())
    values = folder.read(found, choices=folder.Choices()).array[::3, ::3, ::3]
    assert no_mr(values) == ""
    assert "no HU" in no_ct(values)


@pytest.mark.parametrize("name", ["head_jnifti_headct_approxHU_1mm", "totalseg_abdomenpelvis_3mm", "chest_LIDC-IDRI-0314_1p5mm"])
def test_real_cts_are_cts_and_no_mrs(shared_data: Path, name: str) -> None:
    (found,) = folder.find(shared_data / "ct" / f"{name}.nii.gz", choices=folder.Choices())
    values = folder.read(found, choices=folder.Choices()).array[::3, ::3, ::3]
    assert no_ct(values) == ""
    assert "those of a CT" in no_mr(values)


def test_constant_images_and_ct_without_its_intercept_are_neither() -> None:
    assert no_mr(np.full(9, 3.0)) == no_ct(np.full(9, -1000.0)) == "the image is constant"
    assert "24 to 1924" in no_ct(ct_head() + 1024)
    assert "no HU" in no_ct(np.random.default_rng(0).integers(0, 256, 1000).astype(np.float32))


def _real(place: Path, contrast: str) -> Volume:
    (path,) = place.glob(f"*{contrast}*")
    (found,) = folder.find(path, choices=folder.Choices())
    return grid.to_card(folder.read(found, choices=folder.Choices()), (3.0, 3.0, 3.0))
