"""Reads all CTs of a folder before training on their projections begins: `medsynth train --task sparse-ct --check`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from medsynth.sources.projected import Stack
from medsynth.verbs.packslices import pack, split
from medsynth.zoo import TrainTable


class Scans(NamedTuple):
    """What would be learned from. left_out: a line for each scan that would not be used."""

    training: Sequence[Stack]
    validation: Sequence[Stack]
    left_out: Sequence[str]


def check(data: Path, table: TrainTable, *, cache: Path, say: Callable[[str], None]) -> Scans:
    """Packs the CTs, as training would, and sets patients aside. Raises what packing and the split raise."""
    left_out: list[str] = []

    def told(line: str) -> None:
        if line.startswith("left out"):
            left_out.append(line)
        else:
            say(line)

    names = (*table.training, *table.validation)
    stacks, count = pack(data, cache, names=names, say=told), len(table.training)
    training, validation = (stacks[:count], stacks[count:]) if names else split(data, stacks, share=table.validation_share, seed=table.seed)
    return Scans(training, validation, left_out)


def render(scans: Scans) -> list[Any]:
    """For the terminal: each scan with its side, then those left out."""
    table = Table("scan", "side", "slices, rows, columns", "spacing, mm")
    table.title = f"{len(scans.training)} CTs to learn from, {len(scans.validation)} set aside, by patient"
    for side, stacks in (("training", scans.training), ("validation", scans.validation)):
        for stack in stacks:
            shape, spacing = (" x ".join(f"{value:g}" for value in values) for values in (stack.ct_hu.shape, stack.spacing_mm))
            table.add_row(stack.name, side, shape, spacing)
    return [table, *scans.left_out]
