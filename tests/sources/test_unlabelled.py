"""Crops of CTs: repeatable by number, true to the scan, and the same interpolation on every axis."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.sources.unlabelled import HU_TOP, SIGMA_MIN, Crop, Crops, Item, axis_matrix, cut, draw_crop, read_packed, write_packed

SIDE = 16
RNG = np.random.default_rng(0)
SCAN = (100 * RNG.standard_normal((40, 36, 30))).astype(np.int16)
EXACT = 0.05  # voxels of blur: none of the neighbours counts


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Item], Path]:
    """Two packed scans and two head label maps, with the cache for the latter."""
    folder = tmp_path_factory.mktemp("unlabelled")
    scans = [Item("ct", f"scan{k}", folder / f"scan{k}.npz") for k in range(2)]
    for item, shift in zip(scans, (0, 1), strict=True):
        write_packed(item.path, np.roll(SCAN, shift, 0))
    maps = tiny.write_label_maps(folder / "maps")
    heads = [Item("head", path.name.split(".")[0], path) for path in sorted(maps.glob("*"))[:2]]
    return [*scans, *heads], folder / "cache"


@settings(deadline=None)
@given(st.integers(1, 40), st.floats(0.3, 3), st.floats(SIGMA_MIN, 2), st.floats(-20, 40))
def test_rows_of_the_interpolation_sum_to_one(length: int, zoom: float, sigma: float, first: float) -> None:
    start, matrix = axis_matrix(first + np.arange(9) * zoom, sigma, length)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)
    assert start >= 0
    assert start + matrix.shape[1] <= length


def test_past_the_border_the_scan_is_reflected() -> None:
    values = np.arange(10.0) ** 2
    for outside, inside in ((-3, 3), (-9, 9), (12, 6), (18, 0), (21, 3)):
        assert _at(values, outside) == pytest.approx(_at(values, inside))
    assert _at(np.array([7.0]), 5) == pytest.approx(7)


def test_interpolation_keeps_a_slope() -> None:
    values = 3 * np.arange(20.0)
    assert [_at(values, at, sigma=1.0) for at in (9.0, 9.5, 10.0)] == pytest.approx([27, 28.5, 30], rel=1e-5)


def test_a_crop_on_the_scans_grid_is_a_piece_of_the_scan() -> None:
    crop = _crop(centre=(17.5, 15.5, 14.5))
    expected = torch.from_numpy(SCAN[10:26, 8:24, 7:23].astype(np.float32))
    assert torch.equal(cut(crop, SCAN, SIDE), expected)
    turned = cut(crop._replace(axes=(2, 0, 1), flips=(1,)), SCAN, SIDE)
    assert torch.equal(turned, expected.permute(2, 0, 1).flip(1))


def test_a_thin_scan_is_continued_by_its_own_image() -> None:
    thin = SCAN[:, :, :9]
    volume = cut(_crop(centre=(17.5, 15.5, 3.5)), thin, SIDE)
    middle = torch.from_numpy(thin[10:26, 8:24].astype(np.float32))
    assert torch.equal(volume[..., 4:13], middle)
    assert torch.equal(volume[..., :4], middle[..., 1:5].flip(2))
    assert torch.equal(volume[..., 13:], middle[..., 5:8].flip(2))


def test_a_coarser_crop_averages_noise_away() -> None:
    """Voxels that were only picked would keep most of their spread."""
    crop = draw_crop(np.random.default_rng(3), [SCAN], 12, 2.0)._replace(noise_hu=0.0)
    assert cut(crop, SCAN, 12).std() < 0.35 * SCAN.std()


@pytest.mark.parametrize("seed", range(8))
def test_crops_of_a_large_scan_stay_inside_it(seed: int) -> None:
    scan = np.full((60, 60, 60), 50, dtype=np.int16)
    crop = draw_crop(np.random.default_rng(seed), [scan], SIDE, 2.0)
    reach = (SIDE - 1) / 2 * 2.0
    assert (crop.centre >= reach).all()
    assert (crop.centre <= 59 - reach).all()


def test_crops_lie_around_the_body() -> None:
    scan = np.full((90, 90, 90), -1000, dtype=np.int16)
    scan[60:80, 10:30, 40:60] = 40
    shares = [(cut(draw_crop(np.random.default_rng(k), [scan], SIDE, 1.0), scan, SIDE) > -500).float().mean() for k in range(40)]
    volume = 20**3 / 90**3
    assert np.mean(shares) > 4 * volume


def test_large_scans_are_drawn_from_more_often_but_do_not_drown_small_ones() -> None:
    small, large = np.zeros((10, 10, 10), np.int16), np.zeros((40, 50, 50), np.int16)
    drawn = [draw_crop(np.random.default_rng(k), [small, large], 8, 1.0).item for k in range(400)]
    assert 0.85 < np.mean(drawn) < 0.97  # ten to one, where a hundred to one would be by size


def test_a_number_gives_one_crop_whatever_was_drawn_before(items: tuple[list[Item], Path]) -> None:
    crops = [_crops(items).training_crop(k) for k in range(6)]
    source = _crops(items)
    assert all(torch.equal(source.training_crop(k), crops[k]) for k in (5, 2, 0, 3))
    assert not any(torch.equal(a, b) for i, a in enumerate(crops) for b in crops[:i])
    assert not torch.equal(_crops(items, seed=1).training_crop(0), crops[0])


@pytest.mark.parametrize("head_share", [0.0, 0.5, 1.0])
def test_crops_are_finite_hu_of_one_shape(items: tuple[list[Item], Path], head_share: float) -> None:
    source = _crops(items, head_share=head_share)
    for k in range(8):
        crop = source.training_crop(k)
        assert crop.shape == (1, SIDE, SIDE, SIDE)
        assert crop.dtype == torch.float32
        assert crop.isfinite().all()
        assert -1024 <= crop.min() <= crop.max() <= HU_TOP


def test_the_share_of_heads_is_kept(items: tuple[list[Item], Path]) -> None:
    """The scans hold noise around zero; drawn heads, whose share is asked for, have the air of a CT somewhere."""

    def share(head_share: float) -> float:
        source = _crops(items, head_share=head_share)
        return float(np.mean([source.training_crop(k).min() < -900 for k in range(40)]))

    assert share(0.0) == 0
    assert share(1.0) == 1
    assert 0.25 < share(0.5) < 0.75


def test_without_scans_all_crops_are_heads_and_the_reverse(items: tuple[list[Item], Path]) -> None:
    listed, cache = items
    only_heads, only_scans = (_crops((part, cache)) for part in (listed[2:], listed[:2]))
    assert all(only_heads.training_crop(k).min() < -900 for k in range(5))
    assert all(only_scans.training_crop(k).min() > -900 for k in range(5))
    assert {only_heads.validation_crop(k)[1] for k in range(4)} == {"head"}
    assert {only_scans.validation_crop(k)[1] for k in range(4)} == {"ct"}


def test_drawn_heads_have_texture(items: tuple[list[Item], Path]) -> None:
    crop = _crops(items, head_share=1.0).training_crop(0)
    inside = crop[crop > -500]
    assert inside.unique().numel() > 0.9 * inside.numel()


def test_validation_crops_take_kinds_in_turn_and_repeat(items: tuple[list[Item], Path]) -> None:
    crops = [_crops(items).validation_crop(k) for k in range(6)]
    assert [kind for _, kind in crops] == ["ct", "head"] * 3
    source = _crops(items)
    source.training_crop(0)
    assert all(torch.equal(source.validation_crop(k)[0], crop) for k, (crop, _) in enumerate(crops))


def test_packing_rounds_bounds_and_reads_back(tmp_path: Path) -> None:
    write_packed(tmp_path / "a.npz", np.array([[[-3000.0, 0.6, 9000.0]]], dtype=np.float32))
    packed = read_packed(tmp_path / "a.npz")
    assert packed.dtype == np.int16
    assert packed.tolist() == [[[-1024, 1, HU_TOP]]]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def _crops(items: tuple[list[Item], Path], *, seed: int = 0, head_share: float = 0.5) -> Crops:
    listed, cache = items
    return Crops(listed, cache=cache, side=SIDE, spacing_mm=(2.0, 4.0), seed=seed, head_share=head_share)


def _crop(centre: tuple[float, float, float]) -> Crop:
    return Crop(
        item=0,
        centre=np.array(centre),
        zoom=1.0,
        sigma=np.full(3, EXACT),
        axes=(0, 1, 2),
        flips=(),
        noise_hu=0.0,
        noise_seed=0,
    )


def _at(values: np.ndarray, position: float, sigma: float = EXACT) -> float:
    start, matrix = axis_matrix(np.array([float(position)]), sigma, len(values))
    return float((matrix @ values[start : start + matrix.shape[1]])[0])
