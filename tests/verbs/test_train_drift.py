"""Training with drifting: one backward pass for all objectives, exact resume, several processes, best model, early stop."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from tiny_encoder import write_tiny_encoder

from medsynth import zoo
from medsynth.core.errors import UsageError
from medsynth.core.generator import Condition, Target
from medsynth.core.recipe import DriftTable
from medsynth.generators import build
from medsynth.objectives.drifting import Drifting
from medsynth.sources.packed import load_heads
from medsynth.verbs import trainlog
from medsynth.verbs.checkpoint import CHECKPOINT
from medsynth.verbs.learn import Options, finetune, learn, recipe_of
from medsynth.verbs.step import Answering, backward
from medsynth.verbs.train import launch

DRIFT = """
[train.drift]
encoder = "{encoder}"
queue = 4
drawn = 4
locations = 16
warmup_steps = 2
ramp_steps = 2
calibration = 2
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packed tiny heads."""
    folder = tmp_path_factory.mktemp("heads")
    load_heads(tiny.write_label_maps(folder / "maps"), ("01", "02", "03"), cache=folder / "packed")
    return folder / "packed"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny encoder."""
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder"))


def write_card(folder: Path, encoder: Path, extra: str = "", **lines: str) -> Path:
    """A tiny card that drifts: a batch of four, six steps."""
    path = tiny.write_card(folder, **({"batch": "4", "steps": "6", "validate_every": "3", "texture": "true"} | lines))
    path.write_text(path.read_text(encoding="utf-8") + extra + DRIFT.format(encoder=encoder.as_posix()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path, encoder: Path) -> Path:
    """The folder of a run of six steps in one go, with a checkpoint after three."""
    folder = tmp_path_factory.mktemp("drift")
    _run(write_card(folder / "card", encoder, pictures_every="3"), data, folder / "out")
    return folder / "out"


def test_the_drift_sets_in_after_its_warm_up_and_is_logged(whole: Path) -> None:
    log = _log(whole)
    figures = {"loss", "scale", "rms_0.02", "rms_0.05", "rms_0.2", "cosine", "norm_ratio", "conflicts", "seconds"}
    assert {name for name in log if "drift" in name} == {f"train/drift_{figure}" for figure in figures}
    assert [step for step, _ in log["train/drift_cosine"]] == [3, 4, 5, 6]
    assert [value for _, value in log["train/rho"]] == [0, 0, 0.25, 0.5, 0.5, 0.5]


def test_a_run_in_two_parts_equals_one_in_one_go(whole: Path, data: Path, encoder: Path, tmp_path: Path) -> None:
    """The feature bank's units and queues go through the checkpoint."""
    card = whole.parent / "card"
    _run(card, data, tmp_path, max_steps=3)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 3
    _run(card, data, tmp_path)
    assert _weights(tmp_path) == _weights(whole)


def test_sample_pictures_are_drawn(whole: Path) -> None:
    assert sorted(path.name for path in (whole / "samples").iterdir()) == ["step_000003.png", "step_000006.png"]


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_one_backward_pass_through_the_generator_serves_all_objectives(rho: float) -> None:
    passes = []
    card = zoo.TrainTable(source="pairs", steps=1, precision="32-true")
    fabric = launch("cpu", card)
    generator = build("gdm", {"channels": [8, 8, 16], "head_channels": 16, "groups": 4})
    model = fabric.setup(Answering(generator))
    generator.net.head.register_full_backward_hook(lambda *_: passes.append(1))
    drifting = Drifting(lambda ct_hu: [ct_hu / 100], DriftTable(locations=8), batch=4)
    figures = backward(fabric, model, _random_batch(), drifting, rho)
    assert len(passes) == 1
    assert ("drift_loss" in figures) == (rho > 0)


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    fabric = launch("cpu", zoo.TrainTable(source="pairs", steps=1, precision="32-true"))
    model = fabric.setup(Answering(build("gdm", {"channels": [8, 8, 16], "head_channels": 16, "groups": 4})))
    condition, target = _random_batch()
    broken = Target(image=target.image * float("nan"), weight=target.weight)
    with pytest.raises(UsageError, match="not finite") as caught:
        backward(fabric, model, (condition, broken), None, 0.0)
    assert caught.value.code == "E-DIVERGED"


def test_micro_batches_add_up_to_a_batch(data: Path, tmp_path: Path) -> None:
    for name, batch, accumulate in (("whole", "4", "1"), ("parts", "2", "2")):
        card = tiny.write_card(tmp_path / name / "card", batch=batch, accumulate=accumulate, steps="3")
        _run(card, data, tmp_path / name / "out")
    whole, parts = (_log(tmp_path / name / "out")["train/l1"] for name in ("whole", "parts"))
    assert [value for _, value in parts] == pytest.approx([value for _, value in whole], rel=1e-4)


@pytest.mark.parametrize("drifts", [False, True])
def test_two_processes_train_as_one(data: Path, encoder: Path, tmp_path: Path, drifts: bool) -> None:
    folder = tmp_path / "card"
    card = write_card(folder, encoder, steps="4") if drifts else tiny.write_card(folder, batch="4", steps="4")
    _run(card, data, tmp_path / "one")
    script = tmp_path / "run.py"
    script.write_text(TWO.format(card=str(card), data=str(data), out=str(tmp_path / "two")), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = _log(tmp_path / "one"), _log(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one.keys() - {"train/seconds", "train/drift_seconds"}:
        assert [value for _, value in two[name]] == pytest.approx([value for _, value in one[name]], rel=1e-4, abs=1e-6), name


TWO = """
from pathlib import Path
from medsynth.verbs import trainlog
from medsynth.verbs.learn import Options, learn, recipe_of

trainlog.SAY_EVERY = 1
learn(recipe_of("", Path({card!r})), Path({data!r}), Path({out!r}), Options(device="cpu", workers=0))
"""


def test_the_best_model_is_kept(data: Path, tmp_path: Path) -> None:
    """Training this fast goes up and down; the model is that of the step with the least mean MAE."""
    lines = {"steps": "5", "validate_every": "1", "learning_rate": "0.1", "ema": "0.0"}
    _run(tiny.write_card(tmp_path / "best", keep='"best"', **lines), data, tmp_path / "out")
    by_kind = [values for name, values in _log(tmp_path / "out").items() if name.endswith("mae_hu")]
    means = [sum(value for _, value in row) / len(row) for row in zip(*by_kind, strict=True)]
    best = means.index(min(means)) + 1
    assert best < 5
    _run(tiny.write_card(tmp_path / "last", keep='"last"', **lines), data, tmp_path / "until", max_steps=best)
    assert _weights(tmp_path / "out") == _weights(tmp_path / "until")


def test_a_run_that_gets_no_better_stops_early_and_stays_stopped(data: Path, tmp_path: Path) -> None:
    lines = {"patience": "2", "learning_rate": "0.0", "steps": "9", "validate_every": "1"}
    card = tiny.write_card(tmp_path / "card", **lines)
    said: list[str] = []
    learn(recipe_of("", card), data, tmp_path / "out", Options(device="cpu", workers=0, say=said.append))
    assert any("stopped at step 3" in line for line in said)
    assert torch.load(tmp_path / "out" / CHECKPOINT, weights_only=True)["step"] == 3
    said.clear()
    learn(recipe_of("", card), data, tmp_path / "out", Options(device="cpu", workers=0, say=said.append))
    assert said == []


def test_a_batch_too_small_for_drifting_is_refused_before_the_first_step(data: Path, encoder: Path, tmp_path: Path) -> None:
    card = write_card(tmp_path / "card", encoder, batch="2")
    card.write_text(card.read_text(encoding="utf-8") + "generated_queue = 0\n", encoding="utf-8")
    with pytest.raises(UsageError, match="too few") as caught:
        _run(card, data, tmp_path / "out")
    assert caught.value.code == "E-DRIFT"
    assert not (tmp_path / "out" / CHECKPOINT).exists()


def test_finetuning_starts_from_the_models_weights(whole: Path, data: Path, encoder: Path, tmp_path: Path) -> None:
    card = write_card(tmp_path / "card", encoder, steps="3", learning_rate="0.0", warmup_steps="0")
    finetune(str(whole), data, tmp_path / "out", Options(device="cpu", workers=0, say=_quietly), card=card)
    assert _weights(tmp_path / "out") == _weights(whole)
    assert _log(tmp_path / "out")["validation/t1_mae_hu"][0][0] == 0


def test_finetuning_from_another_model_does_not_go_on_with_the_first(whole: Path, data: Path, encoder: Path, tmp_path: Path) -> None:
    card = write_card(tmp_path / "card", encoder, steps="3")
    options = Options(device="cpu", workers=0, say=_quietly)
    finetune(str(whole), data, tmp_path / "out", options, card=card)
    before = _weights(tmp_path / "out")
    with pytest.raises(UsageError, match="another card or of other data"):
        finetune(str(tmp_path / "out"), data, tmp_path / "out", options, card=card)
    assert _weights(tmp_path / "out") == before


def test_a_run_that_went_astray_leaves_the_model_before_it(data: Path, tmp_path: Path) -> None:
    _run(tiny.write_card(tmp_path / "card", steps="4", validate_every="2"), data, tmp_path / "out", max_steps=2)
    kept = {name: (tmp_path / "out" / name).read_bytes() for name in (CHECKPOINT, "model/weights.safetensors")}
    with pytest.raises(UsageError) as caught:
        _run(tiny.write_card(tmp_path / "card", steps="4", validate_every="2", learning_rate="1e30"), data, tmp_path / "out")
    assert caught.value.code == "E-DIVERGED"
    assert {name: (tmp_path / "out" / name).read_bytes() for name in kept} == kept


def test_finetuning_another_network_is_refused(whole: Path, data: Path, encoder: Path, tmp_path: Path) -> None:
    card = write_card(tmp_path / "card", encoder, groups="8")
    with pytest.raises(UsageError, match="another network"):
        finetune(str(whole), data, tmp_path / "out", Options(device="cpu", workers=0), card=card)


def _random_batch() -> tuple[Condition, Target]:
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(4, 1, 16, 16, 16, generator=rng)
    return Condition(image=image), Target(image=0.2 * image - 0.6, weight=torch.ones_like(image))


def _run(card: Path, data: Path, out: Path, *, max_steps: int | None = None) -> None:
    """A run that writes its means every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainlog, "SAY_EVERY", 1)
        learn(recipe_of("", card), data, out, Options(device="cpu", max_steps=max_steps, workers=0, say=_quietly))


def _quietly(line: str) -> None:
    """Keeps the test's output clean."""


def _weights(out: Path) -> bytes:
    return zoo.find(str(out)).weights_file().read_bytes()


def _log(out: Path) -> dict[str, list[tuple[int, float]]]:
    with (out / "log.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    log: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in rows:
        log.setdefault(name, []).append((int(step), float(value)))
    return log
