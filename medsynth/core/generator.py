"""The contract between tasks, training and networks: what a generator is given, what it learns from, what it returns.

Axes are [b c x y z] throughout, b for batch and c for channel; space is RAS+ on the card's grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a generator may look at. Absent parts are None, so that later generators widen nothing."""

    image: Float[Tensor, "b c x y z"]
    present: Float[Tensor, "b c"] | None = None
    mask: Float[Tensor, "b 1 x y z"] | None = None
    age: Float[Tensor, " b"] | None = None

    def to(self, device: torch.device | str) -> "Condition":
        """The same condition on another device."""
        return replace(self, **_moved(self, device))


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a generator learns from.

    image: the target in network units. weight: how much each voxel counts (0 where the target is unknown).
    shares: share of each class in a voxel, where the source knows it; else the generator derives it from the image.
    """

    image: Float[Tensor, "b 1 x y z"]
    weight: Float[Tensor, "b 1 x y z"]
    shares: Float[Tensor, "b k x y z"] | None = None

    def to(self, device: torch.device | str) -> "Target":
        """The same target on another device."""
        return replace(self, **_moved(self, device))


@runtime_checkable
class Generator(Protocol):
    """Learns by `losses`, answers by `sample`; both take the same condition."""

    def losses(self, condition: Condition, target: Target) -> Mapping[str, Float[Tensor, ""]]:
        """Each objective under its own name, already weighted; the training loop adds or coordinates them."""
        ...

    def sample(self, condition: Condition, rng: torch.Generator | None = None) -> Float[Tensor, "b 1 x y z"]:
        """One image per condition, in network units. `rng` makes a generator with a noise input repeatable."""
        ...


def _moved(record: Condition | Target, device: torch.device | str) -> dict[str, Tensor]:
    return {k: v.to(device, non_blocking=True) for k, v in vars(record).items() if isinstance(v, Tensor)}
