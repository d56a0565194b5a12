"""Generators by name. A new one is a file here and a line in `GENERATORS`."""

from importlib import import_module
from typing import Any

from pydantic import ValidationError

from medsynth.core.errors import UsageError

GENERATORS = {
    "gdm": "medsynth.generators.gdm",
    "sparse-view": "medsynth.generators.sparse",
}
REMEDY = "docs/cards.md lists the settings"


def build(name: str, config: dict[str, Any]) -> Any:
    """The generator `name` with freshly initialised weights; `config` is checked by its own `Config`.

    Raises UsageError E-CARD if there is no such generator, or if it cannot be built with these settings.
    """
    if name not in GENERATORS:
        raise UsageError("E-CARD", f"there is no generator {name!r}", remedy=f"one of: {', '.join(GENERATORS)}")
    module = import_module(GENERATORS[name])
    try:
        return module.build(module.Config(**config))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["config", *(str(part) for part in first["loc"])])
        raise UsageError("E-CARD", f"{where}: {first['msg']}", remedy=REMEDY) from None
    except (ValueError, AssertionError, TypeError) as error:
        raise UsageError("E-CARD", f"{name} cannot be built with this [config]: {error}", remedy=REMEDY) from None
