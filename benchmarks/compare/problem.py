"""Pairs of a problem, drawn once and kept, so that every method sees the same ones and no time goes into drawing."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from medsynth.core.quantity import CT
from medsynth.scans.files import replacing

from .locks import held
from .sizes import Size

SPLITS = ("training", "validation", "test")
OUTSIDE_WEIGHT = 0.25  # as in sources/labels.py


class Pairs(NamedTuple):
    """n pairs of patches.

    condition: float16 [n x y z], network units. textured, again, clean: int16 [n x y z], HU: the target, the same anatomy with another draw
    of texture, and without any. inside: bool, the body. place: int64 [n], `core.generator.place_of`. spreads: float32 [n 3], HU, of the
    target's texture: noise, trabeculae, soft tissue. kind: text [n].
    """

    condition: np.ndarray
    textured: np.ndarray
    again: np.ndarray
    clean: np.ndarray
    inside: np.ndarray
    place: np.ndarray
    spreads: np.ndarray
    kind: np.ndarray


class Batch(NamedTuple):
    """Pairs on the device; condition and target in network units; weight as in training by labels."""

    condition: Float[Tensor, "b 1 x y z"]
    target: Float[Tensor, "b 1 x y z"]
    weight: Float[Tensor, "b 1 x y z"]
    place: Int[Tensor, " b"]


# Draws `count` pairs of a split; `data` is the folder that the problem needs.
Draw = Callable[[Path, Path, Size, str, int], Pairs]


def load(draw: Draw, name: str, data: Path, work: Path, size: Size) -> dict[str, Pairs]:
    """The pairs of each split from the work folder; drawn and stored there first, by one process only."""
    folder = work / "pairs" / name
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"training": size.training, "validation": size.validation, "test": size.test}
    found: dict[str, Pairs] = {}
    with held(folder / "lock", wait=True):
        for split, count in counts.items():
            path = folder / f"{split}-{count}x{size.patch}.npz"
            if not path.exists():
                pairs = draw(data, work, size, split, count)
                with replacing(path) as part:
                    np.savez(part, **pairs._asdict())
            with np.load(path) as file:
                found[split] = Pairs(**{key: file[key] for key in Pairs._fields})
    return found


def batch_of(pairs: Pairs, indices: np.ndarray, device: torch.device) -> Batch:
    """These pairs on the device."""

    def volume(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x[indices].astype(np.float32))[:, None].to(device)

    return Batch(
        condition=volume(pairs.condition),
        target=CT().fit().encode(volume(pairs.textured)),
        weight=torch.where(volume(pairs.inside) > 0, 1.0, OUTSIDE_WEIGHT),
        place=torch.from_numpy(pairs.place[indices]).to(device),
    )


def drawn_batch(pairs: Pairs, step: int, seed: int, size: Size, device: torch.device) -> Batch:
    """The batch of a step: a function of seed and step, so that a run that was killed goes on alike."""
    rng = np.random.default_rng((seed, step))
    return batch_of(pairs, rng.choice(len(pairs.condition), size.batch, replace=False), device)
