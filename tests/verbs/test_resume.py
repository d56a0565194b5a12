"""A run that was interrupted or killed, at whatever moment, and run again ends with the bytes of one that was not."""

import json
import random
import signal
import sys
from pathlib import Path

import phantom
import pytest
from commandline import contents, medsynth, partial_files, start

from medsynth.core.errors import Exit

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")

LONG_S = 240.0  # more than any of these runs takes
# dataset_description.json; for each scan its CT, picture, sidecar, and run.json; run.json once more at the end.
NAMINGS = 1 + 2 * 4 + 1
OPTIONS = ("--format", "same", "--window", "bone")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "in"
    phantom.write_nifti(folder / "a.nii.gz")
    phantom.write_dicom(folder / "b")
    return folder


@pytest.fixture(scope="module")
def whole(scans: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("whole")
    assert medsynth("mri2ct", scans, out, "--model", model, *OPTIONS).exit_code == 0
    return contents(out)


def killed(scans: Path, out: Path, model: Path, *, die_at: int = 0, after_s: float = LONG_S) -> bool:
    """Starts a run and kills it: at a naming, or after a time. Returns whether it died of that."""
    log = out.parent / "log.txt"
    process = start("mri2ct", scans, out, "--model", model, *OPTIONS, log=log, die_at=die_at)
    process.join(after_s)
    process.kill()
    process.join(LONG_S)
    return process.exitcode == -signal.SIGKILL


def assert_ends_as_if_uninterrupted(scans: Path, out: Path, model: Path, whole: dict[str, bytes]) -> None:
    assert medsynth("mri2ct", scans, out, "--model", model, *OPTIONS).exit_code == 0
    assert partial_files(out) == []
    assert contents(out) == whole


@pytest.mark.parametrize("naming", range(1, NAMINGS + 1))
def test_killed_before_any_file_gets_its_name(naming: int, scans: Path, model: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Each file is written under a hidden name; this dies at every moment at which one is complete and not yet visible."""
    out = tmp_path / "out"
    assert killed(scans, out, model, die_at=naming)
    left = {name: data for name, data in contents(out).items() if not any(part.startswith(".") for part in Path(name).parts)}
    assert left.items() <= whole.items()  # what is visible is complete
    assert_ends_as_if_uninterrupted(scans, out, model, whole)


def test_killed_at_random_moments_again_and_again(scans: Path, model: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out, moments = tmp_path / "out", random.Random(0)
    died = [killed(scans, out, model, die_at=moments.randint(1, 10)) for _ in range(4)]
    assert any(died)
    assert_ends_as_if_uninterrupted(scans, out, model, whole)


@pytest.mark.parametrize("naming", [pytest.param(4, id="at a sidecar"), pytest.param(7, id="between two DICOM folders")])
def test_killed_while_an_earlier_result_is_replaced(naming: int, scans: Path, model: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    """With another window the CTs are the same and the pictures not: half of the files are from one run, half from the other."""
    out, other = tmp_path / "out", ("--format", "same", "--window", "brain")
    assert medsynth("mri2ct", scans, out, "--model", model, *other).exit_code == 0
    as_other = contents(out)
    assert killed(scans, out, model, die_at=naming)
    assert medsynth("mri2ct", scans, out, "--model", model, *other).exit_code == 0
    assert partial_files(out) == []
    assert contents(out) == as_other
    assert_ends_as_if_uninterrupted(scans, out, model, whole)


def test_interrupted_by_the_user(model: Path, tmp_path: Path) -> None:
    """Ctrl-C while the second scan is being written: no half file, status 130, and the record says so."""
    scans = tmp_path / "in"
    for name in "abcd":
        phantom.write_nifti(scans / f"{name}.nii.gz")
    out, log = tmp_path / "out", tmp_path / "log.txt"
    process = start("mri2ct", scans, out, "--model", model, *OPTIONS, log=log, die_at=7, by=signal.SIGINT)
    process.join(LONG_S)
    printed = log.read_text(encoding="utf-8")
    assert process.exitcode == Exit.INTERRUPTED
    assert "run the same command again" in printed
    assert "Traceback" not in printed
    assert partial_files(out) == []
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["state"] == "interrupted"
    assert not (out / "d_ct.json").exists()
    assert medsynth("mri2ct", scans, tmp_path / "fresh", "--model", model, *OPTIONS).exit_code == 0
    assert_ends_as_if_uninterrupted(scans, out, model, contents(tmp_path / "fresh"))


def test_what_a_killed_run_left_is_removed_and_nothing_else(scans: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / ".medsynth-part-a_ct.nii.gz").write_bytes(b"half")
    for name in (".medsynth-part-b_ct", ".medsynth-old-b_ct"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ct_0001.dcm").write_bytes(b"half")
    (tmp_path / ".keep").write_text("mine", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert medsynth("mri2ct", scans / "a.nii.gz", tmp_path, "--model", model).exit_code == 0
    assert partial_files(tmp_path) == [".keep"]
    assert (tmp_path / "notes.txt").exists()
