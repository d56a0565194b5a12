"""The drift loss: against a transcription of its formula in plain NumPy, and the laws that the method stands on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medsynth.core.drift import TEMPERATURES, drift_loss


def transcribed(gen: np.ndarray, pos: np.ndarray, neg: np.ndarray, weights: tuple[np.ndarray, ...], taus: tuple[float, ...]) -> np.ndarray:
    """V, float64 [b g d], in scaled units: Algorithm 2 of Deng 2026 written sample by sample; weights of gen, neg and pos."""
    b, g, d = gen.shape
    everyone = np.concatenate([gen, neg, pos], axis=1)
    w = np.concatenate(weights, axis=1)
    count, first_positive = everyone.shape[1], g + neg.shape[1]
    distance = np.zeros((b, g, count))
    for k in range(b):
        for i in range(g):
            for j in range(count):
                distance[k, i, j] = max(math.sqrt(((gen[k, i] - everyone[k, j]) ** 2).sum()), 1e-4)
    scale = (distance * w[:, None]).mean() / w.mean()
    unit = max(scale / math.sqrt(d), 1e-3)
    normalised = distance / max(scale, 1e-3)
    for i in range(g):
        normalised[:, i, i] += 100
    total = np.zeros_like(gen)
    for tau in taus:
        kernel = np.exp(-(normalised - normalised.min(axis=2, keepdims=True)) / tau)
        over_targets = kernel / kernel.sum(2, keepdims=True)
        kernel = np.exp(-(normalised - normalised.min(axis=1, keepdims=True)) / tau)
        over_samples = kernel / kernel.sum(1, keepdims=True)
        affinity = np.sqrt(np.maximum(over_targets * over_samples, 1e-6)) * w[:, None]
        force = np.zeros_like(gen)
        for k in range(b):
            for i in range(g):
                push, pull = affinity[k, i, :first_positive], affinity[k, i, first_positive:]
                for j in range(first_positive, count):
                    force[k, i] += push.sum() * affinity[k, i, j] * (everyone[k, j] - gen[k, i]) / unit
                for j in range(first_positive):
                    force[k, i] -= pull.sum() * affinity[k, i, j] * (everyone[k, j] - gen[k, i]) / unit
        total += force / math.sqrt(max((force**2).mean(), 1e-8))
    return total


def sets(seed: int, b: int = 3, g: int = 5, p: int = 6, n: int = 4, d: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(b, g, d, generator=rng), torch.randn(b, p, d, generator=rng) + 0.5, torch.randn(b, n, d, generator=rng) - 0.5


def force(gen: Tensor, pos: Tensor, neg: Tensor | None = None, **settings: object) -> Tensor:
    """Where the loss pushes each sample, in units of its own: minus the gradient, per problem."""
    leaf = gen.clone().requires_grad_()
    loss, _ = drift_loss(leaf, pos, neg, **settings)  # pyright: ignore[reportArgumentType]
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return -gradient


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("negatives", [0, 4])
def test_loss_and_gradient_are_those_of_the_formula(weighted: bool, negatives: int) -> None:
    gen, pos, neg = sets(0, n=negatives)
    rng = torch.Generator().manual_seed(1)
    weights = [torch.rand(x.shape[:2], generator=rng) + 0.5 if weighted else torch.ones(x.shape[:2]) for x in (gen, neg, pos)]
    field = transcribed(*(x.double().numpy() for x in (gen, pos, neg)), tuple(w.double().numpy() for w in weights), TEMPERATURES)
    given_weights = dict(zip(("weight_gen", "weight_neg", "weight_pos"), weights, strict=True)) if weighted else {}
    leaf = gen.clone().requires_grad_()
    loss, figures = drift_loss(leaf, pos, neg if negatives else None, **given_weights)
    np.testing.assert_allclose(loss.detach(), (field**2).mean((1, 2)), rtol=1e-5)
    unit = figures["scale"].item() / math.sqrt(gen.shape[2])
    loss.sum().backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad, -2 * field / (unit * field[0].size), rtol=1e-4, atol=1e-6)


def test_features_far_from_zero_keep_their_field() -> None:
    """Encoders' features have large means; what counts is how they differ."""
    gen, pos, neg = sets(2)
    torch.testing.assert_close(force(gen + 300, pos + 300, neg + 300), force(gen, pos, neg), rtol=1e-3, atol=1e-4)


def test_exchanging_real_and_repelling_samples_turns_the_field_round() -> None:
    gen, pos, neg = sets(3, p=5, n=5)
    nobody = torch.zeros(gen.shape[:2])
    toward, away = force(gen, pos, neg, weight_gen=nobody), force(gen, neg, pos, weight_gen=nobody)
    torch.testing.assert_close(toward, -away, rtol=1e-4, atol=1e-5)
    assert toward.abs().max() > 0.01


def test_equal_sets_leave_no_field() -> None:
    gen, pos, _ = sets(4)
    leaf = gen.clone().requires_grad_()
    _, figures = drift_loss(leaf, pos, pos, weight_gen=torch.zeros(gen.shape[:2]))
    assert all(figures[f"rms_{t:g}"] < 1e-6 for t in TEMPERATURES)


