import json

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.core import metrics


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(3)
    coarse = rng.normal(0, 300, (6, 6, 6))
    reference = np.kron(coarse, np.ones((4, 4, 4)))
    predicted = reference + rng.normal(0, 60, reference.shape)
    mask = np.zeros(reference.shape, dtype=bool)
    mask[4:20, 5:19, 3:21] = True
    return reference, predicted, mask


@pytest.fixture(scope="module")
def large():
    """Large enough for five scales."""
    rng = np.random.default_rng(5)
    reference = np.kron(rng.normal(0, 300, (13, 13, 13)), np.ones((8, 8, 8)))
    predicted = reference + rng.normal(0, 80, reference.shape)
    mask = np.zeros(reference.shape, dtype=bool)
    mask[40:70, 40:64, 40:64] = True
    return reference, predicted, mask


@pytest.fixture(scope="module")
def official(shared_data):
    arrays = [
        np.asarray(nib.load(shared_data / "eval" / f"pelvis_{name}.nii.gz").dataobj).astype(np.float64) for name in ("ref", "pred", "mask")
    ]
    figures = json.loads((shared_data / "eval" / "expected.json").read_text())["pelvis"]
    return arrays[0], arrays[1], arrays[2] > 0, figures


def test_figures_of_the_official_synthrad2023_code_are_reproduced(official):
    reference, predicted, mask, figures = official
    expected = figures["synthrad2023"]
    assert metrics.mae(reference, predicted, mask) == pytest.approx(expected["mae"], rel=1e-6)
    assert metrics.psnr(reference, predicted, mask, top_hu=3000) == pytest.approx(expected["psnr"], rel=1e-6)
    assert metrics.ssim(reference, predicted, mask, top_hu=3000) == pytest.approx(expected["ssim"], rel=1e-6)


@pytest.mark.parametrize("top_hu", [3000, 3071])
def test_figures_of_the_official_synthrad2025_code_are_reproduced(official, top_hu):
    reference, predicted, mask, figures = official
    expected = figures[f"synthrad2025_{top_hu}"]
    assert metrics.psnr(reference, predicted, mask, top_hu=top_hu) == pytest.approx(expected["psnr"], rel=1e-6)
    assert metrics.ms_ssim(reference, predicted, mask, top_hu=top_hu) == pytest.approx(expected["ms_ssim"], rel=1e-6)


SIMILARITIES = [metrics.ssim, metrics.ms_ssim, metrics.ms_ssim_corrected]


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_similarity_is_one_for_equal_images_and_falls_with_noise(large, similarity):
    reference, predicted, mask = large
    worse = reference + 4 * (predicted - reference)
    scores = [similarity(reference, image, mask, top_hu=3000) for image in (reference, predicted, worse)]
    assert scores[0] == pytest.approx(1)
    assert scores[0] > scores[1] > scores[2]


@given(shift=st.floats(-200, 200), scale=st.floats(0.1, 3))
@settings(max_examples=20, deadline=None)
def test_mae_is_symmetric_and_scales_with_the_error(pair, shift, scale):
    reference, predicted, mask = pair
    forth = metrics.mae(reference, reference + shift, mask)
    assert forth == pytest.approx(abs(shift))
    assert metrics.mae(scale * reference, scale * predicted, mask) == pytest.approx(scale * metrics.mae(predicted, reference, mask))


@given(profile=st.sampled_from([metrics.psnr, *SIMILARITIES]), noise_hu=st.floats(1, 500), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_no_metric_prefers_one_side(large, profile, noise_hu, seed):
    reference, _, mask = large
    predicted = reference + np.random.default_rng(seed).normal(0, noise_hu, reference.shape)
    forth, back = (profile(*sides, mask, top_hu=3071) for sides in ((reference, predicted), (predicted, reference)))
    assert forth == pytest.approx(back, rel=1e-9)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_air_around_the_patient_does_not_change_the_similarity(large, similarity):
    reference, predicted, mask = large
    wider = [
        np.pad(x, ((96, 160), (0, 0), (96, 0)), constant_values=value) for x, value in ((reference, -1000), (predicted, 0), (mask, False))
    ]
    assert similarity(*wider, top_hu=3000) == pytest.approx(similarity(reference, predicted, mask, top_hu=3000), rel=1e-9)


def test_similarity_is_undefined_where_no_window_fits(pair):
    reference, predicted, mask = pair
    assert np.isnan(metrics.ssim(*(x[:, :, 8:14] for x in pair), top_hu=3000))
    assert np.isnan(metrics.ms_ssim(reference, predicted, mask, top_hu=3000))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_ssim_does_not_depend_on_which_way_an_axis_runs(pair, axis):
    flipped = [np.flip(x, axis) for x in pair]
    assert metrics.ssim(*flipped, top_hu=3000) == pytest.approx(metrics.ssim(*pair, top_hu=3000))


def test_only_voxels_inside_the_mask_count(pair):
    reference, predicted, mask = pair
    changed = np.where(mask, predicted, 2000.0)
    assert metrics.mae(reference, changed, mask) == metrics.mae(reference, predicted, mask)
    assert metrics.psnr(reference, changed, mask, top_hu=3000) == metrics.psnr(reference, predicted, mask, top_hu=3000)
    assert metrics.ssim(reference, changed, mask, top_hu=3000) == metrics.ssim(reference, predicted, mask, top_hu=3000)


def test_psnr_of_equal_images_is_infinite_and_its_peak_is_the_range(pair):
    reference, _, mask = pair
    assert metrics.psnr(reference, reference, mask, top_hu=3000) == float("inf")
    flat = np.zeros_like(reference)
    assert metrics.psnr(flat, flat + 4024.0, mask, top_hu=5000) == pytest.approx(20 * np.log10(6024 / 4024))


def test_band_errors_tell_bias_from_spread():
    reference = np.array([[[-1000.0, -1000.0, 40.0, 40.0, 900.0, 900.0]]])
    predicted = np.array([[[-900.0, -1100.0, 50.0, 50.0, 700.0, 700.0]]])
    figures = metrics.band_errors(reference, predicted, np.ones(reference.shape, dtype=bool))
    assert figures["bias_air_hu"] == 0
    assert figures["mae_air_hu"] == 100
    assert figures["bias_soft_hu"] == figures["mae_soft_hu"] == 10
    assert figures["bias_bone_hu"] == -200
    assert "bias_fat_hu" not in figures


def test_through_plane_energy_rises_with_jumps_between_slices(pair):
    reference, _, mask = pair
    jumping = reference + 100.0 * (np.arange(reference.shape[2]) % 2)
    assert metrics.through_plane_energy(reference, reference, mask) == 1
    assert metrics.through_plane_energy(reference, jumping, mask) > 1.05


def test_dice_of_two_empty_masks_is_undefined():
    empty = np.zeros((2, 2, 2), dtype=bool)
    assert np.isnan(metrics.dice(empty, empty))
    assert metrics.dice(~empty, ~empty) == 1
