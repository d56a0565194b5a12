"""The arithmetic of benchmarks/compare: processes end where they should, judges see what they should, cells resume and are claimed once."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.compare import drift, judge, sparse
from benchmarks.compare.figures import above_half_limit, flat_soft, measure
from benchmarks.compare.gan import Gan
from benchmarks.compare.generative import Diffusion, Flow, bent, noise_levels, straight
from benchmarks.compare.locks import held
from benchmarks.compare.method import CT_SCALE, Moment, Setting, l1
from benchmarks.compare.methods import METHODS, TITLES
from benchmarks.compare.network import Network
from benchmarks.compare.problem import Pairs, batch_of, drawn_batch
from benchmarks.compare.sizes import Size
from benchmarks.compare.supervised import L1, ms_ssim
from benchmarks.compare.table import ORDER, spread, table
from benchmarks.compare.train import CHECKPOINT, learning_rate, synthesize, train

CPU = torch.device("cpu")
TINY = Size(
    channels=(8, 8, 16),
    head_channels=32,
    patch=32,  # a coarsest stage of 2^3 voxels gets random gradients in bfloat16 from oneDNN 3.12 on some CPUs (docs/log.md)
    batch=4,
    training=20,
    validation=4,
    test=4,
    warm_seconds=0.5,
    seconds=1,
    judge_seconds=1,
)


class Perfect(nn.Module):
    """Says the clean image whatever it is given, and counts how often it is asked."""

    def __init__(self, clean: Tensor) -> None:
        super().__init__()
        self.clean, self.asked = clean, 0

    def forward(self, condition: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        self.asked += 1
        return self.clean.expand_as(condition)


class Edges(nn.Module):
    """Stands in for an encoder: one stage of differences of the CT."""

    def forward(self, ct_hu: Tensor) -> list[Tensor]:
        x = ct_hu / 100
        return [torch.cat([x.diff(dim=2)[..., :-1, :-1], x.diff(dim=3)[:, :, :-1, :, :-1], x.diff(dim=4)[:, :, :-1, :-1]], dim=1)]


def test_air_soft_tissue_and_bone_survive_the_bend_and_texture_grows_in_it() -> None:
    image = CT_SCALE.encode(torch.tensor([-1024.0, 40.0, 60.0, 1000.0, 3000.0]))
    torch.testing.assert_close(straight(bent(image)), image, atol=1e-5, rtol=1e-5)
    assert (bent(image)[2] - bent(image)[1]) > 5 * (image[2] - image[1])


@pytest.mark.parametrize(("process", "evaluations"), [(Flow(), 1), (Flow(), 4), (Diffusion(), 20)])
def test_with_a_perfect_network_a_process_ends_at_the_clean_image_after_so_many_evaluations(process: Any, evaluations: int) -> None:
    clean = CT_SCALE.encode(torch.linspace(-1000, 1500, 64).reshape(1, 1, 4, 4, 4))
    network: Any = Perfect(clean)
    image = process.sample(network, torch.zeros(2, 1, 4, 4, 4), torch.Generator().manual_seed(0), evaluations)
    torch.testing.assert_close(image, clean.expand(2, -1, -1, -1, -1), atol=1e-4, rtol=1e-4)
    assert network.asked == evaluations


def test_the_state_of_diffusion_carries_the_noise_of_its_level() -> None:
    """What the network is shown in sampling has the spread that it saw in training."""
    shown: list[tuple[float, float]] = []

    class Watching(Perfect):
        def forward(self, condition: Tensor, noise: Tensor, time: Tensor) -> Tensor:
            level = (4 * time[0]).exp().item()
            shown.append((level, (noise * (level**2 + 0.6**2) ** 0.5 - bent(self.clean)).std().item()))
            return self.clean.expand_as(condition)

    network: Any = Watching(CT_SCALE.encode(torch.full((1, 1, 1, 1, 1), 40.0)))
    Diffusion().sample(network, torch.zeros(1, 1, 24, 24, 24), torch.Generator().manual_seed(0), 20)
    assert [level for level, _ in shown] == pytest.approx(noise_levels(20), rel=1e-4)
    for level, seen in shown:
        assert seen == pytest.approx(level, rel=0.03)


def test_l1_is_in_thousands_of_hu_and_weighted() -> None:
    batch = batch_of(_pairs(4), np.arange(4), CPU)
    assert l1(batch.target + CT_SCALE.encode(100.0) - CT_SCALE.encode(0.0), batch).item() == pytest.approx(0.1, rel=1e-4)
    outside = batch.weight < 1
    assert l1(batch.target + outside * 1.0, batch).item() < l1(batch.target + ~outside * 1.0, batch).item()


def test_ms_ssim_is_one_for_equal_images_and_falls_with_noise_and_blur() -> None:
    image = torch.rand(2, 1, 48, 48, 48, generator=torch.Generator().manual_seed(0)) - 0.5
    noisy = image + 0.3 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    assert ms_ssim(image, image).item() == pytest.approx(1, abs=1e-4)
    blurred = nn.functional.avg_pool3d(image, 3, stride=1, padding=1)
    assert ms_ssim(noisy, image).item() < 0.98
    assert ms_ssim(blurred, image).item() < 0.9


def test_the_discriminator_learns_from_its_own_loss_alone_and_the_network_from_both() -> None:
    gan = Gan(Setting(TINY, CPU, _pairs(20), "", 0))
    network = Network(TINY)
    before = {name: value.clone() for name, value in gan.discriminator.state_dict().items()}
    gan.backward(network, batch_of(_pairs(4), np.arange(4), CPU), Moment(0.0, torch.Generator().manual_seed(0)))
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in gan.discriminator.state_dict().items())
    other = Gan(Setting(TINY, CPU, _pairs(20), "", 0))
    other.load(gan.state())
    assert all(torch.equal(value, gan.discriminator.state_dict()[name]) for name, value in other.discriminator.state_dict().items())


def test_drifting_rises_from_nothing_and_then_changes_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "load_encoder", lambda _: Edges())
    method = drift.Drift(Setting(TINY, CPU, _pairs(20), "", 0), stages=(0,), coordination="sum")
    network, batch = Network(TINY), batch_of(_pairs(4), np.arange(4), CPU)

    def gradient(share: float) -> tuple[Tensor, dict[str, float]]:
        network.zero_grad()
        figures = method.backward(network, batch, Moment(share, torch.Generator().manual_seed(0)))
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None]), figures

    (early, told), (late, told_late) = gradient(0.0), gradient(1.0)
    assert set(told) == {"l1"}
    assert {"drift", "cosine"} <= set(told_late)
    network.zero_grad()
    l1(method.answer(network, batch.condition, torch.Generator().manual_seed(0)), batch).backward()
    alone = torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])
    torch.testing.assert_close(early, alone, rtol=1e-3, atol=1e-5)
    assert (late - early).norm() > 0.01 * early.norm()


def test_every_method_has_a_title_and_a_place_in_the_table() -> None:
    assert set(ORDER) == set(TITLES)
    assert set(METHODS) < set(TITLES)


def test_mmd_is_about_zero_for_one_distribution_and_grows_with_the_distance() -> None:
    rng = np.random.default_rng(0)
    a, b, far = (rng.standard_normal((300, 8)) + shift for shift in (0, 0, 0.5))
    owners = np.arange(300)
    assert abs(judge.mmd(a, b, owners)) < 0.05
    assert judge.mmd(a, far, owners) > 0.3
    assert judge.kid(a, far, owners).value > 10 * judge.kid(a, b, owners).error
    assert judge.mmd(a, a, owners) == pytest.approx(0, abs=1e-9)


def test_crops_of_one_patch_are_not_compared_with_each_other() -> None:
    """Predictions that follow their own patch would otherwise look nearer than their distribution is."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(100), 3)
    estimates: list[float] = []
    for _ in range(30):
        patches = rng.standard_normal((100, 8))[owners]
        a, b = (patches + 0.1 * rng.standard_normal((300, 8)) for _ in range(2))
        estimates.append(judge.mmd(a, b, owners))
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / 30**0.5


