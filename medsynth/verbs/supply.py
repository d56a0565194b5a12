"""What a card learns from: its sources of training and validation, checked and packed first where they are scans."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import platformdirs
from lightning_fabric import Fabric

from medsynth import tasks
from medsynth.core.errors import UsageError
from medsynth.sources import Source
from medsynth.sources.labels import LabelPairs
from medsynth.zoo import Card

Say = Callable[[str], None]


def sources(card: Card, data: Path, fabric: Fabric, say: Say) -> tuple[Source, Source, str]:
    """Training, validation, and what identifies them."""
    assert card.train is not None
    match card.train.source:
        case "labels":
            return _labels(card, data)
        case "pairs":
            return _pairs(card, data, fabric, say)
        case "projected":
            return _projected(card, data, fabric, say)


def _labels(card: Card, data: Path) -> tuple[Source, Source, str]:
    table = card.train
    assert table is not None
    if len(set(card.grid.spacing_mm)) > 1:
        raise UsageError("E-CARD", "the label source draws on one spacing for all axes", remedy="give spacing_mm three equal values")
    training, validation = (
        LabelPairs(
            data,
            names,
            cache=cache_folder("packed"),
            patch=card.grid.patch,
            spacing_mm=card.grid.spacing_mm[0],
            seed=table.seed,
            texture=table.texture,
        )
        for names in (table.training, table.validation)
    )
    return training, validation, training.digest


def _pairs(card: Card, data: Path, fabric: Fabric, say: Say) -> tuple[Source, Source, str]:
    """Checked and packed by the first process of each machine; the others wait and find everything in the cache."""
    from medsynth.scans.pairs import find_pairs, split  # these read scans, which training from a cache needs not
    from medsynth.sources.paired import PairedScans
    from medsynth.verbs.check import check, insist
    from medsynth.verbs.pack import pack, unpacked

    table = card.train
    assert table is not None
    task, spacing_mm, cache = tasks.get(card.task), card.grid.spacing_mm, cache_folder("pairs")
    cases = find_pairs(data, source=task.source.name, target=task.target.name)
    sides = split(cases, share=table.validation_share, seed=table.seed)
    if fabric.local_rank == 0 and unpacked(cases, spacing_mm, task, cache):
        share, seed = table.validation_share, table.seed
        report = check(data, task, spacing_mm, card.grid.patch, cache=cache, share=share, seed=seed, say=say)
        insist(report)
        for one in report.suspicions:
            say(f"suspicious: {one.case}: {one.cause}")
        pack(cases, spacing_mm, task, cache, say)
    fabric.barrier()
    files = [tuple(pack(side, spacing_mm, task, cache, _nothing)) for side in sides]
    say(f"{len(sides[0])} pairs to learn from, {len(sides[1])} set aside, by patient")
    training, validation = (PairedScans(paths, patch=card.grid.patch, spacing_mm=spacing_mm, seed=table.seed) for paths in files)
    names = "|".join(path.name for paths in files for path in paths)
    return training, validation, hashlib.sha256(names.encode()).hexdigest()


def _projected(card: Card, data: Path, fabric: Fabric, say: Say) -> tuple[Source, Source, str]:
    """CTs, packed by the first process of each machine, and their own sinograms."""
    from medsynth.sources.projected import ProjectedSlabs
    from medsynth.verbs.packslices import pack, split

    table = card.train
    assert table is not None
    names = (*table.training, *table.validation)
    if fabric.local_rank == 0:
        pack(data, cache_folder("slices"), names=names, say=say)
    fabric.barrier()
    stacks = pack(data, cache_folder("slices"), names=names, say=_nothing)
    count = len(table.training)
    sides = (stacks[:count], stacks[count:]) if names else split(data, stacks, share=table.validation_share, seed=table.seed)
    say(f"{len(sides[0])} scans to learn from, {len(sides[1])} set aside, by patient")
    size, _, slices = card.grid.patch
    training, validation = (
        ProjectedSlabs(side, views=table.views, slices=slices, batch=table.batch, seed=table.seed, size=size, window=table.window)
        for side in sides
    )
    return training, validation, hashlib.sha256("|".join(stack.digest for side in sides for stack in side).encode()).hexdigest()


def cache_folder(name: str) -> Path:
    """Where packed scans of a kind are kept."""
    return Path(platformdirs.user_cache_dir("medsynth")) / name


def _nothing(line: str) -> None:
    """For processes that are not the first."""
