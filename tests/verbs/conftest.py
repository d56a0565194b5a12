"""A tiny model, and one scan with its finished result, made once for all tests of the verbs."""

from pathlib import Path

import phantom
import pytest
from commandline import medsynth
from tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one scan, `head.nii.gz`."""
    scans = tmp_path_factory.mktemp("one") / "in"
    phantom.write_nifti(scans / "head.nii.gz")
    return scans


@pytest.fixture(scope="session")
def one_finished(one: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one_finished") / "out"
    assert medsynth("mri2ct", one, out, "--model", model).exit_code == 0
    return out