def test_the_judge_is_asked_for_shares_of_ranges_and_spreads() -> None:
    clean = np.array([-1000, -100, 0, 30, 60, 500, 900, 900])
    asked = judge.targets(clean, np.array([10.0, 90.0, 7.0], dtype=np.float32))
    np.testing.assert_allclose(asked, [*[1 / 8] * 6, 2 / 8, 10, 90, 7])


def test_only_what_varies_fast_passes_the_filter() -> None:
    x = np.arange(16)
    for cycles_a_voxel, passed in ((0.0, 0.0), (0.125, 0.146), (0.25, 0.5), (0.5, 1.0)):
        wave = np.broadcast_to(np.cos(2 * np.pi * cycles_a_voxel * x)[:, None, None], (16, 16, 16))
        np.testing.assert_allclose(above_half_limit(wave)[1:-1], passed * wave[1:-1], atol=1e-3)


def test_figures_tell_blur_from_texture() -> None:
    pairs = _pairs(6, side=24)
    network = judge.Judge()
    same, blurred = (measure(x.astype(np.float32), pairs, network) for x in (pairs.again, pairs.clean))
    assert same["soft_texture"] == pytest.approx(1, abs=0.1)
    assert blurred["soft_texture"] < 0.05
    assert blurred["mae_clean_hu"] == 0
    assert blurred["mae_hu"] < same["mae_hu"]
    assert blurred["soft_wasserstein_hu"] > 3 * same["soft_wasserstein_hu"]
    assert blurred["kid"] > same["kid"]


