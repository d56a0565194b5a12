"""GDM-style one-step generator for paired volumes, with its supervised objective.

The network gives a share for each tissue class; the image is the expectation of the classes' values. Cross-entropy finds thin
bone early, where an L1 loss alone stays at the median (soft tissue) for long; L1 on the expectation keeps the values right.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.core.generator import Condition, Target
from medsynth.core.quantity import CT
from medsynth.nets.unet import ResEncUNet

NETWORK_MAX = 2.0  # MR brighter than twice the foreground's 95th percentile carries no anatomy: vessels, artefacts


class Config(BaseModel):
    """Network and objective.

    class_hu: value of each class in HU, ascending. sharpness: power to which the shares are raised when sampling; above 1 the expectation
    moves towards the median, whose absolute error is smaller. Training does not use it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: int = 1
    channels: tuple[int, ...] = (32, 64, 160, 320)
    head_channels: int = 32
    groups: int = 8
    class_hu: tuple[float, ...] = (-1000.0, -95.0, 10.0, 34.0, 45.0, 480.0, 1000.0)
    l1_weight: float = 2.0
    sharpness: float = 1.0

    @field_validator("class_hu")
    @classmethod
    def _ascending(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(a >= b for a, b in pairwise(values)):
            raise ValueError("class values must ascend, or class shares cannot be read off a CT")
        return values


class GDM(nn.Module):
    """The generator contract (`core.generator.Generator`) on a residual-encoder U-Net."""

    class_values: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.net = ResEncUNet(
            in_channels=config.in_channels,
            out_channels=len(config.class_hu),
            channels=config.channels,
            head_channels=config.head_channels,
            groups=config.groups,
        )
        values = torch.tensor([CT().fit().encode(hu) for hu in config.class_hu])
        self.register_buffer("class_values", values, persistent=False)

    @property
    def stride(self) -> int:
        """Patch sides must be multiples of this."""
        return self.net.stride

    def answer(self, condition: Condition) -> Float[Tensor, "b k x y z"]:
        """Logits of the class shares."""
        return self.net(condition.image.clamp(0, NETWORK_MAX)).float()

    def image(self, answer: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b 1 x y z"]:
        """Expected value over the classes."""
        return self._expectation(answer.softmax(1))

    def fidelity(self, answer: Float[Tensor, "b k x y z"], target: Target) -> dict[str, Float[Tensor, ""]]:
        """Cross-entropy against the class shares, and L1 in units of 1000 HU; weighted means over a sample's voxels, then over samples."""
        shares = class_shares(target.image, self.class_values) if target.shares is None else target.shares
        weight = target.weight / target.weight.sum((1, 2, 3, 4), keepdim=True).clamp(min=1.0) / len(answer)
        cross_entropy = answer.logsumexp(1, keepdim=True) - (shares * answer).sum(1, keepdim=True)  # shares sum to one
        error_hu = (self.image(answer) - target.image).abs() * CT().fit().half_width
        return {
            "cross_entropy": (cross_entropy * weight).sum(),
            "l1": self.config.l1_weight * (error_hu * weight).sum() / 1000,
        }

    def sample(self, condition: Condition, rng: torch.Generator | None = None) -> Float[Tensor, "b 1 x y z"]:
        """Expected value over the sharpened shares; one evaluation. Deterministic: there is no noise input, `rng` is not drawn from."""
        return self.image(self.answer(condition) * self.config.sharpness)

    def _expectation(self, shares: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b 1 x y z"]:
        return torch.einsum("bkxyz,k->bxyz", shares, self.class_values)[:, None]


def build(config: Config) -> GDM:
    """A GDM generator with random weights."""
    return GDM(config)


def class_shares(image: Float[Tensor, "b 1 x y z"], values: Float[Tensor, " k"]) -> Float[Tensor, "b k x y z"]:
    """Shares of the two neighbouring classes whose expectation is the image: the inverse of decoding, for real CTs."""
    bounded = image[:, 0].clamp(float(values[0]), float(values[-1]))
    upper = torch.bucketize(bounded, values[1:-1].contiguous()) + 1
    low, high = values[upper - 1], values[upper]
    toward = (bounded - low) / (high - low)
    shares = F.one_hot(upper - 1, len(values)) * (1 - toward)[..., None] + F.one_hot(upper, len(values)) * toward[..., None]
    return shares.movedim(-1, 1)
