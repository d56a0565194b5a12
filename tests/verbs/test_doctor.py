"""`medsynth doctor`: what the machine has, and what is missing or broken, in one screen."""

import json
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from commandline import medsynth
from tiny_model import write_tiny_model

from medsynth import __version__, zoo
from medsynth.verbs import doctor


def attention(findings: dict[str, dict[str, str]]) -> dict[str, str]:
    """What is marked as needing attention."""
    return {name: value for rows in findings.values() for name, value in rows.items() if value.startswith(("missing", "broken"))}


def bundle(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """An installation whose only model is the tiny one."""
    monkeypatch.setattr(zoo, "bundled_folder", lambda: folder)
    return write_tiny_model(folder / "tiny")


def test_a_sound_installation_needs_no_attention(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle(monkeypatch, tmp_path)
    assert attention(doctor.examine()) == {}


def test_it_names_the_versions_the_machine_and_the_device() -> None:
    findings = doctor.examine()
    assert findings["versions"]["medsynth"] == __version__
    assert findings["versions"]["torch"] == metadata.version("torch")
    assert f"{psutil.virtual_memory().total / 1e9:.1f} GB" in findings["machine"]["memory"]
    assert findings["devices"]["auto"].split()[0] in ("cpu", "cuda:0", "mps")


def test_a_library_that_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_monai(name: str) -> str:
        if name == "monai":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_monai)
    assert "monai" in attention(doctor.examine())


def test_damaged_weights_are_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = bundle(monkeypatch, tmp_path) / "weights.safetensors"
    assert doctor.examine()["models"]["tiny"].endswith("weights whole")
    weights.write_bytes(b"half")
    assert "not the file that its card describes" in attention(doctor.examine())["tiny"]


def test_an_installation_without_models_is_incomplete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zoo, "bundled_folder", lambda: tmp_path)
    assert "reinstall" in attention(doctor.examine())["bundled"]


def test_settings_of_the_hub_are_shown_and_its_token_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = medsynth("doctor", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["caches"]["HF_HUB_OFFLINE"] == "1"
    assert "hf_secret" not in result.output


def test_the_table_shows_all_that_was_found() -> None:
    result = medsynth("doctor")
    assert result.exit_code == 0
    for word in ("torch", "memory", "cuda", "mri2ct-head"):
        assert word in result.stdout
