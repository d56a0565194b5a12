"""Lists the bundled models and shows a card. Imports no torch."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from medsynth import zoo
from medsynth.core.errors import WeightsError


def listing() -> list[dict[str, str]]:
    """Name, version, task and summary of each bundled model."""
    return [{key: str(getattr(model.card, key)) for key in ("name", "version", "task", "summary")} for model in zoo.bundled()]


def render_listing(rows: list[dict[str, str]]) -> Table:
    """The listing as a table."""
    table = Table("model", "version", "task", "what it does")
    for row in rows:
        table.add_row(*row.values())
    return table


def details(reference: str) -> dict[str, Any]:
    """The whole card, its folder's revision, and the state of its weights."""
    model = zoo.find(reference)
    try:
        path = model.weights_file()
        state = f"whole, {path.stat().st_size / 1e6:.1f} MB, sha256 as in the card"
    except WeightsError as error:
        state = error.cause
    return {**model.card.model_dump(mode="json", exclude_none=True), "revision": model.revision, "weights_state": state}


def render_details(shown: dict[str, Any]) -> Group:
    """Key and value, tables indented under their names; metrics as a table of their own."""
    metrics = shown.pop("metrics", [])
    lines = Text("\n".join(_lines(shown)))
    table = Table("figure", "value", "on", "measured by", "date", title="metrics")
    for row in metrics:
        table.add_row(row["name"], f"{row['value']:g} {row['unit']}".strip(), row["data"], row["command"], row["date"])
    return Group(lines, table) if metrics else Group(lines)


def _lines(values: dict[str, Any], indent: str = "") -> list[str]:
    lines: list[str] = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return lines