def test_edges_are_not_flat_soft_tissue() -> None:
    clean = np.full((8, 8, 8), 40)
    clean[:, :, 4:] = 900
    flat = flat_soft(clean, np.ones((8, 8, 8), dtype=bool))
    assert flat[:, :, :3].all()
    assert not flat[:, :, 3:].any()


def test_a_step_has_its_batch_whatever_came_before() -> None:
    pairs = _pairs(20)
    first, again = (drawn_batch(pairs, 3, 1, TINY, CPU) for _ in range(2))
    assert torch.equal(first.condition, again.condition)
    assert not torch.equal(first.condition, drawn_batch(pairs, 4, 1, TINY, CPU).condition)
    assert not torch.equal(first.condition, drawn_batch(pairs, 3, 2, TINY, CPU).condition)


def test_training_goes_on_from_its_checkpoint_and_keeps_the_best(tmp_path: Path) -> None:
    pairs = {"training": _pairs(20), "validation": _pairs(4)}
    said: list[str] = []
    first = train(L1(), pairs, TINY, 0, seconds=0.5, folder=tmp_path, device=CPU, say=said.append)
    longer = torch.load(tmp_path / CHECKPOINT, weights_only=True)["seconds"] + 0.5  # a busy machine may take that long for one step
    more = train(L1(), pairs, TINY, 0, seconds=longer, folder=tmp_path, device=CPU, say=said.append)
    assert any(line.startswith(f"goes on at step {first.steps},") for line in said)
    assert more.steps > first.steps
    assert more.best_step <= more.steps
    again = train(L1(), pairs, TINY, 0, seconds=longer, folder=tmp_path, device=CPU, say=said.append)
    assert again.steps == more.steps
    image = synthesize(again.network, L1(), pairs["validation"], 1, device=CPU)
    np.testing.assert_array_equal(image, synthesize(more.network, L1(), pairs["validation"], 1, device=CPU))


def test_a_cell_begins_with_the_weights_of_its_warm_start(tmp_path: Path) -> None:
    pairs = {"training": _pairs(20), "validation": _pairs(4)}
    start = Network(TINY).state_dict()
    trained = train(L1(), pairs, TINY, 0, seconds=1e-6, folder=tmp_path, device=CPU, say=lambda _: None, start=start)
    assert trained.steps == 1
    for name, value in trained.network.state_dict().items():
        torch.testing.assert_close(value, start[name], atol=5 * TINY.learning_rate, rtol=0)


def test_the_learning_rate_rises_by_steps_and_falls_by_time() -> None:
    assert learning_rate(TINY, 0, 0.0) < learning_rate(TINY, 30, 0.1) < learning_rate(TINY, 60, 0.2) == TINY.learning_rate
    assert learning_rate(TINY, 900, 0.69) == TINY.learning_rate
    assert learning_rate(TINY, 900, 1.0) == pytest.approx(0.02 * TINY.learning_rate)


