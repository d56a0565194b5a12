"""Patches of packed scans: repeatable, true to the scan, weighted by what is known, and read from the file alone."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medsynth.core.generator import HEIGHTS, Condition, Target
from medsynth.core.quantity import CT
from medsynth.sources import paired
from medsynth.sources.deform import place
from medsynth.sources.paired import AIR, BODY, OUTSIDE_HU, OUTSIDE_WEIGHT, PACKED, UNKNOWN, PairedScans, Recipe, draw_training, render

CPU = torch.device("cpu")
PATCH = (16, 16, 16)
SPACING_MM = (2.0, 2.0, 3.0)
SHAPE = (40, 44, 36)


def packed(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A box of soft tissue with noise in it; the MR is the CT's (HU + 1000) / 1000; the lowest slices are unknown."""
    rng = np.random.default_rng(seed)
    voxels = np.zeros(shape, dtype=PACKED)
    body = np.zeros(shape, dtype=bool)
    body[6:-6, 6:-6, 3:-6] = True
    ct_hu = np.where(body, rng.integers(-100, 900, shape), OUTSIDE_HU)
    voxels["ct_hu"], voxels["image"] = ct_hu, (ct_hu + 1000) / 1000
    voxels["known"] = np.where(body, BODY, AIR)
    voxels["known"][:, :, :3] = UNKNOWN
    return voxels


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("packed")
    paths = tuple(folder / f"{seed}.npy" for seed in range(3))
    for seed, path in enumerate(paths):
        np.save(path, packed(seed))
    return paths


@pytest.fixture
def scans(files: tuple[Path, ...]) -> PairedScans:
    return PairedScans(files, patch=PATCH, spacing_mm=SPACING_MM, seed=3)


def parts(pair: tuple[Condition, Target]) -> dict[str, Tensor]:
    condition, target = pair
    assert target.place is not None
    return {"image": condition.image, "target": target.image, "weight": target.weight, "place": target.place}


def at(centre: tuple[float, float, float], spacing_mm: tuple[float, float, float] = SPACING_MM) -> Recipe:
    """The scan as it is, around a voxel's index (halves between two)."""
    pose = place((np.array(centre) + 0.5) * spacing_mm, 1.0)
    return Recipe(0, pose._replace(matrix=np.diag(spacing_mm)), None, 0)


def test_a_step_gives_one_pair_whatever_was_drawn_before(files: tuple[Path, ...], scans: PairedScans) -> None:
    first = parts(scans.training_pair(5, CPU))
    scans.training_pair(6, CPU)
    again = parts(PairedScans(files, patch=PATCH, spacing_mm=SPACING_MM, seed=3).training_pair(5, CPU))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other_seed = PairedScans(files, patch=PATCH, spacing_mm=SPACING_MM, seed=4)
    others = [scans.training_pair(6, CPU), other_seed.training_pair(5, CPU)]
    assert not any(torch.equal(first["image"], condition.image) for condition, _ in others)


@pytest.mark.parametrize("step", range(6))
def test_pairs_have_the_shapes_and_ranges_that_training_counts_on(scans: PairedScans, step: int) -> None:
    pair = scans.training_pair(step, CPU)
    assert pair[1].shares is None
    drawn = parts(pair)
    assert {name: tuple(part.shape) for name, part in drawn.items()} == {
        "image": (1, 1, *PATCH), "target": (1, 1, *PATCH), "weight": (1, 1, *PATCH), "place": (1,),
    }  # fmt: skip
    assert {part.dtype for name, part in drawn.items() if name != "place"} == {torch.float32}
    ct_hu = CT().fit().decode(drawn["target"])
    assert ct_hu.min() >= OUTSIDE_HU - 0.01
    assert ct_hu.max() <= 900
    assert drawn["image"].min() >= 0
    assert set(drawn["weight"].unique().tolist()) <= {0.0, OUTSIDE_WEIGHT, 1.0}
    assert (drawn["weight"] == 1).any()


