"""Photon statistics: the mean, the variance, the seed, and what happens where no photon comes through."""

import math

import pytest
import torch

from medsynth.physics.noise import counts_to_line_integrals, expected_relative_noise, photon_noise


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("line_integral", "i0"), [(0.0, 1e6), (3.0, 1e6), (2.0, 1e5), (5.0, 1e5)])
def test_mean_and_variance_are_those_of_the_photons(line_integral: float, i0: float) -> None:
    clean = torch.full((200_000,), line_integral)
    noisy = photon_noise(clean, i0, seeded())
    counts = i0 * math.exp(-line_integral)
    variance = 1 / counts + 10 / counts**2
    assert noisy.double().var().item() == pytest.approx(variance, rel=0.03)
    # the logarithm's own bias is half of the variance
    assert noisy.double().mean().item() == pytest.approx(line_integral + variance / 2, abs=5 * math.sqrt(variance / len(clean)) + 1e-6)


def test_electronic_noise_rules_where_few_photons_come() -> None:
    clean = torch.full((100_000,), math.log(1e5 / 100))
    quiet, loud = (photon_noise(clean, 1e5, seeded(), electronic_sd).var() for electronic_sd in (0.0, 20.0))
    assert loud / quiet == pytest.approx(5, rel=0.15)  # 100 counts: Poisson variance 100, electronic 400


def test_no_photon_counts_as_one() -> None:
    noisy = photon_noise(torch.full((1000,), 50.0), 1e6, seeded(), electronic_sd=0.0)
    torch.testing.assert_close(noisy, torch.full((1000,), math.log(1e6)))
    assert counts_to_line_integrals(torch.tensor([-3.0, 0.0, 1.0]), 1e4).tolist() == pytest.approx([math.log(1e4)] * 3)


def test_counts_lead_back_to_line_integrals() -> None:
    clean = torch.linspace(-0.1, 8, 100)
    torch.testing.assert_close(counts_to_line_integrals(1e6 * torch.exp(-clean), 1e6), clean, rtol=1e-5, atol=2e-6)


def test_noise_follows_from_its_generator() -> None:
    clean = torch.rand(3, 18, 50)
    assert torch.equal(photon_noise(clean, 1e5, seeded(1)), photon_noise(clean, 1e5, seeded(1)))
    assert not torch.equal(photon_noise(clean, 1e5, seeded(1)), photon_noise(clean, 1e5, seeded(2)))


@pytest.mark.parametrize("i0", [1e4, 1e6])
def test_the_expected_noise_is_what_is_found(i0: float) -> None:
    clean = torch.stack([torch.linspace(0, 4, 20_000), torch.linspace(0, 6, 20_000)])[:, None]
    noisy = photon_noise(clean, i0, seeded())
    found = (noisy - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)
    torch.testing.assert_close(expected_relative_noise(clean, i0), found, rtol=0.1, atol=0)
    torch.testing.assert_close(expected_relative_noise(noisy, i0), found, rtol=0.15, atol=0)