def test_samples_of_the_real_distribution_have_a_much_weaker_field_than_others() -> None:
    rng = torch.Generator().manual_seed(5)
    real, same = (torch.randn(8, 64, 4, generator=rng) for _ in range(2))
    _, at_rest = drift_loss(same, real)
    _, apart = drift_loss(same + 3, real)
    assert at_rest["rms_0.2"] < 0.5 * apart["rms_0.2"]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 100))
def test_the_loss_does_not_know_units(seed: int, factor: float) -> None:
    gen, pos, neg = sets(seed)
    loss, _ = drift_loss(gen, pos, neg)
    scaled, _ = drift_loss(factor * gen, factor * pos, factor * neg)
    torch.testing.assert_close(scaled, loss, rtol=1e-3, atol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_the_order_of_samples_does_not_matter(seed: int) -> None:
    gen, pos, neg = sets(seed)
    rng = torch.Generator().manual_seed(seed)
    i, j, k = (torch.randperm(x.shape[1], generator=rng) for x in (gen, pos, neg))
    torch.testing.assert_close(force(gen[:, i], pos[:, j], neg[:, k]), force(gen, pos, neg)[:, i], rtol=1e-3, atol=1e-4)


def test_the_field_carries_samples_to_the_real_ones() -> None:
    rng = torch.Generator().manual_seed(6)
    gen, real = torch.randn(1, 32, 2, generator=rng), 0.5 * torch.randn(1, 32, 2, generator=rng) + 4
    sample = gen.clone().requires_grad_()
    optimizer = torch.optim.Adam([sample], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        drift_loss(sample, real)[0].sum().backward()
        optimizer.step()
    assert (sample.mean(1) - real.mean(1)).norm() < 0.3
    assert 0.5 < (sample.std() / real.std()) < 1.5


def test_the_gradient_is_that_of_finite_differences_to_the_fixed_goal() -> None:
    """The goal is held fixed: along the gradient, half of the squared distance to it changes as its slope says."""
    gen, pos, neg = sets(7)
    leaf = gen.double().clone().requires_grad_()
    loss, figures = drift_loss(leaf, pos, neg)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    unit = figures["scale"].double() / math.sqrt(gen.shape[2])
    goal = gen.double() / unit - gradient * unit * gen[0].numel() / 2

    def distance(x: Tensor) -> Tensor:
        return (x / unit - goal).square().mean((1, 2)).sum()

    torch.testing.assert_close(distance(gen.double()), loss.sum().double(), rtol=1e-4, atol=1e-6)
    direction = torch.randn(gen.shape, generator=torch.Generator().manual_seed(8)).double()
    slope = (distance(gen.double() + 1e-4 * direction) - distance(gen.double() - 1e-4 * direction)) / 2e-4
    torch.testing.assert_close(slope, (gradient * direction).sum(), rtol=1e-4, atol=1e-6)


def test_gradients_go_into_the_generated_samples_alone() -> None:
    gen, pos, neg = (x.requires_grad_() for x in sets(9))
    drift_loss(gen, pos, neg)[0].sum().backward()
    assert gen.grad is not None
    assert pos.grad is None
    assert neg.grad is None


def test_half_precision_outside_is_computed_in_single() -> None:
    gen, pos, neg = (x.bfloat16() for x in sets(10))
    expected, _ = drift_loss(gen.float(), pos.float(), neg.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, figures = drift_loss(gen, pos, neg)
    assert loss.dtype == torch.float32
    assert {value.dtype for value in figures.values()} == {torch.float32}
    torch.testing.assert_close(loss, expected)


def test_the_floor_makes_a_sharp_field_of_many_tokens_one_direction_for_all() -> None:
    """Hundreds of tokens, each far from all others at the sharpest temperature, have the floor's say alone: a difference of means."""
    rng = torch.Generator().manual_seed(11)
    gen, pos = torch.randn(1, 256, 8, generator=rng), torch.randn(1, 256, 8, generator=rng) + 1
    means_apart = (pos.mean(1) - gen.mean(1))[0]
    alike = {
        floor: torch.cosine_similarity(force(gen, pos, temperatures=(0.02,), floor=floor)[0], means_apart[None], dim=1).mean()
        for floor in (0.0, 1e-6)
    }
    assert alike[1e-6] > 0.85
    assert alike[0.0] < 0.7


def test_a_sample_at_its_own_target_rests_if_both_are_masked_or_neither() -> None:
    """Masked from itself, a sample finds itself between its target, which is near, and the others, which are far: it flees them."""
    rng = torch.Generator().manual_seed(12)
    target = 10 * torch.randn(4, 1, 6, generator=rng).transpose(0, 1)
    off = 0.5 * torch.randn(target.shape, generator=rng)
    assert force(target, target, self_distance=0.0).abs().max() < 1e-4
    assert force(target, target, self_distance=100.0, pair_distance=100.0).abs().max() < 1e-4
    assert force(target, target).abs().max() > 0.01
    toward = {d: torch.cosine_similarity(force(target + off, target, self_distance=d), -off, dim=2).mean() for d in (0.0, 100.0)}
    assert toward[0.0] > 0.9
    assert toward[100.0] < 0.3


def test_memory_does_not_hold_differences_of_all_pairs() -> None:
    """b g (g + p) d numbers would be 2 GB here, for each copy."""
    gen, pos = torch.randn(1, 64, 16384), torch.randn(1, 448, 16384)
    assert drift_loss(gen, pos)[0].isfinite().all()
