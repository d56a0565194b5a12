"""Training on pairs as a new user types it, and the mistakes that end before the first step: a code, the cause, the remedy."""

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import phantom
import pytest
import tiny
import torch
from commandline import medsynth
from tiny_encoder import write_tiny_encoder

from medsynth.core.errors import Exit
from medsynth.verbs.checkpoint import CHECKPOINT

DRIFT = """
[train.drift]
encoder = "{encoder}"
generated_queue = 0
queue = 4
drawn = 4
locations = 16
calibration = 1
"""


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Packed pairs go to a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients in mr/ and ct/."""
    data = tmp_path_factory.mktemp("good")
    head = phantom.head_mask()
    for seed, name in enumerate("abc"):
        mr = phantom.mr_head(seed=seed)
        ct_hu = np.where(head, np.where(mr < 60, 900.0, 40.0), -1000.0) + np.random.default_rng(seed).normal(0, 10, head.shape)
        phantom.write_nifti(data / "mr" / f"{name}.nii.gz", mr)
        phantom.write_nifti(data / "ct" / f"{name}.nii.gz", ct_hu.astype(np.float32))
    return data


@pytest.fixture
def data(good: Path, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "pairs"))


def write_card(folder: Path, **lines: str) -> Path:
    """A tiny card for pairs, which drifts."""
    encoder = write_tiny_encoder(folder / "encoder")
    path = tiny.write_card(folder / "card", **({"source": '"pairs"', "batch": "4", "spacing_mm": "[4.0, 4.0, 4.0]", "steps": "2"} | lines))
    text = path.read_text(encoding="utf-8").replace('training = ["01", "02"]\nvalidation = ["03"]\n', "")
    path.write_text(text + DRIFT.format(encoder=encoder.as_posix()), encoding="utf-8")
    return path


def test_check_train_finetune_and_synthesis_work_in_sequence(good: Path, tmp_path: Path) -> None:
    checked = medsynth("train", "--data", good, "--task", "mri2ct", "--check")
    assert checked.exit_code == Exit.OK, checked.stderr
    assert "3 pairs, 3 patients" in checked.stdout
    card = write_card(tmp_path)
    trained = medsynth("train", "--data", good, "--card", card, "--out", tmp_path / "run", "--device", "cpu", "--workers", 0)
    assert trained.exit_code == Exit.OK, trained.stderr
    assert "2 pairs to learn from, 1 set aside, by patient" in trained.stdout
    tuned = medsynth(
        "finetune", "--from", tmp_path / "run", "--card", card, "--data", good, "--out", tmp_path / "tuned", "--max-steps", 1,
        "--device", "cpu", "--workers", 0,
    )  # fmt: skip
    assert tuned.exit_code == Exit.OK, tuned.stderr
    assert "packed" not in tuned.stdout  # the cache has them
    for run in ("run", "tuned"):
        made = medsynth("mri2ct", good / "mr" / "a.nii.gz", tmp_path / "out" / run, "--model", tmp_path / run, "--device", "cpu")
        assert made.exit_code == Exit.OK, made.stderr
        ct = nib.load(tmp_path / "out" / run / "a_ct.nii.gz")
        assert ct.shape == nib.load(good / "mr" / "a.nii.gz").shape


def unpaired(data: Path) -> None:
    (data / "ct" / "b.nii.gz").unlink()


def constant(data: Path) -> None:
    phantom.write_nifti(data / "mr" / "b.nii.gz", np.full(phantom.shape(), 7.0, dtype=np.float32))


def not_a_number(data: Path) -> None:
    nib.save(nib.Nifti1Image(np.full(phantom.shape(), np.nan, dtype=np.float32), phantom.affine_ras()), data / "ct" / "b.nii.gz")


def one_pair_only(data: Path) -> None:
    for name in "bc":
        (data / "mr" / f"{name}.nii.gz").unlink()
        (data / "ct" / f"{name}.nii.gz").unlink()


def wrong_spacing(data: Path) -> None:
    phantom.write_nifti(data / "mr" / "b.nii.gz", phantom.mr_head(), np.diag([40.0, 40.0, 40.0, 1.0]))


def exchanged(data: Path) -> None:
    (data / "mr").rename(data / "x")
    (data / "ct").rename(data / "mr")
    (data / "x").rename(data / "ct")


def truncated(data: Path) -> None:
    path = data / "ct" / "c.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])


MISTAKES = {
    unpaired: ("E-PAIRS", "b"),
    constant: ("E-MODALITY", "constant"),
    not_a_number: ("E-READ", "b"),
    one_pair_only: ("E-PAIRS", "second patient"),
    wrong_spacing: ("E-SPACING", "b"),
    exchanged: ("E-MODALITY", "exchanged"),
    truncated: ("E-READ", "c"),
}


@pytest.mark.parametrize("spoil", MISTAKES, ids=lambda spoil: spoil.__name__)
def test_a_mistake_ends_training_before_its_first_step(data: Path, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(data)
    code, named = MISTAKES[spoil]
    done = medsynth("train", "--data", data, "--card", write_card(tmp_path), "--out", tmp_path / "run", "--device", "cpu")
    assert done.exit_code == Exit.INPUT
    assert done.stderr.startswith(f"{code}: ")
    assert named in done.stderr
    assert "\n  remedy: " in done.stderr
    assert not list((tmp_path / "run").glob("*"))


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = write_card(tmp_path, validate_every="1")
    arguments = ("train", "--data", good, "--card", card, "--out", tmp_path / "run", "--device", "cpu", "--workers", 0)
    medsynth(*arguments, "--max-steps", 1)
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        stopped = medsynth(*arguments)
    assert stopped.exit_code == Exit.USAGE
    assert stopped.stderr.startswith("E-DISK: ")
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before
    assert not list((tmp_path / "run").glob(".medsynth-part-*"))
    assert medsynth(*arguments).exit_code == Exit.OK


WRONG_LINES = {
    "generator": '"gan"', "task": '"ct2mri"', "groups": "3", "channels": "[8, 16]", "patch": "[30, 32, 32]", "spacing_mm": "[0, 4, 4]",
    "learning_rate": "-1.0", "seed": "-1", "batch": "2",
}  # fmt: skip


@pytest.mark.parametrize("line", WRONG_LINES)
def test_a_wrong_line_of_the_card_is_found_before_the_data_is_read(tmp_path: Path, line: str) -> None:
    card = write_card(tmp_path, **{line: WRONG_LINES[line]})
    done = medsynth("train", "--data", tmp_path / "nowhere", "--card", card, "--out", tmp_path / "run", "--device", "cpu")
    assert done.exit_code == Exit.USAGE
    assert done.stderr.startswith("E-DRIFT: " if line == "batch" else "E-CARD: ")
    assert "\n  remedy: " in done.stderr


def test_a_stage_that_the_encoder_lacks_is_refused(tmp_path: Path) -> None:
    card = write_card(tmp_path)
    card.write_text(card.read_text(encoding="utf-8") + "stages = [7]\n", encoding="utf-8")
    done = medsynth("train", "--data", tmp_path / "nowhere", "--card", card, "--out", tmp_path / "run", "--device", "cpu")
    assert done.stderr.startswith("E-CARD: the encoder has 2 stages")


def test_a_folder_for_the_run_that_cannot_be_is_refused(good: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        done = medsynth("train", "--data", good, "--card", write_card(tmp_path), "--out", out, "--device", "cpu")
        assert (done.exit_code, done.stderr[:10]) == (Exit.USAGE, "E-OUTPUT: ")


def test_a_checkpoint_that_cannot_be_read_is_named(good: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"no checkpoint")
    done = medsynth("train", "--data", good, "--card", write_card(tmp_path), "--out", tmp_path / "run", "--device", "cpu")
    assert (done.exit_code, done.stderr[:14]) == (Exit.USAGE, "E-CHECKPOINT: ")
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == b"no checkpoint"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "run"), "--task"),
        (("--task", "mri2ct", "--card", "card.toml", "--out", "run"), "--task"),
        (("--task", "ct2mri", "--out", "run"), "mri2ct"),
        (("--task", "mri2ct"), "--out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = medsynth("train", "--data", tmp_path, *arguments)
    assert done.exit_code == Exit.USAGE
    assert said in done.stderr
