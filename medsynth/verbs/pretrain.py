"""Pretrains an encoder by its card, as a masked autoencoder on CTs without labels, on one device (Lightning Fabric).

Crops and masks follow from the step's number, so a run that was killed goes on from its last checkpoint to the same weights as one that was
not. The folder of the run holds `checkpoint.pt`, `log.csv`, TensorBoard events and `model/`: the encoder alone, without its decoder.
"""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import platformdirs
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from pydantic import ValidationError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medsynth.core.errors import ScanError, UsageError
from medsynth.nets.encoder import EncoderConfig, MaskedAutoencoder, draw_mask, masked_mse
from medsynth.nets.frozen import OURS, windowed
from medsynth.sources.unlabelled import Crops, Item
from medsynth.verbs import checkpoint
from medsynth.verbs.device import resolve
from medsynth.verbs.encoders import write_encoder
from medsynth.verbs.step import insist_finite
from medsynth.verbs.trainlog import TrainLog
from medsynth.zoo import CARD, EncoderCard, PretrainTable, read_encoder_card

ONE_IN = 10  # scans of which one is set aside where the card names none that is there
Say = Callable[[str], None]


def recipe(card_path: Path) -> tuple[EncoderCard, PretrainTable]:
    """The card at `card_path` (or in that folder) and its [pretrain] table. Raises UsageError E-CARD if pretraining cannot follow it."""
    card = read_encoder_card(card_path / CARD if card_path.is_dir() else card_path)
    if card.pretrain is None:
        raise UsageError("E-CARD", f"the card of {card.name} has no [pretrain] table", remedy="add one: docs/encoders.md lists its keys")
    if card.network != OURS:
        raise UsageError("E-CARD", f"{card.network} cannot be pretrained here", remedy=f'give a card with network = "{OURS}"')
    _config(card)
    return card, card.pretrain


def cache_folder() -> Path:
    """Where packed scans are kept."""
    return Path(platformdirs.user_cache_dir("medsynth")) / "unlabelled"


def pretrain(
    card_path: Path,
    items: Sequence[Item],
    out: Path,
    *,
    device: str = "auto",
    max_steps: int | None = None,
    workers: int = 1,
    say: Say = print,
) -> Path:
    """Trains until the card's last step (or `max_steps`), from the last checkpoint in `out` if there is one.

    items: what `verbs.packct.pack` made of the data. Returns the encoder's folder. Raises UsageError E-CARD as `recipe` does, and if `out`
    holds a run of another card or other data; E-CHECKPOINT, E-DIVERGED, E-DISK; ScanError E-EMPTY if there is nothing to set aside.
    """
    card, table = recipe(card_path)
    training, validation = split(items, table.validation, say)
    print_ = _fingerprint(card, table, training)
    stored = checkpoint.load(out, print_)
    fabric = _fabric(device, table)
    torch.manual_seed(table.seed)
    network = _channels_last(MaskedAutoencoder(_config(card)))
    ema = copy.deepcopy(network).requires_grad_(False).eval().to(fabric.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=table.learning_rate, betas=table.betas, weight_decay=table.weight_decay)
    model, optimizer = fabric.setup(network, optimizer)
    model.mark_forward_method("loss")
    parts: dict[str, Any] = {"model": network, "ema": ema, "optimizer": optimizer}
    first, last = 0, min(table.steps, max_steps or table.steps)
    if stored is not None:
        first = int(stored["step"])
        for name, part in parts.items():
            part.load_state_dict(stored[name])
    held_out = _validation_set(_crops(validation, table), table)
    with closing(TrainLog(out, first_step=first, total=last, say=say)) as log:
        for step, ct_hu in _batches(_crops(training, table), table, range(first, last), workers):
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(table, step)
            loss = model.loss(windowed(ct_hu.to(fabric.device), card.windows_hu, card.span), _mask_rng(table.seed, step))
            fabric.backward(loss)
            norm = fabric.clip_gradients(model, optimizer, max_norm=table.clip_norm, error_if_nonfinite=False)
            figures = {"masked_mse": loss.item(), "grad_norm": 0.0 if norm is None else norm.item(), "lr": learning_rate(table, step)}
            insist_finite(figures)
            optimizer.step()
            optimizer.zero_grad()
            checkpoint.average(ema, network, min(table.ema, (step + 1) / (step + 10)))
            log.step(step + 1, figures, time.perf_counter() - started)
            if (step + 1) % table.validate_every == 0 or step + 1 == last:
                log.validation(step + 1, validate(fabric, ema, held_out, card))
                write_encoder(card, ema.encoder, out / "model")
                marks = {"step": step + 1, "card": print_}  # last of what a validation writes: with it the step counts as done
                checkpoint.save(out, {name: part.state_dict() for name, part in parts.items()} | marks)
    return out / "model"


