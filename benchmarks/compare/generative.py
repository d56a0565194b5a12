"""Flow matching and diffusion. Both let the network say the clean image (Li and He 2025), from which the velocity or the score follows.

The image goes through arcsinh around soft tissue first: on the linear scale of CT, noise of 13 HU is 0.6 % of the range, and a process of
twenty steps would end long before it. The network answers in linear units, as for the other methods.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .method import CT_SCALE, Moment, noise_like
from .network import Network
from .problem import Batch

CENTRE_HU, BEND_HU, REACH = 40.0, 100.0, 3.0  # arcsinh((x - centre) / bend) / reach: air at -1, compact bone at 1
LATEST = 0.05  # least distance to the end at which the error counts more
# Diffusion's levels of noise (Karras 2022): log-normal in training, a power grid in sampling.
LOG_MEAN, LOG_SPREAD = -1.2, 1.2
LOWEST, HIGHEST, POWER = 0.02, 10.0, 7.0
DATA_SPREAD = 0.6


def bent(image: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Network units -> units of the process."""
    return torch.asinh((CT_SCALE.decode(image) - CENTRE_HU) / BEND_HU) / REACH


def straight(state: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Inverse of `bent`."""
    return CT_SCALE.encode(torch.sinh(state * REACH) * BEND_HU + CENTRE_HU)


class _Process:
    """What both have in common."""

    keeps_best: bool = False

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        return None


class Flow(_Process):
    """Conditional flow matching on straight lines from noise (Lipman 2023; Liu 2023), Euler steps."""

    evaluations: tuple[int, ...] = (1, 4, 20)

    def backward(self, network: Network, batch: Batch, moment: Moment) -> dict[str, float]:
        clean = bent(batch.target)
        time = torch.rand(len(clean), generator=moment.rng, device=clean.device)
        state = torch.lerp(noise_like(clean, moment.rng), clean, _wide(time))
        error = self._clean(network, batch.condition, state, time) - clean
        loss = _weighted(error / _wide((1 - time).clamp(min=LATEST)), batch)  # the error of the velocity
        loss.backward()
        return {"velocity": loss.item()}

    def sample(
        self, network: Network, condition: Float[Tensor, "b 1 x y z"], rng: torch.Generator, evaluations: int
    ) -> Float[Tensor, "b 1 x y z"]:
        state = noise_like(condition, rng)
        for step in range(evaluations):
            time = condition.new_full((len(condition),), step / evaluations)
            clean = self._clean(network, condition, state, time)
            state = torch.lerp(state, clean, 1 / (evaluations - step))
        return straight(state)

    def _clean(self, network: Network, condition: Tensor, state: Tensor, time: Tensor) -> Tensor:
        return bent(network(condition, state, time))


class Diffusion(_Process):
    """Denoising diffusion with noise levels as in EDM (Karras 2022); 20 ancestral steps of the reverse SDE."""

    evaluations: tuple[int, ...] = (20,)

    def backward(self, network: Network, batch: Batch, moment: Moment) -> dict[str, float]:
        clean = bent(batch.target)
        normal = torch.randn(len(clean), generator=moment.rng, device=clean.device)
        level = (normal * LOG_SPREAD + LOG_MEAN).exp().clamp(LOWEST, HIGHEST)
        error = self._clean(network, batch.condition, clean + _wide(level) * noise_like(clean, moment.rng), level) - clean
        loss = _weighted(error * _wide((level.clamp(min=LATEST) ** -2 + DATA_SPREAD**-2).sqrt()), batch)
        loss.backward()
        return {"denoising": loss.item()}

    def sample(
        self, network: Network, condition: Float[Tensor, "b 1 x y z"], rng: torch.Generator, evaluations: int
    ) -> Float[Tensor, "b 1 x y z"]:
        levels = noise_levels(evaluations)
        state = levels[0] * noise_like(condition, rng)
        for level, following in zip(levels, (*levels[1:], 0.0), strict=True):
            clean = self._clean(network, condition, state, condition.new_full((len(condition),), level))
            kept = following**2 / level**2  # share of the noise that stays; fresh noise makes up the level
            fresh = (following**2 * (1 - kept)) ** 0.5
            state = clean + kept * (state - clean) + fresh * noise_like(state, rng)
        return straight(state)

    def _clean(self, network: Network, condition: Tensor, state: Tensor, level: Tensor) -> Tensor:
        return bent(network(condition, state / _wide((level**2 + DATA_SPREAD**2).sqrt()), level.log() / 4))


def noise_levels(count: int) -> list[float]:
    """Falling levels, denser towards the end (Karras 2022, eq. 5)."""
    low, high = LOWEST ** (1 / POWER), HIGHEST ** (1 / POWER)
    return [(high + i / max(1, count - 1) * (low - high)) ** POWER for i in range(count)]


def _wide(values: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1 1"]:
    return values[:, None, None, None, None]


def _weighted(error: Tensor, batch: Batch) -> Float[Tensor, ""]:
    return (error.square() * batch.weight).sum() / batch.weight.sum()
