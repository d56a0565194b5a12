"""Pretraining an encoder: what a run leaves, that it can be killed, what it refuses, and the command as a user types it."""

import csv
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny
import torch
from commandline import medsynth
from safetensors.torch import load_file

from medsynth import zoo
from medsynth.core.errors import MedsynthError, ScanError, UsageError
from medsynth.sources.unlabelled import Item, write_packed
from medsynth.verbs import trainlog
from medsynth.verbs.checkpoint import CHECKPOINT
from medsynth.verbs.encoders import load_encoder
from medsynth.verbs.pretrain import learning_rate, pretrain, recipe, split

CARD = """
kind = "encoder"
name = "tiny-encoder"
version = "0"
summary = "an encoder for tests"
network = "mae3d"
taps = ["stages.0", "stages.1"]
windows_hu = [[-1000.0, 1000.0]]
span = [-1.0, 1.0]

[config]
in_channels = 1
channels = [8, 8]
blocks = [1, 1]
groups = 4

[licence]
code = "Apache-2.0"
weights = "Apache-2.0"

[data]
training = "noise"
validation = "noise"
licence = "Apache-2.0"

[pretrain]
validation = ["aside*"]
steps = 8
batch = 2
warmup_steps = 2
precision = "32-true"
patch = 16
spacing_mm = [2.0, 3.0]
validate_every = 4
validation_crops = 3
"""

KILLED = """
import sys
from pathlib import Path
from medsynth.sources.unlabelled import Item
from medsynth.verbs import trainlog
from medsynth.verbs.pretrain import pretrain

def say(line):
    assert "SimpleITK" not in sys.modules
    print(line, flush=True)
    if line.startswith("step 6/"):
        sys.stdin.read()  # waits here for the kill

trainlog.SAY_EVERY = 2
card, out, *scans = map(Path, sys.argv[1:])
pretrain(card, [Item("ct", scan.stem, scan) for scan in scans], out, device="cpu", workers=0, say=say)
"""