def test_a_cell_is_claimed_by_one_process(tmp_path: Path) -> None:
    with held(tmp_path / "lock", wait=False) as mine:
        assert mine
        with held(tmp_path / "lock", wait=False) as other:
            assert not other
    with held(tmp_path / "lock", wait=False) as again:
        assert again


def test_the_table_has_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    about = {"problem": "head", "warm_seconds": 420, "seconds": 240, "steps": 900, "parameters": 7, "machine": "m", "date": "d"}
    for seed, mae in enumerate((90.0, 92.0)):
        row = {"method": "drift", "evaluations": 1, "figures": {"mae_hu": mae}}
        (tmp_path / "small" / f"head-drift-{seed}.json").write_text(json.dumps({"seed": seed, **about, "rows": [row]}))
        row = {"method": "l1", "evaluations": 1, "figures": {"mae_hu": 80.0 + 12 * seed}}
        (tmp_path / "small" / f"head-l1-{seed}.json").write_text(json.dumps({"seed": seed, **about, "rows": [row]}))
    text = table(tmp_path, "small")
    assert "| drift, complete | 1 | 2 | 900 | 91.0 ± 1.4 |" in text
    assert "| +12.5, +0.0 |" in text
    assert "all start from 420 s of L1; 240 s of training a cell" in text
    assert spread([], 1) == ""
    assert spread([2.345], 2) == "2.35"


def test_the_start_of_few_views_is_air_around_a_body_that_is_nearly_right() -> None:
    scan = np.full((48, 40, 4), -1000, dtype=np.int16)
    scan[8:40, 8:32] = 50
    start = sparse.start(scan, 4.0, 0)
    assert start.shape == scan.shape
    assert abs(start[12:36, 12:28].mean() - 50) < 15
    assert start[0, 0].mean() < -900


def test_a_patch_of_few_views_decodes_to_the_start_and_knows_where_it_lies() -> None:
    rng = np.random.default_rng(0)
    target = np.full((20, 20, 40), 40, dtype=np.int16)
    start = target + 100
    columns = sparse.pair(sparse.Volume(target, start), rng, 16, 2.0, flips=True)
    pairs = Pairs(*(np.stack([column]) for column in columns))
    assert np.abs(sparse.start_of(pairs) - start[0, 0, 0]).max() < 2
    begins_with = CT_SCALE.decode(sparse.base(batch_of(pairs, np.arange(1), CPU).condition))
    np.testing.assert_allclose(begins_with[:, 0], sparse.start_of(pairs), atol=0.01)
    assert pairs.inside.all()
    assert 0 <= pairs.place[0] < 8
    assert (pairs.clean == 40).all()


def test_a_network_with_a_base_begins_there_and_learns_what_to_add(tmp_path: Path) -> None:
    batch = batch_of(_pairs(4), np.arange(4), CPU)
    network = Network(TINY, sparse.base)
    before = L1().answer(network, batch.condition, torch.Generator())
    torch.testing.assert_close(before, sparse.base(batch.condition))
    pairs = {"training": _pairs(20), "validation": _pairs(4)}
    trained = train(L1(), pairs, TINY, 0, seconds=2, folder=tmp_path, device=CPU, say=lambda _: None, base=sparse.base)
    after = L1().answer(trained.network, batch.condition, torch.Generator())
    assert l1(after, batch) < l1(before, batch)


def _pairs(count: int, side: int = 32) -> Pairs:
    """Soft tissue of two kinds with noise, air in a corner."""
    rng = np.random.default_rng(0)
    shape = (count, side, side, side)
    clean = np.full(shape, 40, dtype=np.int16)
    clean[:, side // 2 :] = 30
    inside = np.ones(shape, dtype=bool)
    inside[:, :2] = False
    clean[~inside] = -1000
    textured, again = ((clean + rng.normal(0, 15, shape)).astype(np.int16) for _ in range(2))
    return Pairs(
        condition=rng.random(shape).astype(np.float16),
        textured=textured,
        again=again,
        clean=clean,
        inside=inside,
        place=np.zeros(count, dtype=np.int64),
        spreads=np.full((count, 3), 10, dtype=np.float32),
        kind=np.array(["t1"] * count),
    )
