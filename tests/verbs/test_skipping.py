"""A second run makes again what is missing, damaged, or made of other bytes or in another way, and nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import phantom
import pytest
from commandline import contents, medsynth, status
from tiny_model import write_tiny_model


def test_what_is_complete_is_not_made_again(one: Path, one_finished: Path, model: Path, tmp_path: Path) -> None:
    out = shutil.copytree(one_finished, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("head_ct*")}
    result = medsynth("mri2ct", one, out, "--model", model)
    assert result.exit_code == 0
    assert status(out) == {"head": "skipped"}
    assert "1 skipped" in result.stdout
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("head_ct*")} == before


def other_model(scans: Path, out: Path, model: Path) -> tuple[object, ...]:
    return ("--model", write_tiny_model(out.parent / "other", seed=1))


def other_configuration(scans: Path, out: Path, model: Path) -> tuple[object, ...]:
    """The same weights; the CT differs all the same."""
    folder = shutil.copytree(model, out.parent / "sharper")
    card = folder / "card.toml"
    card.write_text(card.read_text(encoding="utf-8").replace("[config]\n", "[config]\nsharpness = 1.5\n", 1), encoding="utf-8")
    return ("--model", folder)


def other_window(scans: Path, out: Path, model: Path) -> tuple[object, ...]:
    return ("--model", model, "--window", "brain")


def with_force(scans: Path, out: Path, model: Path) -> tuple[object, ...]:
    return ("--model", model, "--force")


def with_mask(scans: Path, out: Path, model: Path) -> tuple[object, ...]:
    return ("--model", model, "--mask", phantom.write_nifti(out.parent / "mask.nii.gz", phantom.head_mask()))


def told_to(scans: Path, out: Path, model: Path) -> tuple[object, ...]:
    return ("--model", model, "--overwrite")


def other_scan(scans: Path, out: Path, model: Path) -> tuple[object, ...]:
    phantom.write_nifti(scans / "head.nii.gz", phantom.mr_head(seed=5))
    return ("--model", model)


def damaged_output(scans: Path, out: Path, model: Path) -> tuple[object, ...]:
    ct = out / "head_ct.nii.gz"
    ct.write_bytes(ct.read_bytes()[:-100])
    return ("--model", model)


def missing_output(scans: Path, out: Path, model: Path) -> tuple[object, ...]:
    (out / "head_ct.nii.gz").unlink()
    return ("--model", model)


def missing_picture(scans: Path, out: Path, model: Path) -> tuple[object, ...]:
    (out / "head_ct.png").unlink()
    return ("--model", model)


def damaged_sidecar(scans: Path, out: Path, model: Path) -> tuple[object, ...]:
    (out / "head_ct.json").write_text('{"Output": {"Name": "head_ct', encoding="utf-8")
    return ("--model", model)


CHANGES = (
    other_model, other_configuration,
    other_window, with_force, with_mask, told_to, other_scan, damaged_output, missing_output, missing_picture, damaged_sidecar,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.replace("_", " "))
def test_what_changed_is_made_again(
    change: Callable[[Path, Path, Path], tuple[object, ...]], one: Path, one_finished: Path, model: Path, tmp_path: Path
) -> None:
    scans, out = shutil.copytree(one, tmp_path / "in"), shutil.copytree(one_finished, tmp_path / "out")
    options = change(scans, out, model)
    assert medsynth("mri2ct", scans, out, *options).exit_code == 0
    assert status(out) == {"head": "done"}
    fresh = tmp_path / "fresh"
    assert medsynth("mri2ct", scans, fresh, *options).exit_code == 0
    assert contents(out) == contents(fresh)
