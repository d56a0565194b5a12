"""Texture has the measured spectrum, stays within its tissues, and is a function of its record."""

import numpy as np
import pytest
import torch
from torch import Tensor

from medsynth.sources.deform import place
from medsynth.sources.labels import draw_plain, render, tissue_map
from medsynth.sources.packed import Head
from medsynth.sources.texture import (
    NOISE_DENSITY_MM2,
    NOISE_SD_HU,
    RING_PER_MM,
    SOFT_SD_HU,
    TRABECULAR_SD_HU,
    Texture,
    add_texture,
    apply_texture,
    draw_texture,
)
from medsynth.sources.tissues import HU_RANGE, INDEX

SHAPE = (64, 64, 24)
NOISE_ALONE = Texture(noise_sd_hu=20.0, trabecular_sd_hu=0.0, soft_sd_hu=0.0, noise_seed=3)


@pytest.mark.parametrize("spacing_mm", [0.7, 1.0, 2.0])
def test_noise_has_the_power_of_the_table_at_each_frequency(spacing_mm: float) -> None:
    noise = _noise(NOISE_ALONE, spacing_mm).numpy().astype(np.float64)
    power = (np.abs(np.fft.fft2(noise, axes=(0, 1))) ** 2).mean(axis=2) * spacing_mm**2 / (SHAPE[0] * SHAPE[1])
    per_mm = np.fft.fftfreq(SHAPE[0], spacing_mm)
    radius = np.hypot(per_mm[:, None], per_mm[None])
    middles = (np.arange(len(NOISE_DENSITY_MM2)) + 0.5) * RING_PER_MM
    checked = 0
    for middle, density in zip(middles[:13], NOISE_DENSITY_MM2, strict=False):  # the last rings are almost empty
        near = np.abs(radius - middle) < 0.4 * RING_PER_MM
        if near.sum() >= 20 and middle < 0.5 / spacing_mm:
            assert power[near].mean() == pytest.approx(20.0**2 * density, rel=0.15)
            checked += 1
    assert checked >= 3


def test_a_fine_grid_has_all_of_the_noise_and_a_coarse_one_the_part_below_its_limit() -> None:
    fine, middle, coarse = (_noise(NOISE_ALONE, spacing_mm).std().item() for spacing_mm in (0.6, 1.0, 2.0))
    assert fine == pytest.approx(20, rel=0.03)
    assert 0.55 * 20 < coarse < 0.8 * 20
    assert coarse < middle < fine


def test_neighbouring_slices_have_independent_noise() -> None:
    noise = _noise(NOISE_ALONE, 1.0)
    assert _correlation(noise[:, :, 1:], noise[:, :, :-1]) == pytest.approx(0, abs=0.02)
    assert _correlation(noise[1:], noise[:-1]) > 0.1


def test_air_gets_noise_and_stays_within_what_a_ct_stores() -> None:
    textured = apply_texture(torch.full(SHAPE, -1000.0), None, NOISE_ALONE, 2.0)
    assert textured.std() > 5
    assert textured.min() == -1024


def test_trabeculae_are_in_cancellous_bone_alone_with_the_spread_that_was_drawn() -> None:
    tissue, ct_hu = _thirds("cancellous", "cortical", "csf")
    change = apply_texture(ct_hu, tissue, Texture(0.0, 90.0, 0.0, 5), 2.0) - ct_hu
    assert change[tissue == INDEX["cancellous"]].std().item() == pytest.approx(90, rel=0.05)
    assert (change[tissue != INDEX["cancellous"]].abs() < 1e-3).all()


def test_soft_tissue_is_uneven_over_centimetres_and_fluid_is_not() -> None:
    tissue, ct_hu = _thirds("white", "ventricle", "fat")
    change = apply_texture(ct_hu, tissue, Texture(0.0, 0.0, 8.0, 5), 2.0) - ct_hu
    for name in ("white", "fat"):
        part = change[tissue == INDEX[name]].reshape(-1, *SHAPE[1:])
        assert part.std().item() == pytest.approx(8, rel=0.25)
        assert _correlation(part[:, 1:], part[:, :-1]) > 0.6
    assert (change[tissue == INDEX["ventricle"]].abs() < 1e-3).all()


def test_the_same_generator_gives_the_same_texture_and_it_moves_on() -> None:
    tissue, ct_hu = _thirds("white", "cancellous", "fat")
    rng = torch.Generator().manual_seed(1)
    first, second = (add_texture(ct_hu, tissue, rng, 2.0) for _ in range(2))
    again = add_texture(ct_hu, tissue, torch.Generator().manual_seed(1), 2.0)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(ct_hu, _thirds("white", "cancellous", "fat")[1])


def test_drawn_spreads_fill_their_ranges() -> None:
    rng = torch.Generator().manual_seed(0)
    drawn = [draw_texture(rng) for _ in range(200)]
    for field, (low, high) in zip(
        ("noise_sd_hu", "trabecular_sd_hu", "soft_sd_hu"), (NOISE_SD_HU, TRABECULAR_SD_HU, SOFT_SD_HU), strict=True
    ):
        values = [getattr(one, field) for one in drawn]
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high


def test_the_tissue_map_belongs_to_the_rendered_pair(head: Head) -> None:
    patch = (32, 32, 32)
    recipe = draw_plain(np.random.default_rng(0), 0, "t1", place(np.array([30.5, 32.5, 28.5]), 1.0), patch, 1.0)
    _, target = render(recipe, head, patch, torch.device("cpu"))
    tissue = tissue_map(recipe, head, patch, torch.device("cpu"))
    ct_hu = target.image[0, 0] * 2012 + 988
    assert {INDEX["fat"], INDEX["cancellous"]} <= set(tissue.unique().tolist())
    torch.testing.assert_close(ct_hu, torch.from_numpy(HU_RANGE.mean(1))[tissue], atol=1e-2, rtol=0)


def _noise(texture: Texture, spacing_mm: float) -> Tensor:
    return apply_texture(torch.zeros(SHAPE), None, texture, spacing_mm)


def _thirds(*names: str) -> tuple[Tensor, Tensor]:
    """Tissues [x y z] in three slabs along x, and their CT."""
    tissue = torch.zeros(SHAPE, dtype=torch.long)
    for number, name in enumerate(names):
        tissue[number * 22 : (number + 1) * 22] = INDEX[name]
    return tissue, torch.from_numpy(HU_RANGE.mean(1))[tissue]


def _correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
