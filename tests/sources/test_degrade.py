"""Each thing that a scanner does to an image, alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medsynth.sources.degrade import Degradation, degrade, draw_degradation

IDEAL = Degradation(
    bias=(np.zeros((1, 4, 4, 4), dtype=np.float32), np.zeros((1, 2, 2, 2), dtype=np.float32)),
    blur_sigma=0.0,
    slice_axis=2,
    slice_voxels=1.0,
    slice_averaged=True,
    noise=0.0,
    air_below=0.0,
    gamma=1.0,
    gain=1.0,
    cuts=(),
)
seeds = st.integers(0, 2**32 - 1)


def test_an_ideal_scan_is_only_scaled_to_its_brightest_tissue() -> None:
    image = _blocks()
    scanned, view = _scan(image, IDEAL)
    torch.testing.assert_close(scanned, image / image.max())
    assert view.all()


def test_the_gain_of_the_scanner_does_not_show() -> None:
    torch.testing.assert_close(_scan(_blocks(), IDEAL)[0], _scan(7 * _blocks(), IDEAL)[0])


def test_the_bias_field_is_smooth_and_multiplies() -> None:
    rng = np.random.default_rng(0)
    bias = ((0.2 * rng.standard_normal((1, 4, 4, 4))).astype(np.float32), IDEAL.bias[1])
    field = _scan(_blocks(), IDEAL._replace(bias=bias))[0] / _scan(_blocks(), IDEAL)[0]
    assert field.std() > 0.02
    assert max(field.diff(dim=axis).abs().max() for axis in range(3)) < 0.15


def test_blur_keeps_the_mean_and_softens_edges() -> None:
    image = torch.zeros(24, 24, 24)
    image[8:16, 8:16, 8:16] = 1
    blurred = _scan(image, IDEAL._replace(blur_sigma=0.8))[0]
    blurred /= blurred.max()
    assert blurred.sum() == pytest.approx(8**3, rel=1e-3)
    assert blurred.diff(dim=0).abs().max() < 0.6


@pytest.mark.parametrize("averaged", [True, False])
def test_thick_slices_lose_detail_along_their_axis_only(averaged: bool) -> None:
    fine = torch.rand(32, 32, 32, generator=torch.Generator().manual_seed(0)) + 1
    thick = _scan(fine, IDEAL._replace(slice_axis=1, slice_voxels=4.0, slice_averaged=averaged))[0]
    across, along = (thick.diff(dim=axis).square().mean() for axis in (0, 1))
    assert along < across / 4
    assert thick.shape == fine.shape


def test_noise_in_air_has_the_mean_of_rayleigh_and_that_in_tissue_its_own_spread() -> None:
    image = torch.zeros(32, 32, 32)
    image[:16] = 1
    scanned = _scan(image, IDEAL._replace(noise=0.05))[0]
    assert scanned[16:].mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.02)
    assert scanned[:16].std() == pytest.approx(0.05, rel=0.05)


def test_blanked_air_is_exactly_zero() -> None:
    scanned = _scan(_blocks(), IDEAL._replace(air_below=0.3))[0]
    reference = _scan(_blocks(), IDEAL)[0]
    assert (scanned[reference < 0.3] == 0).all()
    assert torch.equal(scanned[reference >= 0.3], reference[reference >= 0.3])


def test_gamma_bends_the_signal() -> None:
    torch.testing.assert_close(_scan(_blocks(), IDEAL._replace(gamma=1.3))[0], _scan(_blocks(), IDEAL)[0] ** 1.3)


def test_cut_ends_are_zero_and_outside_the_field_of_view() -> None:
    scanned, view = _scan(_blocks() + 1, IDEAL._replace(cuts=((2, 5), (0, -3))))
    expected = torch.ones(24, 24, 24, dtype=torch.bool)
    expected[:, :, :5] = False
    expected[-3:] = False
    assert torch.equal(view, expected)
    assert torch.equal(scanned > 0, expected)


def test_noise_comes_from_the_generator_that_is_passed_in() -> None:
    noisy = IDEAL._replace(noise=0.05)
    first, again, other = (degrade(_blocks(), noisy, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@settings(deadline=None)
@given(seeds, st.integers(18, 128))
def test_what_is_cut_off_leaves_most_axes_and_some_of_each(seed: int, side: int) -> None:
    left = [side] * 3
    for axis, voxels in draw_degradation(np.random.default_rng(seed), (side, side, side), 1.5).cuts:
        left[axis] -= abs(voxels)
    assert min(left) >= side / 3 - 1
    assert max(left) == side


@settings(deadline=None)
@given(seeds)
def test_drawn_scans_stay_within_what_scanners_do(seed: int) -> None:
    drawn = draw_degradation(np.random.default_rng(seed), (96, 112, 96), 1.5)
    assert 0 <= drawn.noise <= 0.06
    assert 0 <= drawn.air_below <= 0.12
    assert drawn.slice_voxels == 1 or 3 / 1.5 <= drawn.slice_voxels <= 6.5 / 1.5
    assert drawn.blur_sigma == 0 or 0.4 / 1.5 <= drawn.blur_sigma <= 1.5 / 1.5
    assert drawn.gamma > 0
    assert drawn.gain > 0


def _blocks() -> Tensor:
    """Air, and two tissues with signals 1 and 2, [24 24 24]; the brighter one is more than 2 % of the voxels."""
    image = torch.full((24, 24, 24), 0.02)
    image[4:20, 4:20, 4:20] = 1
    image[8:16, 8:16, 8:16] = 2
    return image


def _scan(image: Tensor, how: Degradation) -> tuple[Tensor, Tensor]:
    return degrade(image, how, torch.Generator().manual_seed(0))
