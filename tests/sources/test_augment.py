"""Each part of a change does what its name says, and nothing else."""

import numpy as np
import pytest
import torch
from torch import Tensor

from medsynth.sources.augment import BIAS_NODES, Change, change, draw_change

NONE = Change(
    gamma=1.0,
    bias=np.zeros((1, *[BIAS_NODES] * 3), dtype=np.float32),
    blur_sigma=(0.0, 0.0, 0.0),
    slice_axis=2,
    slice_voxels=1.0,
    noise=0.0,
    gain=1.0,
)


@pytest.fixture
def image() -> Tensor:
    """A bright cube in the dark, [1 x y z]."""
    array = torch.zeros(1, 24, 20, 22)
    array[:, 6:18, 5:15, 6:16] = 0.8
    return array


def changed(image: Tensor, **parts: object) -> Tensor:
    return change(image, NONE._replace(**parts), torch.Generator().manual_seed(0))


def test_nothing_changes_nothing(image: Tensor) -> None:
    assert torch.equal(changed(image), image)


def test_gamma_keeps_bright_tissue_and_gain_does_not(image: Tensor) -> None:
    torch.testing.assert_close(changed(image, gamma=2.0), image**2)
    torch.testing.assert_close(changed(image, gamma=2.0, gain=1.5), 1.5 * image**2)
    assert changed(torch.full_like(image, -1.0), gamma=0.5).max() == 0  # interpolation may reach below zero


def test_the_bias_field_multiplies_smoothly(image: Tensor) -> None:
    bias = np.zeros((1, *[BIAS_NODES] * 3), dtype=np.float32)
    bias[0, 0], bias[0, -1] = -0.5, 0.5
    field = changed(torch.ones_like(image), bias=bias)[0]
    assert field[0, 0, 0] == pytest.approx(np.exp(-0.5))
    assert field[-1, 0, 0] == pytest.approx(np.exp(0.5))
    assert (field.diff(dim=0) >= 0).all()
    assert field.diff(dim=0).max() < 0.2


def test_blur_spreads_along_its_axes_and_keeps_the_sum(image: Tensor) -> None:
    blurred = changed(image, blur_sigma=(1.5, 0.0, 0.0))
    assert float(blurred.sum()) == pytest.approx(float(image.sum()), rel=1e-5)
    assert blurred[0, 5, 10, 10] > 0.05
    assert not blurred[0, :, 4].any()
    inside, along = image[0, 6:18, 10, 10], blurred[0, :, 10, 10]
    variance = [float((line * (torch.arange(len(line)) - (len(line) - 1) / 2) ** 2).sum() / line.sum()) for line in (inside, along)]
    assert variance[1] - variance[0] == pytest.approx(1.5**2, rel=0.1)


def test_thick_slices_average_along_one_axis(image: Tensor) -> None:
    thick = changed(image, slice_axis=1, slice_voxels=5.0)
    assert thick.shape == image.shape
    assert 0 < thick[0, 10, 3, 10] < 0.8
    torch.testing.assert_close(thick[0, 6:18, 7:13, 6:16], torch.full((12, 6, 10), 0.8))
    assert not thick[0, :6].any()


def test_noise_is_that_of_a_magnitude_image(image: Tensor) -> None:
    noisy = changed(image, noise=0.03)
    assert noisy.min() >= 0
    assert noisy[image == 0].mean() == pytest.approx(0.03 * np.sqrt(np.pi / 2), rel=0.05)
    assert noisy[image > 0].std() == pytest.approx(0.03, rel=0.1)
    assert torch.equal(noisy, changed(image, noise=0.03))


def test_draws_vary_and_leave_most_parts_out() -> None:
    drawn = [draw_change(np.random.default_rng(seed), (1.0, 1.0, 2.5)) for seed in range(300)]
    shares = [np.mean([one.blur_sigma[0] > 0 for one in drawn]), np.mean([one.noise > 0 for one in drawn])]
    assert shares == pytest.approx([0.3, 0.5], abs=0.09)
    thick = [one for one in drawn if one.slice_voxels > 1]
    assert 0.08 < len(thick) / 300 < 0.25
    assert {one.slice_axis for one in thick} == {0, 1, 2}
    assert all(one.slice_voxels <= 6.0 / (2.5 if one.slice_axis == 2 else 1.0) for one in thick)
    assert all(one.blur_sigma[0] == pytest.approx(2.5 * one.blur_sigma[2]) for one in drawn)
    assert np.std([np.log(one.gamma) for one in drawn]) == pytest.approx(0.15, rel=0.15)
