"""Training by a card: what a run leaves, and that a run which was killed ends where one that was not does."""

import csv
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsynth import zoo
from medsynth.core.errors import ScanError, UsageError
from medsynth.generators import build
from medsynth.nets import soundness
from medsynth.sources.packed import load_heads
from medsynth.verbs import trainlog
from medsynth.verbs.checkpoint import CHECKPOINT
from medsynth.verbs.learn import Options, learn, recipe_of
from medsynth.verbs.train import learning_rate

Row = tuple[int, str, str]

KILLED = """
import sys
from pathlib import Path
from medsynth.verbs import trainlog
from medsynth.verbs.learn import Options, learn, recipe_of

def say(line):
    print(line, flush=True)
    if line.startswith("step 6/"):
        sys.stdin.read()  # waits here for the kill

trainlog.SAY_EVERY = 2
card, data, out = map(Path, sys.argv[1:])
learn(recipe_of("", card), data, out, Options(device="cpu", workers=0, say=say))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packed tiny heads."""
    folder = tmp_path_factory.mktemp("heads")
    load_heads(tiny.write_label_maps(folder / "maps"), ("01", "02", "03"), cache=folder / "packed")
    return folder / "packed"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder of a run of eight steps in one go, with a checkpoint after four."""
    folder = tmp_path_factory.mktemp("whole")
    _run(tiny.write_card(folder / "card"), data, folder / "out")
    return folder / "out"


def test_a_run_leaves_a_model_that_is_found_and_loads(whole: Path) -> None:
    model = zoo.find(str(whole))
    assert model.folder == whole / "model"
    weights = load_file(model.weights_file())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    generator = build(model.card.generator, model.card.config)
    generator.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)


def test_the_model_keeps_the_card_that_it_was_trained_by(whole: Path) -> None:
    recipe, trained = zoo.read_card(whole.parent / "card" / "card.toml"), zoo.find(str(whole)).card
    assert trained.weights is not None
    assert trained.model_copy(update={"weights": None}) == recipe


def test_the_model_is_the_running_average(whole: Path) -> None:
    checkpoint = torch.load(whole / CHECKPOINT, weights_only=True)
    weights = load_file(whole / "model" / zoo.WEIGHTS)
    averaged, last = (checkpoint[part] for part in ("ema", "model"))
    assert all(torch.equal(weights[name], averaged[f"generator.{name}"].half()) for name in weights)
    assert not all(torch.equal(averaged[name], last[name]) for name in averaged)


def test_the_log_holds_losses_and_validation_by_contrast(whole: Path) -> None:
    rows = _log(whole)
    figures = {name for _, name, _ in rows}
    scores = {f"validation/{kind}_{score}" for kind in ("t1", "t2", "flair") for score in ("mae_hu", "bone_dice", "sharpness")}
    assert figures == {"train/cross_entropy", "train/l1", "train/grad_norm", "train/lr"} | scores
    assert [step for step, name, _ in rows if name == "train/l1"] == [2, 4, 6, 8]
    assert [step for step, name, _ in rows if name == "validation/t1_mae_hu"] == [4, 8]


def test_training_lowers_the_loss(whole: Path) -> None:
    cross_entropy = [float(value) for _, name, value in _log(whole) if name == "train/cross_entropy"]
    assert cross_entropy[-1] < cross_entropy[0]


def test_a_run_in_two_parts_equals_one_in_one_go(whole: Path, data: Path, tmp_path: Path) -> None:
    card = whole.parent / "card"
    _run(card, data, tmp_path, max_steps=4)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 4
    _run(card, data, tmp_path)
    _assert_same_run(whole, tmp_path)


def test_a_run_that_was_killed_goes_on_to_the_same_end(whole: Path, data: Path, tmp_path: Path) -> None:
    card = whole.parent / "card"
    _run_until_killed(card, data, tmp_path)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 4
    assert max(step for step, _, _ in _log(tmp_path)) == 6
    time.sleep(1.1)  # TensorBoard orders its files by the second
    _run(card, data, tmp_path)
    _assert_same_run(whole, tmp_path)
    scalars = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in scalars.Scalars("train/l1")] == [2, 4, 6, 8]
    assert [event.step for event in scalars.Scalars("validation/t2_mae_hu")] == [4, 8]


def test_a_finished_run_is_left_alone(whole: Path, data: Path) -> None:
    before = {path: path.read_bytes() for path in (whole / CHECKPOINT, whole / "log.csv", whole / "model" / zoo.WEIGHTS)}
    said: list[str] = []
    assert learn(recipe_of("", whole.parent / "card"), data, whole, Options(device="cpu", workers=0, say=said.append)) == whole / "model"
    assert said == []
    assert {path: path.read_bytes() for path in before} == before


def test_a_worker_draws_what_the_process_itself_would(whole: Path, data: Path, tmp_path: Path) -> None:
    _run(whole.parent / "card", data, tmp_path, workers=1)
    assert _weights(tmp_path) == _weights(whole)


def test_a_batch_in_half_precision_trains(data: Path, tmp_path: Path) -> None:
    card = tiny.write_card(tmp_path / "card", batch="2", precision='"bf16-mixed"', steps="2")
    _run(card, data, tmp_path / "out")
    losses = [float(value) for _, name, value in _log(tmp_path / "out") if name in ("train/l1", "train/grad_norm")]
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)


def test_more_steps_continue_a_run(whole: Path, data: Path, tmp_path: Path) -> None:
    _copy_run(whole, tmp_path / "out")
    _run(tiny.write_card(tmp_path / "card", steps="9"), data, tmp_path / "out")
    rows = _log(tmp_path / "out")
    assert rows[: len(_log(whole))] == _log(whole)
    assert {step for step, _, _ in rows[len(_log(whole)) :]} == {9}


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("groups = 4", "groups = 8"),
        ("patch = [32, 32, 32]", "patch = [32, 32, 24]"),
        ('training = ["01", "02"]', 'training = ["01"]'),
        ("seed = 0", "seed = 1"),
        ("batch = 1", "batch = 2"),
    ],
)
def test_another_card_in_the_folder_of_a_run_is_refused(whole: Path, data: Path, tmp_path: Path, line: str, other: str) -> None:
    card, log = tiny.write_card(tmp_path), (whole / "log.csv").read_bytes()
    assert line in tiny.CARD
    card.write_text(tiny.CARD.replace(line, other), encoding="utf-8")
    with pytest.raises(UsageError, match="a run of another card") as caught:
        _run(card, data, whole)
    assert (caught.value.code, caught.value.exit) == ("E-CARD", 2)
    assert (whole / "log.csv").read_bytes() == log


def test_a_card_that_is_no_recipe_is_refused(data: Path, tmp_path: Path) -> None:
    card = tiny.write_card(tmp_path / "card")
    card.write_text(card.read_text(encoding="utf-8").partition("[train]")[0], encoding="utf-8")
    with pytest.raises(UsageError, match=r"no \[train\] table") as caught:
        _run(card, data, tmp_path / "out")
    assert caught.value.code == "E-CARD"
    assert not (tmp_path / "out").exists()


def test_missing_data_is_said_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="01") as caught:
        _run(tiny.write_card(tmp_path / "card"), tmp_path, tmp_path / "out")
    assert caught.value.code == "E-EMPTY"


def test_the_learning_rate_rises_stays_and_falls_to_a_fiftieth() -> None:
    table = zoo.TrainTable(
        source="labels", training=("01",), validation=("02",), steps=1000, warmup_steps=50, decay_share=0.3, learning_rate=2e-3
    )
    rates = [learning_rate(table, step) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-3 / 50)
    assert rates[24] == pytest.approx(1e-3)
    assert rates[49:701] == pytest.approx([2e-3] * 652)
    assert rates[850] == pytest.approx(2e-3 * 0.51)
    assert rates[-1] == pytest.approx(2e-3 / 50, rel=2e-3)
    assert all(a <= b for a, b in pairwise(rates[:50]))
    assert all(a >= b for a, b in pairwise(rates[700:]))


@pytest.mark.parametrize(("warmup_steps", "decay_share", "last"), [(0, 0.0, 1.0), (0, 1.0, 0.02), (5, 0.0, 1.0)])
def test_a_schedule_may_lack_its_ends(warmup_steps: int, decay_share: float, last: float) -> None:
    table = zoo.TrainTable(
        source="labels",
        training=("01",),
        validation=("02",),
        steps=1000,
        warmup_steps=warmup_steps,
        decay_share=decay_share,
        learning_rate=1.0,
    )
    assert learning_rate(table, 0) == pytest.approx(1 / max(1, warmup_steps))
    assert learning_rate(table, 999) == pytest.approx(last, rel=1e-3)


def _run(card: Path, data: Path, out: Path, *, max_steps: int | None = None, workers: int = 0) -> None:
    """A run that writes its means every two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainlog, "SAY_EVERY", 2)
        learn(recipe_of("", card), data, out, Options(device="cpu", max_steps=max_steps, workers=workers, say=_quietly))


