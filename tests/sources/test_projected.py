"""Slabs of CT with their own sinograms: repeatable, simulated on a finer grid, sharing a geometry in each batch."""

import numpy as np
import pytest
import torch

from medsynth.core.quantity import CT
from medsynth.physics.acquisition import to_slices
from medsynth.physics.ct import attenuation, mu_to_hu, relative_residual
from medsynth.sources import projected
from medsynth.sources.projected import ProjectedSlabs, Stack, draw_plain, draw_slab, render

CPU = torch.device("cpu")
SCALE = CT().fit()


def stack(name: str = "a", slices: int = 12, side: int = 64, spacing_mm: tuple[float, float, float] = (3.0, 5.0, 5.0)) -> Stack:
    """A body of water with a bone to the patient's left in front, brighter from slice to slice."""
    at = (np.arange(side) - (side - 1) / 2) * spacing_mm[1]
    y, x = np.meshgrid(at, at, indexing="ij")
    body = np.where(x**2 + (1.3 * y) ** 2 < 120**2, 0, -1000)
    bone = (x - 50) ** 2 + (y + 40) ** 2 < 25**2
    ct_hu = np.stack([np.where(bone, 300 + 30 * k, body) for k in range(slices)]).astype(np.int16)
    return Stack(name, ct_hu, spacing_mm, name)


@pytest.fixture
def source() -> ProjectedSlabs:
    return ProjectedSlabs([stack(), stack("b", slices=60)], views=(9, 18), slices=2, batch=2, seed=3, size=64)


def test_a_number_gives_the_same_pair_whatever_was_asked_before(source: ProjectedSlabs) -> None:
    again = ProjectedSlabs(source.stacks, views=source.views, slices=2, batch=2, seed=3, size=64)
    pairs = {number: source.training_pair(number, CPU) for number in range(20)}
    for number in (17, 3, 16, 0):
        condition, target = again.training_pair(number, CPU)
        assert torch.equal(condition.image, pairs[number][0].image)
        assert torch.equal(target.image, pairs[number][1].image)
        assert condition.passes == pairs[number][0].passes


def test_the_pairs_of_a_batch_share_geometry_and_passes(source: ProjectedSlabs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projected, "PASSES_FROM", 0)
    pairs = [source.training_pair(number, CPU)[0] for number in range(64)]
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert first.acquisition == second.acquisition
        assert first.passes == second.passes
    assert {pair.passes for pair in pairs} == {1, 2, 3}
    assert {pair.acquisition.geometry.views for pair in pairs} == {9, 18}


def test_each_slab_of_a_group_is_used_as_often_before_the_next_group(source: ProjectedSlabs) -> None:
    own = source.batch * projected.BATCHES_A_GROUP
    seen = [source.training_pair(number, CPU)[1].image.sum().item() for number in range(own * projected.USES)]
    for use in range(projected.USES):
        assert sorted(seen[use * own : (use + 1) * own]) == sorted(seen[:own])
    assert len(set(seen)) == own


def test_the_sinogram_is_that_of_the_target_but_for_noise_and_grid(source: ProjectedSlabs) -> None:
    for index in range(4):
        condition, target, kind = source.validation_pair(index, CPU)
        assert condition.sinogram is not None
        operator = condition.acquisition.operator(CPU)
        truth = attenuation(SCALE.decode(to_slices(target.image[:, 0])))
        residual = relative_residual(operator, truth, condition.sinogram[0])
        assert (residual > 1e-5).all()  # not the same matrix, and noise
        assert (residual < 0.02).all()
        assert kind == f"views{condition.acquisition.geometry.views}"


def test_the_first_image_is_closer_to_the_target_than_filtered_backprojection(source: ProjectedSlabs) -> None:
    condition, target, _ = source.validation_pair(0, CPU)
    assert condition.sinogram is not None
    backprojected = condition.acquisition.operator(CPU).fbp(condition.sinogram[0], "hann-pixel")
    first, wanted = (to_slices(x[:, 0]) for x in (condition.image, target.image))
    filtered = SCALE.encode(mu_to_hu(backprojected))
    assert (first - wanted).abs().mean() < (filtered - wanted).abs().mean()


def test_a_plain_slab_is_the_scan_itself_in_its_own_pose() -> None:
    scan = stack(side=72, spacing_mm=(3.0, 5.0, 5.0))
    recipe = draw_plain(np.random.default_rng(0), 0, scan, 2, 72)
    image = render(recipe, scan, 2, 72)
    inner = slice(8, -8)
    np.testing.assert_allclose(image[0].numpy()[inner, inner], scan.ct_hu[recipe.first][inner, inner].clip(-1000), atol=0.01)


def test_what_is_drawn_stays_within_a_ct_and_its_circle() -> None:
    rng = np.random.default_rng(1)
    scan = stack(slices=60)
    axes = set()
    for _ in range(30):
        recipe = draw_slab(rng, 0, scan, 3)
        axes.add(recipe.axis)
        image = render(recipe, scan, 3, 64)
        assert image.shape == (3, 64, 64)
        assert image.min() >= -1000
        assert image.max() <= projected.TOP_HU
        assert (image[:, 0, 0] == -1000).all()
    assert axes == {0, 1, 2}


def test_a_window_shows_its_part_of_the_target_and_counts_no_border_but_the_slices_own(source: ProjectedSlabs) -> None:
    windowed = ProjectedSlabs(source.stacks, views=source.views, slices=2, batch=2, seed=3, size=64, window=32)
    corners = set()
    for number in range(16):
        condition, target = windowed.training_pair(number, CPU)
        whole = source.training_pair(number, CPU)[1].image
        assert condition.window is not None
        x, y, side = condition.window
        corners.add((x, y))
        assert torch.equal(target.image, whole[:, :, x : x + side, y : y + side])
        assert (target.weight[:, :, 16, 16] == 1).all()
        assert target.weight[0, 0, 0, 16, 0] == (x == 0)
        assert target.weight[0, 0, 16, -1, 0] == (y + side == 64)
    assert len(corners) == 8  # one for each batch of two
