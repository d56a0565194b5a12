"""Trains a generator by its card: one loop for every task, on one device or, under torchrun, on several (Lightning Fabric).

A step draws its pairs from the step's number, so a run that was killed goes on from its last checkpoint to the same weights as one that
was not. The folder of the run holds `checkpoint.pt`, `log.csv`, TensorBoard events, sample pictures and `model/`, which `--model` takes at
any time.
"""

import copy
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medsynth.core.quantity import CT
from medsynth.generators import build
from medsynth.nets.layout import channels_last
from medsynth.objectives.drifting import Drifting
from medsynth.sources import Source
from medsynth.verbs import checkpoint, picture
from medsynth.verbs.device import resolve
from medsynth.verbs.loader import Batch, Span, batches
from medsynth.verbs.step import Answering, backward, insist_finite, trusted
from medsynth.verbs.trainlog import TrainLog
from medsynth.verbs.validation import draw_sample, score, validate
from medsynth.zoo import Card, TrainTable

Say = Callable[[str], None]
CALIBRATION = 10**8  # numbers of the pairs that set the feature bank's units: far from those of training


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is made of, beside its card.

    fabric: launched (`launch`). training, validation: sources. data: what identifies them, for the checkpoint. start: weights to begin
    with. encoder: for drifting; frozen.
    """

    fabric: Fabric
    training: Source
    validation: Source
    data: str = ""
    start: dict[str, Tensor] | None = None
    encoder: nn.Module | None = None
    max_steps: int | None = None
    workers: int = 1
    say: Say = print


def train(card: Card, run: Run, out: Path) -> Path:
    """Trains until the card's last step (or `max_steps`), from the last checkpoint in `out` if there is one.

    Returns the folder of the trained model. Raises UsageError E-CARD if `out` holds another card's run, E-CHECKPOINT, E-DIVERGED, E-DISK.
    """
    table = card.train
    assert table is not None
    fabric = run.fabric
    print_ = checkpoint.fingerprint(card, run.data)
    stored = checkpoint.load(out, print_)
    last = min(table.steps, run.max_steps or table.steps)
    if stored is not None and (stored["step"] >= last or stored["stopped"]):
        return out / "model"
    if table.drift is not None and last <= table.drift.warmup_steps:
        run.say(f"this run ends before step {table.drift.warmup_steps + 1}, where drifting begins")
    torch.manual_seed(table.seed)
    answering = Answering(channels_last(build(card.generator, card.config)))
    if run.start is not None:
        answering.generator.load_state_dict(run.start, strict=True)
    ema = copy.deepcopy(answering).requires_grad_(False).eval().to(fabric.device)
    optimizer = torch.optim.AdamW(answering.parameters(), lr=table.learning_rate, betas=table.betas, weight_decay=table.weight_decay)
    model, optimizer = fabric.setup(answering, optimizer)
    state = _State(answering, ema, optimizer, _drifting(fabric, table, run, stored))
    first = state.load(stored)
    keeper = _Keeper(card, out, fabric, print_, best=math.inf if stored is None else stored["best"], stale=stored["stale"] if stored else 0)
    with closing(TrainLog(out, first_step=first, total=last, say=run.say, enabled=fabric.is_global_zero)) as log:
        if first == 0 and run.start is not None:
            log.validation(0, _validated(fabric, ema.generator, run, table))
        _steps(card, run, out, Span(first, last), model=model, state=state, keeper=keeper, log=log)
    if state.drifting is not None:
        run.say(state.drifting.describe())
    return out / "model"


def _steps(card: Card, run: Run, out: Path, span: Span, *, model: Any, state: "_State", keeper: "_Keeper", log: TrainLog) -> None:
    """The loop: update, average, log, and now and then draw, validate and keep."""
    table, fabric, ema = card.train, run.fabric, state.ema
    assert table is not None
    for step, micro in batches(run.training, table, fabric, span, run.workers):
        started = time.perf_counter()
        figures = _update(fabric, model, state.optimizer, micro, state.drifting, table, step)
        checkpoint.average(ema, state.model, min(table.ema, (step + 1) / (step + 10)))
        log.step(step + 1, figures, time.perf_counter() - started)
        if table.pictures_every and (step + 1) % table.pictures_every == 0 and fabric.is_global_zero:
            drawn = draw_sample(fabric, ema.generator, run.validation, card.grid.spacing_mm, step + 1)
            (out / "samples").mkdir(exist_ok=True)
            picture.save(drawn, out / "samples" / f"step_{step + 1:06d}.png")
        if (step + 1) % table.validate_every == 0 or step + 1 == span.last:
            validation = _validated(fabric, ema.generator, run, table)
            log.validation(step + 1, validation)
            if keeper.keep(step + 1, validation, state):
                run.say(f"stopped at step {step + 1}: no better for {table.patience} validations")
                break


def launch(device: str, table: TrainTable) -> Fabric:
    """Fabric on one device, or on those of the processes that torchrun started."""
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)  # it announces the precision, which the card says
    chosen = torch.device(resolve(device))
    local, world = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if world > 1:
        fabric = Fabric(accelerator=chosen.type, devices=local, num_nodes=world // local, strategy="ddp", precision=table.precision)
    else:
        fabric = Fabric(accelerator=chosen.type, devices=[chosen.index or 0] if chosen.type == "cuda" else 1, precision=table.precision)
    fabric.launch()
    return fabric


def learning_rate(table: TrainTable, step: int) -> float:
    """Warm-up, constant, then a cosine to a fiftieth over the last `decay_share` of the steps."""
    rising = min(1.0, (step + 1) / max(1, table.warmup_steps))
    decay_steps = table.steps * table.decay_share
    done = (step - (table.steps - decay_steps)) / max(1.0, decay_steps)
    falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))
    return table.learning_rate * rising * falling


@dataclass
class _State:
    """What changes from step to step, and goes through a checkpoint."""

    model: Answering
    ema: Answering
    optimizer: Any
    drifting: Drifting | None

    def load(self, stored: dict[str, Any] | None) -> int:
        """From a checkpoint; the step to go on from."""
        if stored is None:
            return 0
        for part, value in (("model", self.model), ("ema", self.ema), ("optimizer", self.optimizer)):
            value.load_state_dict(stored[part])
        return int(stored["step"])

    def parts(self) -> dict[str, Any]:
        """For a checkpoint."""
        parts: dict[str, Any] = {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "optimizer": self.optimizer.state_dict()}
        return parts | ({} if self.drifting is None else {"drifting": self.drifting.state()})


class _Keeper:
    """Writes checkpoints, keeps the best or the last model, and says when to stop early."""

    def __init__(self, card: Card, out: Path, fabric: Fabric, print_: str, *, best: float, stale: int) -> None:
        assert card.train is not None
        self._card, self._table, self._out, self._fabric, self._print = card, card.train, out, fabric, print_
        self._best, self._stale = best, stale

    def keep(self, step: int, validation: dict[str, float], state: _State) -> bool:
        """Keeps what this step left; true if the run is over before its last step. Raises UsageError E-DIVERGED, and then keeps nothing."""
        insist_finite(validation)
        better = score(validation) < self._best
        self._best = min(self._best, score(validation))
        self._stale = 0 if better else self._stale + 1
        stopped = 0 < self._table.patience <= self._stale
        if self._fabric.is_global_zero:
            if better or not self._table.keeps_best:
                checkpoint.write_model(self._card, state.ema.generator, self._out / "model")
            marks = {"step": step, "card": self._print, "best": self._best, "stale": self._stale, "stopped": stopped}
            checkpoint.save(self._out, state.parts() | marks)  # last: with it the step counts as done
        return stopped


def _drifting(fabric: Fabric, table: TrainTable, run: Run, stored: dict[str, Any] | None) -> Drifting | None:
    """The realism objective with its units: from the checkpoint, or from real features."""
    if table.drift is None:
        return None
    assert run.encoder is not None
    encoder = run.encoder.to(fabric.device)

    def in_precision(ct_hu: Tensor) -> Any:
        with fabric.autocast():
            return encoder(ct_hu)

    drifting = Drifting(in_precision, table.drift, batch=table.batch)
    if stored is not None:
        drifting.load(checkpoint.on(fabric.device, stored["drifting"]))
    else:
        pairs = (run.training.training_pair(CALIBRATION + i, fabric.device) for i in range(table.drift.calibration))
        targets = ((target.image[trusted(drifting, target)]).to(fabric.device) for _, target in pairs)
        drifting.calibrate([CT().fit().decode(image) for image in targets])
    return drifting


def _update(
    fabric: Fabric, model: Any, optimizer: Any, micro: list[Batch], drifting: Drifting | None, table: TrainTable, step: int
) -> dict[str, float]:
    """One update of the weights from its micro-batches; the figures' means over them and over all processes."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(table, step)
    rho = 0.0 if table.drift is None else table.drift.rho_at(step)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(micro):
        with fabric.no_backward_sync(model, enabled=number + 1 < len(micro)):
            figures = backward(fabric, model, batch, drifting, rho, share=1 / len(micro))
        for name, value in figures.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value / len(micro)
    norm = fabric.clip_gradients(model, optimizer, max_norm=table.clip_norm, error_if_nonfinite=False)
    insist_finite({"grad_norm": 0.0 if norm is None else norm.item()})
    optimizer.step()
    optimizer.zero_grad()
    means: Any = fabric.all_reduce(torch.stack([value.float() for value in sums.values()]), reduce_op="mean")
    of_step = {"grad_norm": 0.0 if norm is None else norm.item(), "lr": learning_rate(table, step)}
    return dict(zip(sums, means.tolist(), strict=True)) | of_step | ({"rho": rho} if drifting is not None else {})


def _validated(fabric: Fabric, generator: Any, run: Run, table: TrainTable) -> dict[str, float]:
    """The first process measures; all get its figures, so that they stop together."""
    figures = validate(fabric, generator, run.validation, table.validation_pairs) if fabric.is_global_zero else {}
    return fabric.broadcast(figures)
