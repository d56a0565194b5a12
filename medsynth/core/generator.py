"""The contract between tasks, training and networks: what a generator is given, what it learns from, what it returns.

Axes are [b c x y z] throughout, b for batch and c for channel; space is RAS+ on the card's grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medsynth.core.anatomy import REGIONS

HEIGHTS = 8
PLACES = REGIONS * HEIGHTS


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What a generator may look at. Absent parts are None, so that later generators widen nothing.

    sinogram: line integrals of each slice along z, v views of d detector cells. acquisition: what they were measured with, one for the
    whole batch (`physics.acquisition.Acquisition`). passes: evaluations of the network, for generators that take several.
    window: x, y and side, voxels, of the square in the plane where the answer is wanted; None: everywhere.
    """

    image: Float[Tensor, "b c x y z"]
    present: Float[Tensor, "b c"] | None = None
    mask: Float[Tensor, "b 1 x y z"] | None = None
    age: Float[Tensor, " b"] | None = None
    sinogram: Float[Tensor, "b z v d"] | None = None
    acquisition: Any = None
    passes: int = 1
    window: tuple[int, int, int] | None = None

    def to(self, device: torch.device | str) -> "Condition":
        """The same condition on another device."""
        return replace(self, **_moved(self, device))


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a generator learns from.

    image: the target in network units. weight: how much each voxel counts (0 where the target is unknown).
    shares: share of each class in a voxel, where the source knows it; else the generator derives it from the image.
    place: where in the body the patch lies, as a number: part of the body, and height along z in HEIGHTS steps. Drifting compares like with
    like by it.
    """

    image: Float[Tensor, "b 1 x y z"]
    weight: Float[Tensor, "b 1 x y z"]
    shares: Float[Tensor, "b k x y z"] | None = None
    place: Int[Tensor, " b"] | None = None

    def to(self, device: torch.device | str) -> "Target":
        """The same target on another device."""
        return replace(self, **_moved(self, device))


@runtime_checkable
class Generator(Protocol):
    """Answers a condition in its own terms, which decode to an image; learns where the answer is compared with the target.

    Objectives meet at the answer: each gives its gradient there, and one backward pass leads their combination through the network.
    """

    def answer(self, condition: Condition) -> Float[Tensor, "b k x y z"]:
        """What the network says, one evaluation."""
        ...

    def image(self, answer: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b 1 x y z"]:
        """The answer as an image in network units, differentiably: what drifting looks at."""
        ...

    def fidelity(self, answer: Float[Tensor, "b k x y z"], target: Target) -> Mapping[str, Float[Tensor, ""]]:
        """The objectives that hold the answer to its own target, by name, already weighted: means over the samples."""
        ...

    def sample(self, condition: Condition, rng: torch.Generator | None = None) -> Float[Tensor, "b 1 x y z"]:
        """One image per condition, in network units. `rng` makes a generator with a noise input repeatable."""
        ...


def place_of(region: int, centre: float, size: float) -> Int[Tensor, " 1"]:
    """The `Target.place` of a patch in a region (`core.anatomy`) that is centred on the height `centre` of a scan from 0 to `size`."""
    return torch.tensor([region * HEIGHTS + min(HEIGHTS - 1, max(0, int(HEIGHTS * centre / size)))])


def _moved(record: Condition | Target, device: torch.device | str) -> dict[str, Tensor]:
    return {k: v.to(device, non_blocking=True) for k, v in vars(record).items() if isinstance(v, Tensor)}
