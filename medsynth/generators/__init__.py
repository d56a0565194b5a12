"""Generators by name. A new one is a file here and a line in `GENERATORS`."""

from importlib import import_module
from typing import Any

GENERATORS = {
    "gdm": "medsynth.generators.gdm",
}


def build(name: str, config: dict[str, Any]) -> Any:
    """The generator `name` with freshly initialised weights; `config` is checked by its own `Config`."""
    module = import_module(GENERATORS[name])
    return module.build(module.Config(**config))