def split(items: Sequence[Item], patterns: Sequence[str], say: Say) -> tuple[list[Item], list[Item]]:
    """Scans to learn from, and those that a pattern sets aside; where none fits, every tenth is set aside, and a line says so.

    Raises ScanError E-EMPTY if nothing is left on one of the sides.
    """
    aside = [item for item in items if any(fnmatchcase(item.name, pattern) for pattern in patterns)]
    if not aside:
        aside = [item for number, item in enumerate(items, 1) if number % ONE_IN == 0] or list(items[-1:])
        say(f"set aside for validation: {', '.join(item.name for item in aside)}")
    training = [item for item in items if item not in aside]
    if not training:
        cause = f"{len(items)} scan(s), and all of them are set aside for validation"
        raise ScanError("E-EMPTY", cause, remedy="give more scans: one at least must be left to learn from")
    say(f"{len(training)} scans to learn from, {len(aside)} set aside")
    return training, aside


def learning_rate(table: PretrainTable, step: int) -> float:
    """Warm-up, then a cosine to a fiftieth."""
    rising = min(1.0, (step + 1) / max(1, table.warmup_steps))
    falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / table.steps))
    return table.learning_rate * rising * falling


Held = list[tuple[str, Float[Tensor, "1 1 x y z"]]]


@torch.no_grad()
def validate(fabric: Fabric, network: MaskedAutoencoder, held_out: Held, card: EncoderCard) -> dict[str, float]:
    """Masked mean squared error by kind of scan, and that of predicting each channel's mean over what is not hidden."""
    rows: dict[str, list[tuple[float, float]]] = {}
    for number, (kind, ct_hu) in enumerate(held_out):
        x = windowed(ct_hu.to(fabric.device), card.windows_hu, card.span)
        mask = draw_mask(x, _mask_rng(0, number))
        with fabric.autocast():
            filled = network.reconstruct(x, mask)
        mean = (x * ~mask).sum((2, 3, 4), keepdim=True) / (~mask).sum()
        rows.setdefault(kind, []).append((masked_mse(filled, x, mask).item(), masked_mse(mean.expand_as(x), x, mask).item()))
    return {
        f"{kind}_{name}": sum(row[i] for row in values) / len(values)
        for kind, values in rows.items()
        for i, name in enumerate(("masked_mse", "mean_mse"))
    }


class _Steps(Dataset[Tensor]):
    """Crops by number for a loader."""

    def __init__(self, source: Crops) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Float[Tensor, "1 x y z"]:
        return self.source.training_crop(index)


def _fabric(device: str, table: PretrainTable) -> Fabric:
    chosen = torch.device(resolve(device))
    devices: list[int] | int = [chosen.index or 0] if chosen.type == "cuda" else 1
    fabric = Fabric(accelerator=chosen.type, devices=devices, precision=table.precision)
    fabric.launch()
    return fabric


def _channels_last(network: MaskedAutoencoder) -> MaskedAutoencoder:
    return network.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]


def _config(card: EncoderCard) -> EncoderConfig:
    """The network's settings. Raises UsageError E-CARD if they do not suit the card's windows and patch."""
    try:
        config = EncoderConfig(**card.config)
    except ValidationError as error:
        raise UsageError("E-CARD", f"config: {error.errors()[0]['msg']}", remedy="docs/encoders.md lists the settings") from None
    if config.in_channels != len(card.windows_hu):
        raise UsageError("E-CARD", f"{config.in_channels} in_channels for {len(card.windows_hu)} windows", remedy="make them equal")
    stride = 2 ** len(config.channels)
    if card.pretrain is not None and card.pretrain.patch % stride:
        raise UsageError(
            "E-CARD", f"a patch of {card.pretrain.patch} voxels cannot be halved to the last stage", remedy=f"use n x {stride}"
        )
    return config


def _crops(items: Sequence[Item], table: PretrainTable) -> Crops:
    return Crops(items, cache=cache_folder(), side=table.patch, spacing_mm=table.spacing_mm, seed=table.seed, head_share=table.head_share)


def _validation_set(source: Crops, table: PretrainTable) -> Held:
    """Drawn once: the scans set aside need not stay in memory."""
    return [(kind, crop[None]) for crop, kind in (source.validation_crop(index) for index in range(table.validation_crops))]


def _batches(source: Crops, table: PretrainTable, steps: range, workers: int) -> Iterator[tuple[int, Float[Tensor, "b 1 x y z"]]]:
    """(step, HU); a worker draws ahead."""
    order = range(steps.start * table.batch, steps.stop * table.batch)
    loader: DataLoader[Tensor] = DataLoader(_Steps(source), batch_size=table.batch, sampler=order, num_workers=workers)
    yield from enumerate(loader, start=steps.start)


def _mask_rng(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed << 32) + number)


def _fingerprint(card: EncoderCard, table: PretrainTable, training: Sequence[Item]) -> str:
    """What a checkpoint must share to be continued: network, data and how it is drawn, not the number of steps."""
    parts = card.model_dump_json(include={"network", "config", "windows_hu", "span"})
    parts += table.model_dump_json(include={"batch", "seed", "patch", "spacing_mm", "head_share"})
    return hashlib.sha256("|".join([parts, *(item.path.name for item in training)]).encode()).hexdigest()
