"""Trains a generator by its card: one loop for every task, on one device (Lightning Fabric).

A step draws its pair from the step's number, so a run that was killed goes on from its last checkpoint to the same weights as one that
was not. The folder of the run holds `checkpoint.pt`, `log.csv`, TensorBoard events and `model/`, which `--model` takes at any time.
"""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import platformdirs
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medsynth.core.errors import UsageError
from medsynth.core.generator import Condition, Generator, Target
from medsynth.core.quantity import CT
from medsynth.generators import build
from medsynth.sources.labels import LabelPairs
from medsynth.verbs.device import resolve
from medsynth.verbs.trainlog import TrainLog
from medsynth.zoo import CARD, WEIGHTS, Card, TrainTable, read_card

CHECKPOINT = "checkpoint.pt"
Say = Callable[[str], None]


def train(
    card_path: Path, data: Path, out: Path, *, device: str = "auto", max_steps: int | None = None, workers: int = 1, say: Say = print
) -> Path:
    """Trains until the card's last step (or `max_steps`), from the last checkpoint in `out` if there is one.

    Returns the folder of the trained model. Raises UsageError E-CARD if the card has no [train] table or `out` holds another card's run.
    """
    card = read_card(card_path / CARD if card_path.is_dir() else card_path)
    if card.train is None:
        raise UsageError("E-CARD", f"the card of {card.name} has no [train] table", remedy="add one: docs/cards.md lists its keys")
    if len(set(card.grid.spacing_mm)) > 1:
        raise UsageError("E-CARD", "the label source draws on one spacing for all axes", remedy="give spacing_mm three equal values")
    table = card.train
    fabric = _fabric(device, table)
    torch.manual_seed(table.seed)
    objective = _Objective(build(card.generator, card.config).to(memory_format=torch.channels_last_3d))
    ema = _copy(objective)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=table.learning_rate, betas=table.betas, weight_decay=table.weight_decay)
    model, optimizer = fabric.setup(objective, optimizer)
    ema.to(fabric.device)
    out.mkdir(parents=True, exist_ok=True)
    state = {"model": objective, "ema": ema, "optimizer": optimizer, "step": 0, "card": _fingerprint(card)}
    first = _resume(fabric, out, state, card)
    pairs = _source(card, data, table.training)
    held_out = _source(card, data, table.validation)
    last = min(table.steps, max_steps or table.steps)
    log = TrainLog(out, first_step=first, total=last, say=say)
    for step, (condition, target) in _batches(pairs, table, fabric, first, last, workers):
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(table, step)
        losses = model(vars(condition), vars(target))
        fabric.backward(torch.stack(list(losses.values())).sum())
        norm = fabric.clip_gradients(model, optimizer, max_norm=table.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        _average(ema, objective, min(table.ema, (step + 1) / (step + 10)))
        log.step(
            step + 1,
            {k: v.item() for k, v in losses.items()}
            | {"grad_norm": 0.0 if norm is None else norm.item(), "lr": learning_rate(table, step)},
            time.perf_counter() - started,
        )
        if (step + 1) % table.validate_every == 0 or step + 1 == last:
            log.validation(step + 1, validate(fabric, ema.generator, held_out, table.validation_pairs))
            _save(fabric, out, state | {"step": step + 1}, card)
    log.close()
    return out / "model"


def learning_rate(table: TrainTable, step: int) -> float:
    """Warm-up, constant, then a cosine to a fiftieth over the last `decay_share` of the steps."""
    rising = min(1.0, (step + 1) / max(1, table.warmup_steps))
    decay_steps = table.steps * table.decay_share
    done = (step - (table.steps - decay_steps)) / max(1.0, decay_steps)
    falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))
    return table.learning_rate * rising * falling