def test_a_scan_in_place_is_shown_exactly() -> None:
    """The patch's voxels lie on the scan's."""
    voxels = packed()
    condition, target = render(at((19.5, 17.5, 13.5)), voxels, SPACING_MM, PATCH, CPU)
    seen = voxels[12:28, 10:26, 6:22]
    torch.testing.assert_close(condition.image[0, 0], torch.from_numpy(seen["image"].astype(np.float32)), atol=1e-3, rtol=0)
    torch.testing.assert_close(CT().fit().decode(target.image)[0, 0], torch.from_numpy(seen["ct_hu"].astype(np.float32)), atol=0.5, rtol=0)
    assert (target.weight == 1).all()


def test_mr_and_ct_are_moved_together() -> None:
    """In this scan one is a function of the other, whatever the pose, as long as interpolation is the same."""
    voxels = packed()
    for seed in range(4):
        recipe = draw_training(np.random.default_rng(seed), 0, voxels, PATCH, SPACING_MM)._replace(change=None)
        condition, target = render(recipe, voxels, SPACING_MM, PATCH, CPU)
        ct_hu = CT().fit().decode(target.image)
        torch.testing.assert_close(condition.image, (ct_hu - OUTSIDE_HU) / 1000, atol=2e-3, rtol=0)
        assert condition.image.std() > 0.05


def test_the_weight_follows_what_is_known() -> None:
    voxels = packed()
    _, target = render(at((7.5, 17.5, 7.5)), voxels, SPACING_MM, PATCH, CPU)
    known = torch.from_numpy(np.array(voxels["known"][:16, 10:26, :16]))
    assert torch.equal(target.weight[0, 0] == 1, known == BODY)
    assert torch.equal(target.weight[0, 0] == OUTSIDE_WEIGHT, known == AIR)
    assert torch.equal(target.weight[0, 0] == 0, known == UNKNOWN)


def test_beyond_the_scan_there_is_air_that_does_not_count() -> None:
    voxels = packed()
    condition, target = render(at((36.5, 17.5, 13.5)), voxels, SPACING_MM, PATCH, CPU)
    beyond = slice(40 - 29, 16)
    assert not condition.image[0, 0, beyond].any()
    assert not target.weight[0, 0, beyond].any()
    torch.testing.assert_close(CT().fit().decode(target.image)[0, 0, beyond], torch.full((5, 16, 16), OUTSIDE_HU), atol=0.01, rtol=0)
    assert (target.weight[0, 0, : 40 - 29] > 0).all()


def test_a_patch_wholly_beyond_the_scan_is_possible() -> None:
    condition, target = render(at((100.0, 100.0, -100.0)), packed(), SPACING_MM, PATCH, CPU)
    assert not condition.image.any()
    assert not target.weight.any()