Row = tuple[int, str, str]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Two packed scans to learn from, and one whose name sets it aside."""
    folder = tmp_path_factory.mktemp("packed")
    found = [Item("ct", name, folder / f"{name}.npz") for name in ("a", "b", "aside1")]
    for seed, item in enumerate(found):
        write_packed(item.path, _ct(seed))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, items: list[Item]) -> Path:
    """The folder of a run of eight steps in one go, with a checkpoint after four."""
    folder = tmp_path_factory.mktemp("whole")
    _run(_card(folder / "card"), items, folder / "out")
    return folder / "out"


def test_a_run_leaves_an_encoder_that_is_found_loads_and_runs(whole: Path) -> None:
    encoder = load_encoder(zoo.find_encoder(str(whole)))
    stages = encoder(torch.zeros(1, 1, 16, 16, 16))
    assert [tuple(stage.shape) for stage in stages] == [(1, 8, 8, 8, 8), (1, 8, 4, 4, 4)]


def test_only_the_running_average_of_the_encoder_is_kept_in_half_precision(whole: Path) -> None:
    weights = load_file(zoo.find_encoder(str(whole)).weights_file())
    checkpoint = torch.load(whole / CHECKPOINT, weights_only=True)
    wanted = {name.removeprefix("encoder."): value for name, value in checkpoint["ema"].items() if name.startswith("encoder.")}
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name].half()) for name, value in weights.items())
    assert not all(torch.equal(checkpoint["ema"][name], value) for name, value in checkpoint["model"].items())


def test_the_encoder_keeps_the_card_that_it_was_trained_by(whole: Path) -> None:
    trained = zoo.find_encoder(str(whole)).card
    assert trained.weights is not None
    assert trained.model_copy(update={"weights": None}) == zoo.read_encoder_card(whole.parent / "card" / "card.toml")


def test_the_log_compares_the_error_with_predicting_the_mean(whole: Path) -> None:
    rows = _log(whole)
    assert {name for _, name, _ in rows} == {
        "train/masked_mse",
        "train/grad_norm",
        "train/lr",
        "validation/ct_masked_mse",
        "validation/ct_mean_mse",
    }
    assert [step for step, name, _ in rows if name == "train/masked_mse"] == [2, 4, 6, 8]
    assert [step for step, name, _ in rows if name == "validation/ct_masked_mse"] == [4, 8]
    mean = {float(value) for _, name, value in rows if name == "validation/ct_mean_mse"}
    assert len(mean) == 1  # the same crops and masks each time
    assert list((whole / "tensorboard").iterdir())


def test_training_lowers_the_error(items: list[Item], tmp_path: Path) -> None:
    card = _card(tmp_path / "card", steps="60", learning_rate="5e-3", validate_every="60", warmup_steps="5")
    _run(card, items, tmp_path / "out")
    last = {name: float(value) for _, name, value in _log(tmp_path / "out")}
    assert last["validation/ct_masked_mse"] < 0.7 * last["validation/ct_mean_mse"]


def test_a_run_in_two_parts_equals_one_in_one_go(whole: Path, items: list[Item], tmp_path: Path) -> None:
    card = whole.parent / "card"
    _run(card, items, tmp_path, max_steps=4)
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 4
    _run(card, items, tmp_path)
    _assert_same_run(whole, tmp_path)


def test_a_run_that_was_killed_goes_on_to_the_same_end(whole: Path, items: list[Item], tmp_path: Path) -> None:
    """The process that is killed has not imported SimpleITK either: training from the cache needs none."""
    card = whole.parent / "card"
    command = [sys.executable, "-c", KILLED, *map(str, (card, tmp_path, *(item.path for item in items)))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith("step 6/") for line in process.stdout)
        process.kill()
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 4
    _run(card, items, tmp_path)
    _assert_same_run(whole, tmp_path)


def test_a_worker_draws_what_the_process_itself_would(whole: Path, items: list[Item], tmp_path: Path) -> None:
    _run(whole.parent / "card", items, tmp_path, workers=1)
    _assert_same_run(whole, tmp_path)


def test_half_precision_trains(items: list[Item], tmp_path: Path) -> None:
    _run(_card(tmp_path / "card", precision='"bf16-mixed"', steps="2"), items, tmp_path / "out")
    assert all(0 < float(value) < 10 for _, name, value in _log(tmp_path / "out") if name == "train/masked_mse")


def test_a_finished_run_is_left_alone(whole: Path, items: list[Item]) -> None:
    before = {path: path.read_bytes() for path in (whole / CHECKPOINT, whole / "log.csv", whole / "model" / zoo.WEIGHTS)}
    assert pretrain(whole.parent / "card", items, whole, device="cpu", workers=0, say=_quietly) == whole / "model"
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("changed", [{"channels": "[8, 16]"}, {"spacing_mm": "[2.0, 2.5]"}, {"seed": "1"}])
def test_another_card_in_the_folder_of_a_run_is_refused(whole: Path, items: list[Item], tmp_path: Path, changed: dict[str, str]) -> None:
    log = (whole / "log.csv").read_bytes()
    card = _card(tmp_path, **({"seed": "0"} | changed))
    with pytest.raises(UsageError, match="another card") as caught:
        _run(card, items, whole)
    assert caught.value.code == "E-CARD"
    assert (whole / "log.csv").read_bytes() == log


def test_other_data_in_the_folder_of_a_run_are_refused(whole: Path, items: list[Item]) -> None:
    with pytest.raises(UsageError, match="other data"):
        _run(whole.parent / "card", items[1:], whole)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"in_channels": "2"}, "2 in_channels for 1 windows"),
        ({"groups": "3"}, "multiples of groups"),
        ({"channels": "[8, 8, 8, 8, 8]", "blocks": "[1, 1, 1, 1, 1]"}, "cannot be halved"),
        ({"network": '"monai:SegResEncoder"'}, "cannot be pretrained here"),
        ({"patch": "20"}, "pretrain.patch"),
        ({"spacing_mm": "[3.0, 2.0]"}, "finer spacing first"),
    ],
)
def test_a_card_that_cannot_be_followed_is_refused_at_once(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        recipe(_card(tmp_path, **changed))
    assert caught.value.code == "E-CARD"


def test_a_card_without_a_recipe_is_refused(tmp_path: Path) -> None:
    card = _card(tmp_path)
    card.write_text(card.read_text(encoding="utf-8").partition("[pretrain]")[0], encoding="utf-8")
    with pytest.raises(UsageError, match=r"no \[pretrain\] table"):
        recipe(card)


def test_patterns_set_scans_aside() -> None:
    training, aside = split(_named("a1", "a2", "b1"), ("a*",), _quietly)
    assert ([item.name for item in training], [item.name for item in aside]) == (["b1"], ["a1", "a2"])


@pytest.mark.parametrize(("count", "aside"), [(2, ["s2"]), (9, ["s9"]), (25, ["s10", "s20"])])
def test_where_no_pattern_fits_every_tenth_is_set_aside_and_named(count: int, aside: list[str]) -> None:
    said: list[str] = []
    training, held = split(_named(*(f"s{k + 1}" for k in range(count))), ("other*",), said.append)
    assert [item.name for item in held] == aside
    assert len(training) == count - len(aside)
    assert all(name in said[0] for name in aside)


@pytest.mark.parametrize(("names", "patterns"), [(("only",), ()), (("a1", "a2"), ("a*",))])
def test_nothing_left_to_learn_from_is_refused(names: tuple[str, ...], patterns: tuple[str, ...]) -> None:
    with pytest.raises(ScanError) as caught:
        split(_named(*names), patterns, _quietly)
    assert caught.value.code == "E-EMPTY"


def test_the_learning_rate_rises_and_falls_to_a_fiftieth() -> None:
    table = zoo.PretrainTable(steps=1000, warmup_steps=50, learning_rate=2e-3)
    rates = [learning_rate(table, step) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-3 / 50, rel=1e-3)
    assert rates[49] == max(rates) == pytest.approx(2e-3, rel=1e-2)
    assert rates[-1] == pytest.approx(2e-3 / 50, rel=1e-3)
    assert rates[49:] == sorted(rates[49:], reverse=True)


def test_the_command_packs_trains_and_says_where_the_encoder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CTs and head label maps in two folders, as in the documentation."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed, name in enumerate(("a", "b", "aside1", "unwanted")):
        _write_nifti(tmp_path / "ct" / f"{name}.nii.gz", _ct(seed))
    maps, card = tiny.write_label_maps(tmp_path / "maps"), _card(tmp_path / "card", steps="2")
    data = ("--data", tmp_path / "ct", "--data", maps)
    done = medsynth("pretrain", *data, "--out", tmp_path / "run", "--card", card, "--exclude", "unw*", "--device", "cpu", "--workers", 0)
    assert done.exit_code == 0, done.output
    assert "5 scans to learn from, 1 set aside" in done.stdout
    assert "unwanted" not in done.stdout
    assert f"encoder: {tmp_path / 'run' / 'model'}" in done.stdout
    assert load_encoder(zoo.find_encoder(str(tmp_path / "run"))).span == (-1.0, 1.0)


def test_the_command_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    for place, code, exit_ in ((tmp_path / "nowhere", "E-PATH", 2), (tmp_path / "empty", "E-EMPTY", 3)):
        done = medsynth("pretrain", "--data", place, "--out", tmp_path / "run", "--card", _card(tmp_path / "card"))
        assert (done.exit_code, done.stderr.partition(":")[0]) == (exit_, code)
    assert not (tmp_path / "run").exists()


def test_errors_of_a_card_are_expected_ones(tmp_path: Path) -> None:
    with pytest.raises(MedsynthError, match="makes images"):
        recipe(tiny.write_card(tmp_path))


def _run(card: Path, items: list[Item], out: Path, *, max_steps: int | None = None, workers: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainlog, "SAY_EVERY", 2)
        pretrain(card, items, out, device="cpu", max_steps=max_steps, workers=workers, say=_quietly)


def _quietly(line: str) -> None:
    """Keeps the test's output clean."""