@torch.no_grad()
def validate(fabric: Fabric, generator: Generator, source: LabelPairs, count: int) -> dict[str, float]:
    """MAE in HU inside the head and Dice of bone (> 250 HU), by kind of contrast, over `count` repeatable pairs."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for index in range(count):
        condition, target, kind = source.validation_pair(index, fabric.device)
        with fabric.autocast():
            predicted = generator.sample(condition)
        rows.setdefault(kind, []).append(_scores(predicted.float(), target))
    return {
        f"{kind}_{name}": sum(row[i] for row in values) / len(values)
        for kind, values in rows.items()
        for i, name in enumerate(("mae_hu", "bone_dice"))
    }


class _Objective(nn.Module):
    """The generator's losses as a forward call on plain dictionaries: Fabric's wrappers convert what they can see into."""

    generator: Any

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, condition: dict[str, Any], target: dict[str, Any]) -> dict[str, Tensor]:
        return self.generator.losses(Condition(**condition), Target(**target))


class _Steps(Dataset[tuple[Condition, Target]]):
    """Pairs by number for a loader. Workers always draw on the CPU."""

    def __init__(self, source: LabelPairs, device: torch.device) -> None:
        self.source = source
        self.device = device

    def __getitem__(self, index: int) -> tuple[Condition, Target]:
        return self.source.training_pair(index, self.device)


def _fabric(device: str, table: TrainTable) -> Fabric:
    chosen = torch.device(resolve(device))
    devices: list[int] | int = [chosen.index or 0] if chosen.type == "cuda" else 1
    fabric = Fabric(accelerator=chosen.type, devices=devices, precision=table.precision)
    fabric.launch()
    return fabric


def _source(card: Card, data: Path, names: tuple[str, ...]) -> LabelPairs:
    assert card.train is not None
    cache = Path(platformdirs.user_cache_dir("medsynth")) / "packed"
    return LabelPairs(data, names, cache=cache, patch=card.grid.patch, spacing_mm=card.grid.spacing_mm[0], seed=card.train.seed)


def _batches(
    source: LabelPairs, table: TrainTable, fabric: Fabric, first: int, last: int, workers: int
) -> Iterator[tuple[int, tuple[Condition, Target]]]:
    """(step, batch) from `first`. A GPU draws its own pairs; for the CPU a worker draws ahead."""
    on_device = fabric.device.type == "cuda" or workers == 0
    dataset = _Steps(source, fabric.device if on_device else torch.device("cpu"))
    order = range(first * table.batch, last * table.batch)
    loader = DataLoader(dataset, batch_size=table.batch, sampler=order, collate_fn=_joined, num_workers=0 if on_device else workers)
    for step, (condition, target) in enumerate(loader, start=first):
        yield step, (condition.to(fabric.device), target.to(fabric.device))


def _joined(pairs: list[tuple[Condition, Target]]) -> tuple[Condition, Target]:
    conditions, targets = zip(*pairs, strict=True)
    return Condition(**_cat(conditions)), Target(**_cat(targets))


def _cat(records: tuple[Any, ...]) -> dict[str, Tensor]:
    return {k: torch.cat([getattr(r, k) for r in records]) for k, v in vars(records[0]).items() if v is not None}


def _copy(objective: _Objective) -> _Objective:
    return copy.deepcopy(objective).requires_grad_(False).eval()


@torch.no_grad()
def _average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _scores(predicted: Tensor, target: Target) -> tuple[float, float]:
    head = target.weight == 1
    got, wanted = (CT().fit().decode(x)[head] for x in (predicted, target.image))
    bone_got, bone_wanted = got > 250, wanted > 250
    dice = 2 * (bone_got & bone_wanted).sum() / (bone_got.sum() + bone_wanted.sum()).clamp(min=1)
    return (got - wanted).abs().mean().item(), dice.item()


def _fingerprint(card: Card) -> str:
    """What a checkpoint must share with the card to be continued: the network and its data, not the number of steps."""
    parts = card.model_dump_json(include={"generator", "config", "grid"}) + (
        card.train.model_dump_json(include={"source", "training", "batch", "seed"}) if card.train else ""
    )
    return hashlib.sha256(parts.encode()).hexdigest()


def _resume(fabric: Fabric, out: Path, state: dict[str, Any], card: Card) -> int:
    path = out / CHECKPOINT
    if not path.exists():
        return 0
    stored = torch.load(path, map_location=fabric.device, weights_only=True)
    if stored["card"] != _fingerprint(card):
        raise UsageError("E-CARD", f"{out.name} holds a run of another card", remedy="give another --out, or delete that folder")
    for part in ("model", "ema", "optimizer"):
        state[part].load_state_dict(stored[part])
    return int(stored["step"])


def _save(fabric: Fabric, out: Path, state: dict[str, Any], card: Card) -> None:
    """Checkpoint and model folder, each under a temporary name first."""
    if not fabric.is_global_zero:
        return
    parts = {k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in state.items()}
    write_model(card, state["ema"].generator, out / "model")
    partial = out / (CHECKPOINT + ".part")
    torch.save(parts, partial)
    partial.replace(out / CHECKPOINT)  # last: with it the step counts as done


def write_model(card: Card, generator: nn.Module, folder: Path) -> None:
    """Weights in half precision and the card that describes them."""
    import tomlkit
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    half = {k: v.detach().half().contiguous().cpu() for k, v in generator.state_dict().items()}
    partial = folder / (WEIGHTS + ".part")
    save_file(half, partial)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    text = tomlkit.dumps(
        card.model_dump(mode="json", exclude_none=True, exclude={"metrics"}) | {"weights": {"file": WEIGHTS, "sha256": digest}}
    )
    card_partial = folder / (CARD + ".part")
    card_partial.write_text(text, encoding="utf-8")
    partial.replace(folder / WEIGHTS)
    card_partial.replace(folder / CARD)
