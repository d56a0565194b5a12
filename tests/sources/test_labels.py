"""Pairs drawn from label maps: repeatable, true to the labels, and each part of a recipe changes just what it should."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from medsynth.core.errors import ScanError
from medsynth.core.generator import Condition, Target
from medsynth.core.quantity import CT, MR
from medsynth.generators.gdm import Config
from medsynth.sources.deform import coordinates, place
from medsynth.sources.labels import OUTSIDE_WEIGHT, Blob, LabelPairs, Recipe, draw_plain, draw_training, render
from medsynth.sources.packed import DEPTH_UNIT_MM, Head
from medsynth.sources.tissues import AIR, BRAIN, CANCELLOUS, CORTICAL, FAT, HU_RANGE, INDEX, NETWORK_CLASS, SOFT

CPU = torch.device("cpu")
PATCH = (32, 32, 32)
MIDDLE_MM = np.array([30.5, 32.5, 28.5])  # of the tiny head, with the voxel of air that packing adds


def test_a_step_gives_one_pair_whatever_was_drawn_before(pairs: LabelPairs) -> None:
    first = pairs.training_pair(5, CPU)
    pairs.training_pair(6, CPU)
    again = _other_seed(pairs, pairs.seed).training_pair(5, CPU)
    assert _parts(first).keys() == {"image", "target", "weight", "shares"}
    assert all(torch.equal(part, _parts(again)[name]) for name, part in _parts(first).items())


def test_steps_and_seeds_give_different_pairs(pairs: LabelPairs) -> None:
    images = [pairs.training_pair(step, CPU)[0].image for step in (0, 1, 2)]
    images.append(_other_seed(pairs, pairs.seed + 1).training_pair(0, CPU)[0].image)
    assert not any(torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


@pytest.mark.parametrize("step", range(6))
def test_pairs_have_the_shapes_and_ranges_that_training_counts_on(pairs: LabelPairs, step: int) -> None:
    parts = _parts(pairs.training_pair(step, CPU))
    assert {part.dtype for part in parts.values()} == {torch.float32}
    assert {name: tuple(part.shape) for name, part in parts.items()} == {
        "image": (1, 1, *PATCH),
        "target": (1, 1, *PATCH),
        "weight": (1, 1, *PATCH),
        "shares": (1, len(Config().class_hu), *PATCH),
    }
    hu = CT().fit().decode(parts["target"])
    assert hu.min() == pytest.approx(-1000, abs=1e-2)
    assert hu.max() <= HU_RANGE.max() + 1e-2
    assert parts["image"].min() >= 0
    assert set(parts["weight"].unique().tolist()) <= {0.0, OUTSIDE_WEIGHT, 1.0}
    torch.testing.assert_close(parts["shares"].sum(1), torch.ones(1, *PATCH))


def test_a_head_in_place_shows_its_labels_exactly(head: Head) -> None:
    """At 1 mm, and with voxels upon voxels, there is no partial volume: the CT is the table of HU."""
    recipe = _no_fat(_plain(head, spacing_mm=1.0, centre_mm=np.array([30.5, 32.5, 28.5])))
    _, target = render(recipe, head, PATCH, CPU)
    seen = torch.from_numpy(head.tissue[15:47, 17:49, 13:45]).long()
    torch.testing.assert_close(CT().fit().decode(target.image)[0, 0], torch.from_numpy(HU_RANGE.mean(1))[seen], atol=1e-2, rtol=0)
    assert target.shares is not None
    assert torch.equal(target.shares[0].argmax(0), torch.from_numpy(NETWORK_CLASS)[seen])
    assert torch.equal(target.weight[0, 0] == 1, seen > 0)


def test_the_expectation_of_the_shares_is_the_ct_where_a_class_is_one_tissue(head: Head) -> None:
    _, target = render(_plain(head), head, PATCH, CPU)
    assert target.shares is not None
    fixed = target.shares[0, [AIR, FAT, CANCELLOUS, CORTICAL]].sum(0) == 1
    mixed = fixed & (target.shares[0].max(0).values < 1)
    assert mixed.sum() > 100
    expected_hu = torch.einsum("kxyz,k->xyz", target.shares[0], torch.tensor(Config().class_hu))
    torch.testing.assert_close(CT().fit().decode(target.image)[0, 0][fixed], expected_hu[fixed], atol=1e-2, rtol=0)


@pytest.mark.parametrize("step", range(4))
def test_air_is_minus_1000_hu_and_nothing_else_is_all_air(pairs: LabelPairs, step: int) -> None:
    _, target = pairs.training_pair(step, CPU)
    assert target.shares is not None
    air = target.shares[:, AIR : AIR + 1] == 1
    hu = CT().fit().decode(target.image)
    torch.testing.assert_close(hu[air], torch.full_like(hu[air], -1000), atol=1e-2, rtol=0)
    assert (hu[~air] > -1000 + 100).all()


def test_what_the_field_of_view_cuts_off_is_black_and_does_not_count(head: Head) -> None:
    plain = _plain(head)
    cut = plain._replace(degradation=plain.degradation._replace(cuts=((2, 6), (0, -4))))
    outside = torch.zeros(PATCH, dtype=torch.bool)
    outside[:, :, :6] = True
    outside[-4:] = True
    (_, whole), (condition, target) = (render(recipe, head, PATCH, CPU) for recipe in (plain, cut))
    assert (condition.image[0, 0][outside] == 0).all()
    assert torch.equal(target.weight[0, 0], torch.where(outside, 0.0, whole.weight[0, 0]))
    assert torch.equal(target.image, whole.image)


def test_the_mr_is_scaled_as_a_scan_is_at_inference_times_the_drawn_gain(head: Head) -> None:
    plain = _plain(head)
    condition, _ = render(plain._replace(degradation=plain.degradation._replace(gain=1.2)), head, PATCH, CPU)
    assert MR().fit(condition.image.numpy()).half_width == pytest.approx(1.2, rel=1e-3)


def test_contrast_and_scanner_change_the_mr_alone_and_hu_the_ct_alone(head: Head) -> None:
    plain = _plain(head)
    contrast = plain.contrast._replace(mean=plain.contrast.mean[::-1].copy())
    before, mr, ct = (
        _parts(render(r, head, PATCH, CPU)) for r in (plain, plain._replace(contrast=contrast), plain._replace(hu=plain.hu + 5))
    )
    assert _changed_parts(before, mr) == {"image"}
    assert _changed_parts(before, ct) == {"target"}


def test_a_lesion_changes_the_brain_within_it_and_no_class(head: Head) -> None:
    plain = _plain(head)
    blob = Blob((MIDDLE_MM + np.array([6, 0, 0])).astype(np.float32), np.array([5, 6, 7], dtype=np.float32))
    before, after = (_parts(render(r, head, PATCH, CPU)) for r in (plain, plain._replace(lesions=(blob,))))
    within, near = _reach(plain, blob)
    tissue = _tissue(plain, head)
    changed = (before["target"] != after["target"])[0, 0]
    inner = within & (tissue == INDEX["white"])
    assert inner.sum() > 50
    assert changed[inner].all()
    assert not changed[~near].any()
    assert not changed[within & (tissue == INDEX["ventricle"]) & _pure(plain, head)].any()
    assert (CT().fit().decode(after["target"])[0, 0][inner & _pure(plain, head)] - HU_RANGE[INDEX["lesion"]].mean()).abs().max() < 1e-2
    assert torch.equal(before["shares"], after["shares"])
    assert torch.equal(before["weight"], after["weight"])


def test_under_a_flap_bone_is_missing_and_nothing_else(head: Head) -> None:
    plain = _plain(head)
    blob = Blob((MIDDLE_MM + np.array([0, 0, 15])).astype(np.float32), np.array([8, 8, 8], dtype=np.float32))
    before, after = (_parts(render(r, head, PATCH, CPU)) for r in (plain, plain._replace(flap=blob)))
    within, near = _reach(plain, blob)
    bone_before, bone_after = (parts["shares"][0, [CANCELLOUS, CORTICAL]].sum(0) for parts in (before, after))
    assert bone_before[within].sum() > 50
    assert not bone_after[within].any()
    torch.testing.assert_close((after["shares"] - before["shares"])[0, SOFT], bone_before - bone_after)
    changed = (before["target"] != after["target"])[0, 0]
    assert not changed[~near].any()
    assert not changed[bone_before == 0].any()


def test_fat_lies_under_the_skin_to_its_depth_in_place_of_other_tissue(head: Head) -> None:
    lean = _no_fat(_plain(head))
    fat = lean._replace(fat_depth_mm=5.0)
    before, after = (_parts(render(r, head, PATCH, CPU))["shares"][0] for r in (lean, fat))
    points = coordinates(lean.deformation, PATCH, CPU).round().long()
    depth_mm = torch.from_numpy(head.depth)[points[0], points[1], points[2]] * DEPTH_UNIT_MM
    muscle = (_tissue(lean, head) == INDEX["muscle"]) & _pure(lean, head)
    assert not before[FAT].any()
    assert (after[FAT][muscle & (depth_mm < 5)] == 1).all()
    assert not after[FAT][depth_mm >= 5].any()
    torch.testing.assert_close(before[SOFT] - after[SOFT], after[FAT])


def test_streaks_of_fat_reach_between_muscles(head: Head) -> None:
    lean = _no_fat(_plain(head))
    streaky = render(lean._replace(fat_streaks=0.3), head, PATCH, CPU)[1].shares
    assert streaky is not None
    fat, muscle = streaky[0, FAT], (_tissue(lean, head) == INDEX["muscle"]) & _pure(lean, head)
    assert 0.1 < fat[muscle].mean() < 0.7
    assert not fat[_pure(lean, head) & ~muscle].any()


def test_a_recipe_is_all_that_a_pair_depends_on(pairs: LabelPairs) -> None:
    recipe = draw_training(np.random.default_rng(8), pairs.heads, PATCH, 1.5)
    first, second = (_parts(render(recipe, pairs.heads[recipe.head], PATCH, CPU)) for _ in range(2))
    assert not _changed_parts(first, second)


def test_training_draws_lesions_flaps_and_cuts_now_and_then(pairs: LabelPairs) -> None:
    recipes = [draw_training(np.random.default_rng((0, seed)), pairs.heads, PATCH, 1.5) for seed in range(200)]
    shares = [
        np.mean([bool(part) for part in parts])
        for parts in zip(*((r.lesions, r.flap, r.degradation.cuts, r.head) for r in recipes), strict=True)
    ]
    assert shares == pytest.approx([0.12, 0.06, 0.35, 0.5], abs=0.1)
    brain = {int(i) for i in np.flatnonzero(NETWORK_CLASS == BRAIN)}
    middles = [(r.head, tuple(blob.centre.astype(int))) for r in recipes for blob in r.lesions]
    assert {int(pairs.heads[index].tissue[middle]) for index, middle in middles} <= brain


def test_validation_takes_heads_and_kinds_in_turn_whole_and_repeatable(pairs: LabelPairs) -> None:
    drawn = [pairs.validation_pair(index, CPU) for index in range(6)]
    assert [kind for _, _, kind in drawn] == ["t1", "t1", "t2", "t2", "flair", "flair"]
    assert all((target.weight > 0).all() for _, target, _ in drawn)
    again = pairs.validation_pair(3, CPU)
    assert not _changed_parts(_parts(drawn[3][:2]), _parts(again[:2]))


def test_validation_has_the_middle_of_each_hu_range(pairs: LabelPairs) -> None:
    _, target, _ = pairs.validation_pair(0, CPU)
    hu = CT().fit().decode(target.image)
    values = set(hu.round().int().unique().tolist())
    assert {-1000, -95, 29, 37, 480, 1000} <= values


def test_a_map_that_is_not_there_is_refused_before_training(tmp_path: Path) -> None:
    maps = tiny.write_label_maps(tmp_path / "maps")
    with pytest.raises(ScanError, match="17") as caught:
        LabelPairs(maps, ("17",), cache=tmp_path, patch=PATCH, spacing_mm=1.5, seed=0)
    assert caught.value.code == "E-EMPTY"


def _plain(head: Head, spacing_mm: float = 1.5, centre_mm: np.ndarray = MIDDLE_MM) -> Recipe:
    return draw_plain(np.random.default_rng(0), 0, "t1", place(centre_mm, spacing_mm), PATCH, spacing_mm)


def _no_fat(recipe: Recipe) -> Recipe:
    return recipe._replace(fat_depth_mm=0.0, fat_spread_mm=0.0, fat_streaks=float("inf"))


def _other_seed(pairs: LabelPairs, seed: int) -> LabelPairs:
    other = LabelPairs.__new__(LabelPairs)
    vars(other).update(vars(pairs) | {"seed": seed})
    return other


def _parts(pair: tuple[Condition, Target]) -> dict[str, Tensor]:
    condition, target = pair
    assert target.shares is not None
    return {"image": condition.image, "target": target.image, "weight": target.weight, "shares": target.shares}


def _changed_parts(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def _tissue(recipe: Recipe, head: Head) -> Tensor:
    """int64 [x y z]: the packed tissue at the middle of each voxel of the patch."""
    i, j, k = coordinates(recipe.deformation, PATCH, CPU).round().long()
    return torch.from_numpy(head.tissue).long()[i, j, k]


def _pure(recipe: Recipe, head: Head) -> Tensor:
    """Voxels whose neighbours are of the same tissue, so that no point inside them is of another."""
    tissue = _tissue(recipe, head).float()[None, None]
    largest, smallest = (torch.nn.functional.max_pool3d(sign * tissue, 3, stride=1, padding=1) for sign in (1, -1))
    return (largest == -smallest)[0, 0]


def _reach(recipe: Recipe, blob: Blob) -> tuple[Tensor, Tensor]:
    """Voxels that lie wholly in an ellipsoid, and those that touch it."""
    points = coordinates(recipe.deformation, PATCH, CPU)
    offsets = (points - torch.from_numpy(blob.centre)[:, None, None, None]).abs()
    radii = torch.from_numpy(blob.radii)[:, None, None, None]
    half_voxel = 0.75
    within = (((offsets + half_voxel) / radii) ** 2).sum(0) < 1
    near = (((offsets - half_voxel).clamp(min=0) / radii) ** 2).sum(0) < 1
    return within, near
