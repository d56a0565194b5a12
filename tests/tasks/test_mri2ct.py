"""What `mri2ct` takes and refuses, how it scales its input, and what it makes of a prediction."""

from pathlib import Path

import numpy as np
import phantom
import pytest

from medsynth.core.errors import Exit, ScanError
from medsynth.core.quantity import CT
from medsynth.core.volume import Volume
from medsynth.scans import folder, grid
from medsynth.tasks.mri2ct import AIR_HU, RANGE_HU, finish, prepare

CARD_MM = (2.0, 2.0, 2.0)
HEADS = ("mr/UIH_T1w_1mm.nii.gz", "mr/mne_ecog/T1.mgz", "dicom/mr_head_VS-SEG-001", "formats/brain1_image.nrrd")
STRIPPED = ("t1n", "t2f")
CTS = (
    "ct/head_jnifti_headct_approxHU_1mm.nii.gz", "ct/chest_LIDC-IDRI-0314_native_slab20.nii.gz", "ct/totalseg_thorax_cta_1p5mm.nii.gz",
    "ct/shoulders_LIDC-IDRI-0003_native_slab16.nii.gz", "formats/3DCT_lung.mha", "dicom/ct_abdomen_j2k",
)  # fmt: skip


@pytest.fixture(scope="module")
def head() -> Volume:
    """On a card's grid of 2 mm."""
    return on_card(phantom.mr_head(2.0))


def on_card(array: np.ndarray, modality: str = "") -> Volume:
    return phantom.volume(array.astype(np.float32), modality=modality, affine=phantom.affine_ras(2.0))


def real(path: Path) -> Volume:
    """A scan on a coarse card's grid."""
    (found,) = folder.find(path, choices=folder.Choices())
    return grid.to_card(folder.read(found, choices=folder.Choices()), (3.0, 3.0, 3.0))


def synthetic_ct() -> np.ndarray:
    """HU: air, soft tissue, a shell of bone."""
    array = np.where(phantom.head_mask(2.0), 40.0, -1000.0)
    array[(phantom.mr_head(2.0) < 60) & phantom.head_mask(2.0)] = 900.0
    return array


def refusal(scan: Volume, mask: np.ndarray | None = None) -> ScanError:
    """The error, checked for what all refusals share."""
    with pytest.raises(ScanError) as caught:
        prepare(scan, mask, False)
    assert (caught.value.code, caught.value.exit) == ("E-MODALITY", Exit.INPUT)
    assert caught.value.remedy
    return caught.value


def test_the_input_is_scaled_to_the_foreground(head: Volume) -> None:
    prepared = prepare(head, None, False)
    assert prepared.image.shape == (1, *head.shape)
    assert prepared.image.dtype == np.float32
    assert prepared.warnings == ()
    tissue = prepared.image[0][head.array > 60]
    assert np.percentile(tissue, 95) == pytest.approx(1.0, abs=0.05)
    assert np.allclose(prepared.source_scale.decode(prepared.image[0]), head.array, rtol=1e-5)


def test_the_scanners_gain_changes_nothing(head: Volume) -> None:
    louder = prepare(head.with_array(head.array * np.float32(37)), None, False)
    assert np.allclose(louder.image, prepare(head, None, False).image, rtol=1e-4)


def test_negative_values_count_as_background(head: Volume) -> None:
    undershoot = np.where(head.array < 20, np.float32(-15), head.array)
    prepared = prepare(head.with_array(undershoot), None, False)
    assert prepared.image.min() == 0


def test_a_mask_is_the_region(head: Volume) -> None:
    mask = phantom.head_mask(2.0)
    mask[:, :, :20] = False
    assert prepare(head, mask, False).region is mask


def test_without_a_mask_the_region_is_the_heads_outline(head: Volume) -> None:
    region = prepare(head, None, False).region
    assert (region & phantom.head_mask(2.0)).sum() > 0.98 * phantom.head_mask(2.0).sum()


