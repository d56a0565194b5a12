"""Looks at the machine: versions, devices, memory, caches, models, and what is missing."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import platformdirs
import psutil
import torch
from rich.table import Table

from medsynth import __version__, zoo
from medsynth.core.errors import MedsynthError
from medsynth.verbs.device import precision_for, resolve

LIBRARIES = ("torch", "monai", "lightning-fabric", "SimpleITK", "nibabel", "pydicom", "numpy", "scipy", "safetensors", "huggingface-hub")


def examine() -> dict[str, dict[str, str]]:
    """Findings by group; what needs attention begins with "missing" or "broken"."""
    device = torch.device(resolve("auto"))
    return {
        "versions": {"medsynth": __version__, "python": platform.python_version()} | {name: _version(name) for name in LIBRARIES},
        "machine": {
            "system": platform.platform(),
            "processors": f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads",
            "memory": f"{psutil.virtual_memory().available / 1e9:.1f} of {psutil.virtual_memory().total / 1e9:.1f} GB free",
        },
        "devices": {
            "auto": f"{device} in {str(precision_for(device)).removeprefix('torch.')}",
            "cuda": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
            "mps": "yes" if torch.backends.mps.is_available() else "none",
        },
        "caches": {"hub": _folder(_hub_cache()), "packed label maps": _folder(Path(platformdirs.user_cache_dir("medsynth")))}
        | _hub_settings(),
        "models": {model.card.name: _state(model) for model in zoo.bundled()}
        or {"bundled": "missing: the installation holds no models; reinstall"},
        "optional": {"dciodvfy": shutil.which("dciodvfy") or "not there; only the tests of DICOM output use it (Debian: dicom3tools)"},
    }


def render(findings: dict[str, dict[str, str]]) -> Table:
    """One table; rows that need attention stand out."""
    table = Table("", "", "", show_header=False, title="medsynth doctor")
    for group, rows in findings.items():
        for i, (name, value) in enumerate(rows.items()):
            style = "bold red" if value.startswith(("missing", "broken")) else ""
            table.add_row(group if i == 0 else "", name, value, style=style)
        table.add_section()
    return table


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing: pip install medsynth again"


def _state(model: zoo.Model) -> str:
    try:
        model.weights_file()
    except MedsynthError as error:
        return f"broken: {error.cause}"
    return f"{model.card.version}, weights whole"


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _hub_settings() -> dict[str, str]:
    return {name: os.environ[name] for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HUB_CACHE") if name in os.environ}


def _folder(path: Path) -> str:
    if not path.is_dir():
        return f"{path} (not made yet)"
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    return f"{path} ({size / 1e6:.0f} MB)"