def _card(folder: Path, **changed: str) -> Path:
    """CARD with some lines changed, or added to its last table."""
    keys = [line.split(" = ")[0] for line in CARD.splitlines()]
    lines = [f"{key} = {changed[key]}" if key in changed else line for key, line in zip(keys, CARD.splitlines(), strict=True)]
    lines += [f"{key} = {value}" for key, value in changed.items() if key not in keys]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "card.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _ct(seed: int) -> np.ndarray:
    """HU [x y z]: a ball of soft tissue with a core of bone in air."""
    axes = np.meshgrid(*[np.arange(n) - n / 2 + seed for n in (26, 24, 22)], indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes))
    return np.where(distance < 4, 700.0, np.where(distance < 9, 40.0, -1000.0)).astype(np.float32)


def _write_nifti(path: Path, ct_hu: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(ct_hu, np.diag([2.0, 2.0, 2.0, 1.0])), path)


def _named(*names: str) -> list[Item]:
    return [Item("ct", name, Path(name)) for name in names]


def _assert_same_run(a: Path, b: Path) -> None:
    assert zoo.find_encoder(str(a)).weights_file().read_bytes() == zoo.find_encoder(str(b)).weights_file().read_bytes()
    assert _log(a) == _log(b)
    for part in ("model", "ema"):
        states = [torch.load(out / CHECKPOINT, weights_only=True)[part] for out in (a, b)]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def _log(out: Path) -> list[Row]:
    """(step, name, value) of every row but timings."""
    with (out / "log.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return [(int(step), name, value) for step, name, value in rows[1:] if name != "train/seconds"]