def test_a_prediction_becomes_hu_inside_and_air_outside(head: Volume) -> None:
    prepared = prepare(head, None, False)
    scale = CT().fit()
    ct_hu = finish(np.full(head.shape, scale.encode(70.0), dtype=np.float32), prepared)
    assert ct_hu.dtype == np.float32
    assert np.allclose(ct_hu[prepared.region], 70.0, atol=0.01)
    assert (ct_hu[~prepared.region] == AIR_HU).all()


@pytest.mark.parametrize(("value", "expected"), [(5.0, RANGE_HU[1]), (-5.0, RANGE_HU[0])])
def test_a_prediction_beyond_the_range_is_clipped(value: float, expected: float, head: Volume) -> None:
    prepared = prepare(head, None, False)
    ct_hu = finish(np.full(head.shape, value, dtype=np.float32), prepared)
    assert (ct_hu[prepared.region] == expected).all()


def test_a_head_without_skull_is_refused_and_passes_with_force_and_a_warning() -> None:
    stripped = on_card(phantom.stripped(2.0))
    error = refusal(stripped)
    assert "skull was removed" in error.cause
    assert "--force" in error.remedy
    assert prepare(stripped, None, True).warnings == (error.cause,)


@pytest.mark.parametrize(
    "scan",
    [on_card(synthetic_ct()), on_card(phantom.mr_head(2.0), modality="CT")],
    ids=["by its values", "by its header"],
)
def test_a_ct_is_refused_and_passes_with_force_and_a_warning(scan: Volume) -> None:
    error = refusal(scan)
    assert "this is a CT" in error.cause
    assert prepare(scan, None, True).warnings == (error.cause,)


@pytest.mark.parametrize("value", [0.0, 500.0])
def test_a_constant_image_is_refused_even_with_force(value: float, head: Volume) -> None:
    constant = head.with_array(np.full(head.shape, value, dtype=np.float32))
    assert "constant" in refusal(constant).cause
    with pytest.raises(ScanError, match="constant"):
        prepare(constant, None, True)


def test_an_empty_mask_is_refused_even_with_force(head: Volume) -> None:
    empty = np.zeros(head.shape, dtype=bool)
    assert "mask is empty" in refusal(head, empty).cause
    with pytest.raises(ScanError, match="mask is empty"):
        prepare(head, empty, True)


def test_an_image_without_anything_large_enough_is_refused(head: Volume) -> None:
    speck = np.zeros(head.shape, dtype=np.float32)
    speck[50, 50, 50] = 100.0
    assert "no head was found" in refusal(head.with_array(speck)).cause


@pytest.mark.parametrize(("spacing_mm", "cause"), [(0.9, "too little for a head"), (3.5, "more than a head")])
def test_a_body_far_from_a_heads_size_is_refused(spacing_mm: float, cause: str) -> None:
    scan = phantom.volume(phantom.mr_head(2.0), affine=np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0]))
    error = refusal(scan)
    assert cause in error.cause
    assert " ml" in error.cause


@pytest.mark.parametrize("name", HEADS)
def test_real_heads_are_taken(name: str, shared_data: Path) -> None:
    scan = real(shared_data / name)
    prepared = prepare(scan, None, False)
    assert prepared.warnings == ()
    assert 2500 < prepared.region.sum() * 27 / 1000 < 6000  # ml


@pytest.mark.parametrize("contrast", STRIPPED)
def test_a_real_head_without_skull_is_refused_in_other_contrasts_too(contrast: str, shared_data: Path) -> None:
    scan = real(shared_data / "mr/BraTS-GLI-00001-000" / f"BraTS-GLI-00001-000-{contrast}.nii.gz")
    error = refusal(scan)
    assert "skull was removed" in error.cause
    assert prepare(scan, None, True).warnings == (error.cause,)


@pytest.mark.parametrize("name", CTS)
def test_real_cts_are_refused(name: str, shared_data: Path) -> None:
    assert "this is a CT" in refusal(real(shared_data / name)).cause
