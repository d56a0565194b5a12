"""Training of one cell: the same optimiser, average of weights, batches and seconds for every method; goes on where it was killed."""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from medsynth.scans.files import replacing

from .method import CT_SCALE, Method, Moment
from .network import Image, Network
from .problem import Pairs, batch_of, drawn_batch
from .sizes import Size

WARM_STEPS = 50
FALL_FROM, FALL_TO = 0.7, 0.02  # the learning rate falls over the last part of the time, to this share
BETAS, WEIGHT_DECAY, CLIP_NORM = (0.9, 0.98), 0.01, 1.0
CHECKPOINT = "state.pt"
CHECKPOINT_SECONDS = 45.0
VALIDATIONS = 10
VALIDATION_BATCH = 8
Say = Callable[[str], None]


class Trained(NamedTuple):
    """network: the averaged weights. steps: how many there was time for. best_step: whose weights these are."""

    network: Network
    steps: int
    best_step: int


class _State:
    """What a checkpoint holds."""

    def __init__(self, size: Size, method: Method, seed: int, device: torch.device, base: Callable[[Image], Image] | None) -> None:
        torch.manual_seed(seed)
        self.network = Network(size, base).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=size.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY)
        self.method = method
        self.step, self.seconds = 0, 0.0
        self.best: tuple[float, int, dict[str, torch.Tensor]] | None = None  # MAE in HU, step, averaged weights

    def save(self, path: Path) -> None:
        parts: dict[str, Any] = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimizer")}
        parts |= {"method": self.method.state(), "step": self.step, "seconds": self.seconds, "best": self.best}
        with replacing(path) as part:
            torch.save(parts, part)

    def load(self, path: Path, device: torch.device) -> None:
        parts = torch.load(path, map_location=device, weights_only=True)
        for name in ("network", "average", "optimizer"):
            getattr(self, name).load_state_dict(parts[name])
        self.method.load(parts["method"])
        self.step, self.seconds, self.best = parts["step"], parts["seconds"], parts["best"]


def train(
    method: Method,
    pairs: dict[str, Pairs],
    size: Size,
    seed: int,
    *,
    seconds: float,
    folder: Path,
    device: torch.device,
    say: Say,
    start: dict[str, torch.Tensor] | None = None,
    base: Callable[[Image], Image] | None = None,
) -> Trained:
    """Trains for `seconds` (of CPU time on a CPU, so that other programs do not count; validation does not count either).

    start: weights to begin with. base: see `Network`.
    """
    state = _State(size, method, seed, device, base)
    if start is not None:
        state.network.load_state_dict(start)
        state.average.load_state_dict(start)
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        state.load(checkpoint, device)
        say(f"goes on at step {state.step}, {state.seconds:.0f} s")
    saved = state.seconds
    while state.seconds < seconds:
        before = state.seconds
        started = _now(device)
        figures = _step(state, pairs["training"], size, seed, share=state.seconds / seconds)
        state.seconds += _now(device) - started
        last = state.seconds >= seconds
        if last or math.floor(before / seconds * VALIDATIONS) < math.floor(state.seconds / seconds * VALIDATIONS):
            say(f"step {state.step} {state.seconds:.0f} s  {_in_line(figures)}")
            if method.keeps_best:
                _keep_if_best(state, pairs["validation"], device)
        if last or state.seconds - saved > CHECKPOINT_SECONDS:
            state.save(checkpoint)
            saved = state.seconds
    if state.best is None:
        return Trained(state.average, state.step, state.step)
    state.average.load_state_dict(state.best[2])
    return Trained(state.average, state.step, state.best[1])


def learning_rate(size: Size, step: int, share: float) -> float:
    """Warm-up by steps, constant, then a cosine over the last part of the time."""
    done = min(1.0, max(0.0, (share - FALL_FROM) / (1 - FALL_FROM)))
    return size.learning_rate * min(1.0, (step + 1) / WARM_STEPS) * (FALL_TO + (1 - FALL_TO) * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def synthesize(network: Network, method: Method, pairs: Pairs, evaluations: int, *, device: torch.device, seed: int = 0) -> np.ndarray:
    """The method's image for each pair, float32 [n x y z] in HU."""
    rng = torch.Generator(device=device).manual_seed(seed)
    images: list[np.ndarray] = []
    for start in range(0, len(pairs.condition), VALIDATION_BATCH):
        batch = batch_of(pairs, np.arange(start, min(start + VALIDATION_BATCH, len(pairs.condition))), device)
        image = method.sample(network, batch.condition, rng, evaluations)
        images.append(CT_SCALE.decode(image)[:, 0].clamp(-1024, 3000).cpu().numpy())
    return np.concatenate(images)


def _step(state: _State, pairs: Pairs, size: Size, seed: int, *, share: float) -> dict[str, float]:
    device = next(state.network.parameters()).device
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(size, state.step, share)
    rng = torch.Generator(device=device).manual_seed(seed * 10**9 + state.step)
    batch = drawn_batch(pairs, state.step, seed, size, device)
    figures = state.method.backward(state.network, batch, Moment(share, rng))
    nn.utils.clip_grad_norm_(state.network.parameters(), CLIP_NORM)
    state.optimizer.step()
    state.optimizer.zero_grad()
    decay = min(size.ema, (state.step + 1) / (state.step + 10))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.average.parameters()), list(state.network.parameters()), 1 - decay)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    state.step += 1
    return figures


def _keep_if_best(state: _State, pairs: Pairs, device: torch.device) -> None:
    """Keeps the averaged weights if their validation MAE is the lowest so far."""
    predicted = synthesize(state.average, state.method, pairs, state.method.evaluations[0], device=device)
    mae_hu = float(np.abs(predicted - pairs.textured)[pairs.inside].mean())
    if state.best is None or mae_hu < state.best[0]:
        state.best = (mae_hu, state.step, copy.deepcopy(state.average.state_dict()))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def _in_line(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in figures.items())