@pytest.mark.parametrize("shape", [(12, 44, 36), (10, 10, 10), (30, 30, 1)])
def test_a_scan_smaller_than_the_patch_lies_in_its_middle(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    voxels = np.zeros(shape, dtype=PACKED)
    voxels["known"], voxels["image"] = BODY, 1
    np.save(tmp_path / "small.npy", voxels)
    scans = PairedScans((tmp_path / "small.npy",), patch=PATCH, spacing_mm=SPACING_MM, seed=0)
    for step in range(3):
        assert scans.training_pair(step, CPU)[0].image.shape == (1, 1, *PATCH)
    _, target, _ = scans.validation_pair(0, CPU)
    for axis, (n, side) in enumerate(zip(shape, PATCH, strict=True)):
        shown = (target.weight[0, 0].amax([a for a in range(3) if a != axis]) == 1).nonzero()[:, 0]
        assert len(shown) == min(n, side)
        assert abs(int(shown[0]) - (side - 1 - int(shown[-1]))) <= 1


def test_validation_takes_scans_in_turn_as_they_are_and_inside(files: tuple[Path, ...], scans: PairedScans) -> None:
    drawn = [scans.validation_pair(index, CPU) for index in range(6)]
    assert {kind for _, _, kind in drawn} == {"val"}
    for index, (condition, target, _) in enumerate(drawn):
        voxels = np.load(files[index % 3])
        windows = np.lib.stride_tricks.sliding_window_view(voxels["ct_hu"], PATCH)
        ct_hu = CT().fit().decode(target.image)[0, 0].numpy().round()
        (first,) = np.argwhere(_same(windows, ct_hu))
        inside = tuple(slice(n, n + side) for n, side in zip(first, PATCH, strict=True))
        assert np.array_equal(target.weight[0, 0] == 1, voxels["known"][inside] == BODY)
        np.testing.assert_allclose(condition.image[0, 0], voxels["image"][inside].astype(np.float32), atol=1e-3)
    again = scans.validation_pair(2, CPU)
    assert all(torch.equal(a, b) for a, b in zip(parts(drawn[2][:2]).values(), parts(again[:2]).values(), strict=True))
    assert not torch.equal(drawn[0][0].image, drawn[3][0].image)


def _same(windows: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """Which windows [i j k] agree with the patch on its diagonal."""
    diagonal = np.arange(len(patch))
    return (windows[..., diagonal, diagonal, diagonal] == patch[diagonal, diagonal, diagonal]).all(-1)


def test_the_place_is_the_height_in_the_scan() -> None:
    voxels = packed()
    heights = [parts(render(at((20.0, 20.0, z)), voxels, SPACING_MM, PATCH, CPU))["place"].item() for z in (-5, 0, 4.4, 4.6, 17.4, 35, 50)]
    assert heights == [0, 0, 1, 1, 3, HEIGHTS - 1, HEIGHTS - 1]


def test_training_looks_at_the_body_in_all_its_parts(scans: PairedScans) -> None:
    drawn = [parts(scans.training_pair(step, CPU)) for step in range(150)]
    assert len({int(one["place"]) for one in drawn}) >= 5
    assert np.mean([float((one["weight"] == 1).float().mean()) for one in drawn]) > 0.5
    assert all((one["weight"] == 1).any() for one in drawn)


def test_training_draws_from_all_scans(tmp_path: Path) -> None:
    for value in (1, 2, 3):
        voxels = packed()
        voxels["image"] = value
        np.save(tmp_path / f"{value}.npy", voxels)
    scans = PairedScans(tuple(sorted(tmp_path.iterdir())), patch=PATCH, spacing_mm=SPACING_MM, seed=0)
    drawn = [scans.training_pair(step, CPU)[0].image for step in range(60)]
    counts = np.bincount([int(image[image > 0].median().round().clamp(1, 4)) for image in drawn], minlength=4)
    assert (counts[1:4] >= 5).all()


def test_a_drawn_patch_has_the_cards_spacing_but_for_scale_and_shear() -> None:
    voxels = packed()
    steps_mm = [
        np.linalg.norm(draw_training(np.random.default_rng(seed), 0, voxels, PATCH, SPACING_MM).deformation.matrix, axis=0)
        for seed in range(50)
    ]
    assert np.mean(steps_mm, axis=0) == pytest.approx(SPACING_MM, rel=0.06)


def test_only_the_mr_is_changed_and_nothing_where_it_is_unknown(files: tuple[Path, ...]) -> None:
    voxels = packed()
    recipe = draw_training(np.random.default_rng(2), 0, voxels, PATCH, SPACING_MM)
    assert recipe.change is not None
    noisy = recipe._replace(change=recipe.change._replace(noise=0.1))
    plain, changed = (parts(render(one, voxels, SPACING_MM, PATCH, CPU)) for one in (recipe._replace(change=None), noisy))
    assert {name for name in plain if not torch.equal(plain[name], changed[name])} == {"image"}
    assert not changed["image"][changed["weight"] == 0].any()


def test_a_source_travels_to_a_worker_without_its_scans(scans: PairedScans) -> None:
    scans.training_pair(0, CPU)
    sent = pickle.dumps(scans)
    assert len(sent) < 2000
    assert torch.equal(pickle.loads(sent).training_pair(1, CPU)[0].image, scans.training_pair(1, CPU)[0].image)


def test_training_from_packed_scans_needs_no_simpleitk() -> None:
    code = f"import sys, {paired.__name__}; sys.exit('SimpleITK' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
