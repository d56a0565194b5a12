"""Training on CTs and their own projections as a user types it: check, train, go on, fine-tune, reconstruct; and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import body
import numpy as np
import pytest
import torch
from commandline import medsynth
from safetensors.torch import load_file
from tiny_encoder import write_tiny_encoder

from medsynth.core.errors import Exit
from medsynth.verbs.checkpoint import CHECKPOINT, WEIGHTS

TABLE = """
[train]
source = "projected"
views = [18, 24]
window = 32
steps = 4
batch = 2
warmup_steps = 2
ema = 0.9
precision = "32-true"
validate_every = 2
validation_pairs = 2
pictures_every = 0
"""
DRIFT = """
[train.drift]
encoder = "{encoder}"
tile = [16, 16, 16]
queue = 4
drawn = 4
generated_queue = 4
locations = 16
calibration = 2
"""


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Packed scans go to a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients, and a file that is no CT."""
    folder = tmp_path_factory.mktemp("cts")
    for number in range(3):
        body.write_ct(folder / f"patient{number}" / "scan.nii.gz", body.ct_hu() + 10 * number)
    body.write_ct(folder / "labels.nii.gz", np.abs(body.ct_hu()) % 5)
    return folder


def write_card(folder: Path, *, drift: bool = False, **lines: str) -> Path:
    """The tiny network with the table above; lines of it may be replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    table = TABLE
    for key, value in lines.items():
        table = "\n".join(f"{key} = {value}" if line.startswith(f"{key} =") else line for line in table.split("\n"))
    text = body.CARD[: body.CARD.index("[train]")].replace("patch = [48, 48, 6]", f"patch = {lines.get('patch', '[48, 48, 2]')}")
    encoder = write_tiny_encoder(folder / "encoder") if drift else None
    card = folder / "card.toml"
    card.write_text(text + table + (DRIFT.format(encoder=encoder.as_posix()) if encoder else ""), encoding="utf-8")
    return card


def train(card: Path, data: Path, out: Path, *more: object) -> str:
    done = medsynth("train", "--card", card, "--data", data, "--out", out, "--device", "cpu", "--workers", 0, *more)
    assert done.exit_code == Exit.OK, done.stderr
    return done.stdout


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / WEIGHTS)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_check_train_finetune_and_reconstruction_work_in_sequence(data: Path, tmp_path: Path) -> None:
    checked = medsynth("train", "--data", data, "--card", write_card(tmp_path / "a"), "--check")
    assert checked.exit_code == Exit.OK, checked.stderr
    assert "2 CTs to learn from, 1 set aside, by patient" in checked.stdout
    assert "left out: labels" in checked.stdout
    assert "2 scans to learn from, 1 set aside" in train(tmp_path / "a" / "card.toml", data, tmp_path / "run")
    card = write_card(tmp_path / "b", drift=True, steps="1")
    command = ("finetune", "--from", tmp_path / "run", "--card", card, "--data", data, "--out", tmp_path / "tuned", "--workers", 0)
    tuned = medsynth(*command, "--device", "cpu")
    assert tuned.exit_code == Exit.OK, tuned.stderr
    assert not same(weights(tmp_path / "run"), weights(tmp_path / "tuned"))
    scan, geometry = body.write_ct(tmp_path / "in.nii.gz"), body.write_geometry(tmp_path / "geometry.toml")
    made = medsynth("sparse-ct", scan, tmp_path / "out", "--geometry", geometry, "--model", tmp_path / "tuned", "--device", "cpu")
    assert made.exit_code == Exit.OK, made.stderr


@pytest.mark.parametrize("drift", [False, True])
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(data: Path, tmp_path: Path, drift: bool) -> None:
    card = write_card(tmp_path / "card", drift=drift)
    train(card, data, tmp_path / "whole")
    train(card, data, tmp_path / "parts", "--max-steps", 2)
    assert torch.load(tmp_path / "parts" / CHECKPOINT, weights_only=True)["step"] == 2
    train(card, data, tmp_path / "parts")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.parametrize(("key", "value"), [("views", "[18]"), ("window", "16"), ("window", "0")])
def test_a_run_with_other_slabs_is_another_run(data: Path, tmp_path: Path, key: str, value: str) -> None:
    train(write_card(tmp_path / "card"), data, tmp_path / "run", "--max-steps", 1)
    changed = write_card(tmp_path / "changed", **{key: value})
    done = medsynth("train", "--card", changed, "--data", data, "--out", tmp_path / "run", "--device", "cpu", "--workers", 0)
    assert done.exit_code == Exit.USAGE
    assert done.stderr.startswith("E-CARD")


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ({"window": "30"}, "train.window 30"),
        ({"window": "16"}, "train.window 16"),  # all margin
        ({"window": "64"}, "train.window 64"),
        ({"patch": "[48, 40, 2]"}, "grid.patch"),
        ({"patch": "[46, 46, 2]"}, "grid.patch"),
        ({"views": "[18, 400]"}, "400 views"),
        ({"views": "[]"}, "needs views"),
    ],
)
def test_a_slab_that_cannot_be_learned_from_is_refused_before_the_data_is_read(tmp_path: Path, lines: dict[str, str], named: str) -> None:
    card = write_card(tmp_path / "card", **lines)
    done = medsynth("train", "--card", card, "--data", tmp_path / "nowhere", "--out", tmp_path / "run", "--device", "cpu")
    assert done.exit_code == Exit.USAGE
    assert done.stderr.startswith("E-CARD")
    assert named in done.stderr


def test_finetuning_without_a_card_learns_from_projections_with_drifting(data: Path, tmp_path: Path) -> None:
    model = body.write_tiny_sparse(tmp_path / "model")
    done = medsynth(
        "finetune", "--from", model, "--data", data, "--out", tmp_path / "tuned", "--max-steps", 1, "--device", "cpu", "--workers", 0
    )  # fmt: skip
    assert done.exit_code == Exit.OK, done.stderr
    card = (tmp_path / "tuned" / "model" / "card.toml").read_text(encoding="utf-8")
    assert 'source = "projected"' in card
    assert "tile = [" in card


def test_two_processes_learn_as_one(data: Path, tmp_path: Path) -> None:
    card = write_card(tmp_path / "card", drift=True)
    train(card, data, tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", "medsynth"]
    options = ["train", "--card", str(card), "--data", str(data), "--out", str(tmp_path / "two"), "--device", "cpu", "--workers", "0"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)
