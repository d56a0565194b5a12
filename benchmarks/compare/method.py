"""What a method of the comparison is, and what several of them share."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from medsynth.core.quantity import CT

from .network import Network
from .problem import Batch, Pairs
from .sizes import Size

CT_SCALE = CT().fit()
PER_1000_HU = CT_SCALE.half_width / 1000


class Setting(NamedTuple):
    """What a method may look at when it is made."""

    size: Size
    device: torch.device
    training: Pairs
    encoder: Path | str
    seed: int


class Moment(NamedTuple):
    """Where training stands: share of the time that has passed, and randomness of the step."""

    share: float
    rng: torch.Generator


class Method(Protocol):
    """A way to train the network and to ask it.

    evaluations: of the network for a sample; each number gives a row. keeps_best: the weights with the best validation MAE are taken, and
    not the last ones.
    """

    evaluations: tuple[int, ...]
    keeps_best: bool

    def backward(self, network: Network, batch: Batch, moment: Moment) -> dict[str, float]:
        """Gradients of the step into the network's parameters; the figures are for the log."""
        ...

    def sample(
        self, network: Network, condition: Float[Tensor, "b 1 x y z"], rng: torch.Generator, evaluations: int
    ) -> Float[Tensor, "b 1 x y z"]:
        """One image a condition, in network units."""
        ...

    def state(self) -> dict[str, Any]:
        """What the method itself learns, for a checkpoint."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        ...


class OneEvaluation:
    """Methods whose network answers at once. noisy: whether it gets noise to make texture of, or zeros."""

    evaluations: tuple[int, ...] = (1,)
    keeps_best: bool = False
    noisy: bool = True

    def answer(self, network: Network, condition: Float[Tensor, "b 1 x y z"], rng: torch.Generator) -> Float[Tensor, "b 1 x y z"]:
        """The network's image."""
        noise = noise_like(condition, rng) if self.noisy else torch.zeros_like(condition)
        return network(condition, noise, condition.new_zeros(len(condition)))

    def sample(
        self, network: Network, condition: Float[Tensor, "b 1 x y z"], rng: torch.Generator, evaluations: int
    ) -> Float[Tensor, "b 1 x y z"]:
        return self.answer(network, condition, rng)

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        return None


def l1(image: Float[Tensor, "b 1 x y z"], batch: Batch) -> Float[Tensor, ""]:
    """Weighted mean absolute error in units of 1000 HU."""
    return PER_1000_HU * ((image - batch.target).abs() * batch.weight).sum() / batch.weight.sum()


def noise_like(x: Float[Tensor, "b 1 x y z"], rng: torch.Generator) -> Float[Tensor, "b 1 x y z"]:
    """Noise of unit variance."""
    return torch.randn(x.shape, generator=rng, device=x.device)