def _quietly(line: str) -> None:
    """Keeps the test's output clean."""


@pytest.mark.parametrize(
    ("patch", "precision"), [("[16, 32, 32]", "bf16-mixed"), ("[16, 32, 32]", "32-true"), ("[32, 32, 32]", "bf16-mixed")]
)
def test_only_a_patch_whose_gradients_this_cpu_gets_wrong_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch: str, precision: str
) -> None:
    monkeypatch.setattr(soundness, "small_maps_are_sound", lambda: False)
    card = tiny.write_card(tmp_path / "card", patch=patch, precision=f'"{precision}"', steps="1")
    if (patch, precision) != ("[16, 32, 32]", "bf16-mixed"):
        _run(card, data, tmp_path / "out")
        return
    with pytest.raises(UsageError, match="2 voxels wide") as caught:
        _run(card, data, tmp_path / "out")
    assert caught.value.code == "E-PRECISION"


def _run_until_killed(card: Path, data: Path, out: Path) -> None:
    """A run in a process of its own that is killed, without warning, after its sixth step."""
    command = [sys.executable, "-c", KILLED, str(card), str(data), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith("step 6/") for line in process.stdout)
        process.kill()


def _assert_same_run(a: Path, b: Path) -> None:
    assert _weights(a) == _weights(b)
    assert _log(a) == _log(b)
    assert zoo.find(str(a)).card == zoo.find(str(b)).card


def _weights(out: Path) -> bytes:
    return zoo.find(str(out)).weights_file().read_bytes()


def _log(out: Path) -> list[Row]:
    """(step, name, value) of every row but timings."""
    with (out / "log.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "name", "value"]
    return [(int(step), name, value) for step, name, value in rows[1:] if name != "train/seconds"]


def _copy_run(source: Path, target: Path) -> None:
    target.mkdir()
    for name in (CHECKPOINT, "log.csv"):
        (target / name).write_bytes((source / name).read_bytes())
