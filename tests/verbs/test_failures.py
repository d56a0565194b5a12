"""Scans that fail: the others go on, and the record, the list of failures, the output and the status say what happened."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import phantom
import pytest
from commandline import failures, medsynth, partial_files, record, status
from typer.testing import Result

from medsynth.core.errors import Exit
from medsynth.scans import nifti
from medsynth.tasks import mri2ct


def test_no_dicom_series_is_derived_from_another_format(one: Path, model: Path, tmp_path: Path) -> None:
    result = medsynth("mri2ct", one, tmp_path, "--model", model, "--format", "dicom")
    assert result.exit_code == Exit.INPUT
    assert failures(tmp_path) == {"head": "E-FORMAT"}


def test_a_bad_scan_does_not_stop_the_others(one: Path, model: Path, tmp_path: Path) -> None:
    scans, out = shutil.copytree(one, tmp_path / "in"), tmp_path / "out"
    (scans / "a broken.nii.gz").write_bytes(b"\x1f\x8b no gzip")
    phantom.write_nifti(scans / "z constant [b].nii", np.full(phantom.shape(), 7))
    result = medsynth("mri2ct", scans, out, "--model", model)
    assert result.exit_code == Exit.PARTIAL
    assert status(out) == {"a broken": "failed", "head": "done", "z constant [b]": "failed"}
    assert failures(out) == {"a broken": "E-READ", "z constant [b]": "E-MODALITY"}
    table = " ".join(result.stderr.split())
    assert "2 of 3 scans failed" in table
    assert "E-READ" in table
    assert "z constant [b]" in table
    assert partial_files(out) == []


def test_the_list_of_failures_goes_when_they_are_mended(one: Path, model: Path, tmp_path: Path) -> None:
    scans, out = shutil.copytree(one, tmp_path / "in"), tmp_path / "out"
    (scans / "second.nii.gz").write_bytes(b"")
    assert medsynth("mri2ct", scans, out, "--model", model).exit_code == Exit.PARTIAL
    phantom.write_nifti(scans / "second.nii.gz", phantom.mr_head(seed=1))
    assert medsynth("mri2ct", scans, out, "--model", model).exit_code == Exit.OK
    assert status(out) == {"head": "skipped", "second": "done"}
    assert not (out / "failures.csv").exists()


def test_when_all_scans_are_bad_the_status_is_that_of_bad_input(model: Path, tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        phantom.write_nifti(tmp_path / "in" / name, np.zeros(phantom.shape()))
    result = medsynth("mri2ct", tmp_path / "in", tmp_path / "out", "--model", model)
    assert result.exit_code == Exit.INPUT
    assert set(failures(tmp_path / "out").values()) == {"E-MODALITY"}


def test_what_was_forced_is_a_warning_everywhere(model: Path, tmp_path: Path) -> None:
    scan = phantom.write_nifti(tmp_path / "brain.nii.gz", phantom.stripped())
    assert medsynth("mri2ct", scan, tmp_path / "out", "--model", model).exit_code == Exit.INPUT
    result = medsynth("mri2ct", scan, tmp_path / "out", "--model", model, "--force")
    assert result.exit_code == 0
    sidecar = json.loads((tmp_path / "out" / "brain_ct.json").read_text(encoding="utf-8"))
    for text in (result.stderr, sidecar["Warnings"][0], record(tmp_path / "out")["cases"][0]["warnings"][0]):
        assert "skull was removed" in text


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


def run_one(one: Path, model: Path, tmp_path: Path) -> tuple[Result, dict[str, Any]]:
    """A run whose only scan fails: its result, and what the record says of the scan."""
    result = medsynth("mri2ct", one, tmp_path / "out", "--model", model)
    assert partial_files(tmp_path / "out") == []
    assert not list((tmp_path / "out").glob("head_ct*"))
    return result, record(tmp_path / "out")["cases"][0]


def test_a_full_disk_is_not_called_a_fault_of_the_program(one: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "write", failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/secret/place")))
    result, case = run_one(one, model, tmp_path)
    assert (result.exit_code, case["code"]) == (Exit.INPUT, "E-FILE")
    assert "No space left" in case["cause"]
    assert "secret" not in result.output


def test_memory_that_runs_out_while_reading_has_its_own_status(
    one: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "read", failing(MemoryError()))
    result, case = run_one(one, model, tmp_path)
    assert (result.exit_code, case["code"]) == (Exit.MEMORY, "E-MEM")


def test_a_fault_of_the_program_is_named_by_type_and_place_without_values(
    one: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mri2ct, "is_stripped", failing(ZeroDivisionError("Phantom^Name")))
    result, case = run_one(one, model, tmp_path)
    assert (result.exit_code, case["code"]) == (Exit.BUG, "E-BUG")
    assert case["cause"].startswith("ZeroDivisionError at ")
    assert "Phantom" not in result.output + json.dumps(case)
    assert "Traceback" not in result.output


def test_quiet_prints_failures_only(one: Path, model: Path, tmp_path: Path) -> None:
    scans = shutil.copytree(one, tmp_path / "in")
    assert medsynth("mri2ct", scans, tmp_path / "out", "--model", model, "--quiet").output == ""
    phantom.write_nifti(scans / "constant.nii", np.zeros(phantom.shape()))
    result = medsynth("mri2ct", scans, tmp_path / "out", "--model", model, "--quiet")
    assert result.stdout == ""
    assert "constant failed E-MODALITY" in result.stderr
