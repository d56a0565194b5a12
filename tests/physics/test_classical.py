"""Classical reconstruction from 18 views: each method does what it is for."""

from functools import cache

import ellipses
import pytest
import torch
from ellipses import BODY, relative
from torch import Tensor

from medsynth.physics.classical import (
    TV_WEIGHT,
    accelerated_sirt,
    ordered_total_variation,
    sirt,
    total_variation,
    tv_weight,
)
from medsynth.physics.ct import Projector, mu_to_hu, projector, relative_residual
from medsynth.physics.geometry import Geometry, ImageGrid, fan, parallel
from medsynth.physics.noise import expected_relative_noise, photon_noise

GRID = ImageGrid(size=128, pixel_mm=1.9)
FAN = fan(18, detectors=240, pitch_mm=2.5716)
PARALLEL = parallel(18, detectors=200, pitch_mm=1.409)
I0 = 1e6


@cache
def case(geometry: Geometry = FAN) -> tuple[Projector, Tensor, Tensor]:
    """Operator, true image, and a noisy sinogram by formula, which owes nothing to the operator."""
    sinogram = photon_noise(ellipses.sinogram(geometry), I0, torch.Generator().manual_seed(0))
    return projector(geometry, GRID), ellipses.image(GRID), sinogram


def rmse_hu(image: Tensor, truth: Tensor) -> float:
    return float((mu_to_hu(image) - mu_to_hu(truth)).square().mean().sqrt())


@pytest.mark.parametrize("geometry", [FAN, PARALLEL])
def test_all_of_them_agree_with_the_data_better_than_fbp_and_come_nearer_to_the_truth(geometry: Geometry) -> None:
    operator, truth, sinogram = case(geometry)
    fbp = operator.fbp(sinogram, "hann-pixel")
    images = {
        "sirt": sirt(operator, sinogram, 60),
        "accelerated": accelerated_sirt(operator, sinogram, 30),
        "tv": total_variation(operator, sinogram, tv_weight(18), 80),
    }
    errors = {name: rmse_hu(image, truth) for name, image in images.items()}
    for name, image in images.items():
        assert image.min() >= 0
        assert relative_residual(operator, image, sinogram) < 0.4 * relative_residual(operator, fbp, sinogram)
        assert errors[name] < 0.6 * rmse_hu(fbp, truth)
    assert errors["tv"] < 0.6 * errors["accelerated"]


def test_acceleration_saves_most_of_the_iterations() -> None:
    operator, _, sinogram = case()
    quick = relative_residual(operator, accelerated_sirt(operator, sinogram, 30), sinogram)
    assert quick < relative_residual(operator, sirt(operator, sinogram, 120), sinogram)


@pytest.mark.parametrize("method", [sirt, accelerated_sirt, lambda *a, **k: total_variation(*a[:2], 5e-4, *a[2:], **k)])
def test_each_goes_on_from_where_it_is_started_and_leaves_that_as_it_was(method: type) -> None:
    operator, truth, sinogram = case()
    near = truth.clone()
    assert rmse_hu(method(operator, sinogram, 3, start=near), truth) < 0.5 * rmse_hu(method(operator, sinogram, 3), truth)
    assert torch.equal(near, truth)


def test_slices_of_a_batch_are_reconstructed_as_if_alone() -> None:
    operator, _, sinogram = case()
    batch = torch.cat([0.7 * sinogram, sinogram, torch.zeros_like(sinogram)])
    for method in (accelerated_sirt, lambda *a: total_variation(*a[:2], 5e-4, a[2])):
        images = method(operator, batch, 6)
        assert relative(images[1:2], method(operator, sinogram, 6)) < 1e-4
        assert images[2].abs().max() == 0


def test_total_variation_flattens_noise_and_more_so_with_more_weight() -> None:
    operator, _, sinogram = case()
    flat = ellipses.inside(GRID, BODY[0]) & ~torch.stack([ellipses.inside(GRID, e, 1.4) for e in BODY[1:]]).any(0)
    spread = [float(mu_to_hu(total_variation(operator, sinogram, weight, 60))[0][flat].std()) for weight in (0.0, 3e-4, 3e-3)]
    assert spread[2] < 0.7 * spread[1] < 0.7 * 0.7 * spread[0]


def test_without_weight_total_variation_is_accelerated_sirt() -> None:
    operator, _, sinogram = case()
    assert relative(total_variation(operator, sinogram, 0.0, 10), accelerated_sirt(operator, sinogram, 10)) < 1e-5


def test_an_image_that_agrees_with_the_data_is_kept() -> None:
    operator, truth, _ = case()
    assert relative(ordered_total_variation(operator, operator.forward(truth), 0.0, 3, start=truth), truth) < 1e-5


def test_a_few_steps_on_subsets_bring_a_network_like_error_back_to_the_data() -> None:
    """A smooth error of a few tens of HU, as networks make it, is seen by the rays and taken out for the greater part."""
    operator, truth, _ = case()
    sinogram = photon_noise(operator.forward(truth), I0, torch.Generator().manual_seed(1))
    axis = torch.linspace(-1, 1, GRID.size)
    bump = 0.002 * torch.exp(-((axis[:, None] - 0.2) ** 2 + axis[None] ** 2) / 0.05)
    start = truth + bump
    finished = ordered_total_variation(operator, sinogram, tv_weight(18), 3, start=start)
    assert relative_residual(operator, finished, sinogram) < 0.3 * relative_residual(operator, start, sinogram)
    assert rmse_hu(finished, truth) < 0.6 * rmse_hu(start, truth)


def test_the_truth_leaves_the_residual_that_the_noise_predicts() -> None:
    operator, truth, _ = case()
    clean = operator.forward(truth)
    noisy = photon_noise(clean, I0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(relative_residual(operator, truth, noisy), expected_relative_noise(noisy, I0), rtol=0.1, atol=0)


@pytest.mark.parametrize("views", [18, 36])
def test_steps_on_subsets_come_as_near_in_a_few_times_through_the_data(views: int) -> None:
    operator, truth, sinogram = case(fan(views))
    start, weight = operator.fbp(sinogram, "hann-pixel").clamp(min=0), tv_weight(views)
    slow, quick = (
        total_variation(operator, sinogram, weight, 16, start=start),
        ordered_total_variation(operator, sinogram, weight, 16, start=start),
    )
    assert rmse_hu(quick, truth) < 0.7 * rmse_hu(slow, truth)
    assert relative_residual(operator, quick, sinogram) < relative_residual(operator, slow, sinogram)
    assert quick.min() >= 0


@pytest.mark.parametrize("size", [64, 128])
def test_steps_on_subsets_of_three_views_do_not_diverge(size: int) -> None:
    """A grid that is small beside the detector did, with whole steps."""
    grid = ImageGrid(size=size, pixel_mm=1.5)
    operator, truth = projector(fan(18), grid), ellipses.image(grid)
    sinogram = photon_noise(operator.forward(truth), I0, torch.Generator().manual_seed(0))
    start = operator.fbp(sinogram, "hann-pixel").clamp(min=0)
    errors = [rmse_hu(ordered_total_variation(operator, sinogram, tv_weight(18), epochs, start=start), truth) for epochs in (4, 16)]
    assert errors[1] < errors[0]


def test_the_weight_of_total_variation_lies_between_those_tuned() -> None:
    assert {views: tv_weight(views) for views in TV_WEIGHT} == pytest.approx(TV_WEIGHT)
    assert TV_WEIGHT[18] >= tv_weight(25) >= TV_WEIGHT[36]
    weights = [tv_weight(views) for views in range(5, 200)]
    assert weights == sorted(weights, reverse=True)
