"""Batches of a run by step: every process of a distributed run draws its own share, and a worker draws ahead."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medsynth.core.errors import UsageError
from medsynth.core.generator import Condition, Target
from medsynth.sources import Source
from medsynth.zoo import TrainTable

Batch = tuple[Condition, Target]
AHEAD = 12  # micro-batches that a worker has ready: a group of slabs with many views takes as long as several steps


class Span(NamedTuple):
    """The steps from `first` up to, not including, `last`."""

    first: int
    last: int


def batches(source: Source, table: TrainTable, fabric: Fabric, span: Span, workers: int) -> Iterator[tuple[int, list[Batch]]]:
    """(step, its micro-batches). A GPU draws its own pairs; for the CPU a worker draws ahead."""
    on_device = fabric.device.type == "cuda" or workers == 0
    dataset = _Pairs(source, fabric.device if on_device else torch.device("cpu"))
    own = own_share(table, fabric)
    loader = DataLoader(
        dataset,
        batch_size=own,
        sampler=numbers(table, span, own, fabric.global_rank),
        collate_fn=_joined,
        num_workers=0 if on_device else workers,
        prefetch_factor=None if on_device else AHEAD,
    )
    drawn = iter(loader)
    for step in range(*span):
        yield step, [_moved(next(drawn), fabric.device) for _ in range(table.accumulate)]


def own_share(table: TrainTable, fabric: Fabric) -> int:
    """Pairs of a micro-batch on this process. Raises UsageError E-CARD if the batch does not divide among the processes."""
    if table.batch % fabric.world_size:
        raise UsageError(
            "E-CARD",
            f"a batch of {table.batch} cannot be shared out evenly among {fabric.world_size} processes",
            remedy=f"set batch in [train] to a multiple of {fabric.world_size}",
        )
    return table.batch // fabric.world_size


def numbers(table: TrainTable, span: Span, own: int, rank: int) -> list[int]:
    """The pairs of a process, by number: all processes together draw what one alone would."""
    micro = range(span.first * table.accumulate, span.last * table.accumulate)
    return [m * table.batch + rank * own + i for m in micro for i in range(own)]


class _Pairs(Dataset[Batch]):
    """Pairs by number for a loader. Workers always draw on the CPU."""

    def __init__(self, source: Source, device: torch.device) -> None:
        self.source = source
        self.device = device

    def __getitem__(self, index: int) -> Batch:
        return self.source.training_pair(index, self.device)


def _joined(pairs: list[Batch]) -> Batch:
    conditions, targets = zip(*pairs, strict=True)
    return Condition(**_cat(conditions)), Target(**_cat(targets))


def _cat(records: tuple[Any, ...]) -> dict[str, Any]:
    """Tensors one after the other; what is none, the pairs of a batch have in common."""
    return {
        k: torch.cat([getattr(r, k) for r in records]) if isinstance(v, Tensor) else v for k, v in vars(records[0]).items() if v is not None
    }


def _moved(batch: Batch, device: torch.device) -> Batch:
    condition, target = batch
    return condition.to(device), target.to(device)
