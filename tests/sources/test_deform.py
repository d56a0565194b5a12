"""Where a patch lies in the map: exact without deformation, bounded with one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.sources.deform import OVERHANG_MM, Deformation, coordinates, draw_deformation, place

CPU = torch.device("cpu")
MAP = (90, 100, 110)
PATCH = (24, 20, 28)
seeds = st.integers(0, 2**32 - 1)


def test_a_head_in_place_is_seen_on_a_straight_grid() -> None:
    points = coordinates(place(np.array([30.0, 40.0, 50.0]), 1.5), PATCH, CPU)
    for axis, (n, middle) in enumerate(zip(PATCH, (30, 40, 50), strict=True)):
        along = points[axis].movedim(axis, 0).flatten(1)
        expected = middle + 1.5 * (torch.arange(n) - (n - 1) / 2)
        torch.testing.assert_close(along, expected[:, None].expand_as(along))


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_a_seed_gives_one_deformation(seed: int) -> None:
    first, second = (_points(_draw(seed)) for _ in range(2))
    assert torch.equal(first, second)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_heads_keep_about_their_size(seed: int) -> None:
    lengths = np.linalg.norm(_draw(seed).matrix, axis=0) / 1.5
    assert (lengths > 0.8).all()
    assert (lengths < 1.25).all()


@pytest.mark.parametrize("seed", range(20))
def test_heads_are_bent_but_not_folded(seed: int) -> None:
    """The Jacobian keeps its sign in every voxel."""
    deformation = _draw(seed)
    points = _points(deformation)
    x, y, z = points[:, 1:, :-1, :-1], points[:, :-1, 1:, :-1], points[:, :-1, :-1, 1:]
    steps = torch.stack([neighbour - points[:, :-1, :-1, :-1] for neighbour in (x, y, z)], dim=-1)
    volume = torch.linalg.det(steps.permute(1, 2, 3, 0, 4)) / np.linalg.det(deformation.matrix)
    assert volume.min() > 0
    assert volume.std() > 0


def test_half_of_the_heads_are_mirrored() -> None:
    mirrored = [np.linalg.det(_draw(seed).matrix) < 0 for seed in range(200)]
    assert 70 < sum(mirrored) < 130


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_the_patch_looks_past_the_map_by_no_more_than_the_overhang(seed: int) -> None:
    past_mm = np.abs(_draw(seed).centre - np.array(MAP) / 2) + np.array(PATCH) * 1.5 / 2 - np.array(MAP) / 2
    assert (past_mm <= OVERHANG_MM).all()


def _draw(seed: int) -> Deformation:
    return draw_deformation(np.random.default_rng(seed), MAP, PATCH, 1.5)


def _points(deformation: Deformation) -> torch.Tensor:
    return coordinates(deformation, PATCH, CPU)
