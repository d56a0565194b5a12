"""GDM-style generator for CT from few views: a network corrects an image slice by slice, in one or a few passes.

In each it sees the image, what a few steps on the measured data would change in it, and what they leave unexplained. As in GDM (arXiv
2604.19736, abstract) the generator is a residual on an image that is reconstructed without a network; that this image is one of total
variation rather than filtered backprojection, and the passes, are ours (docs/sparse-ct.md).

Few views leave much open, and consistency with them is no proof. So the network also says how far off it expects to be: beside the
correction it gives the scale of a Laplace distribution of the error (Kendall and Gal 2017, section 2.2), learned with the image held fixed.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medsynth.core.generator import Condition, Target
from medsynth.core.quantity import CT
from medsynth.nets.slice_unet import SliceUNet
from medsynth.physics.acquisition import BETWEEN_EPOCHS, asked_of, from_slices, smoothed, to_slices
from medsynth.physics.ct import MU_WATER_PER_MM, Projector, attenuation, mu_to_hu

# Units and bounds of the network's input, HU; a correction is in units of CORRECTION_HU.
IMAGE_HU, IMAGE_RANGE_HU = 300.0, (-1000.0, 3500.0)
CHANGE_HU, CHANGE_LIMIT_HU = 100.0, 1000.0
RESIDUAL_HU, RESIDUAL_LIMIT_HU = 50.0, 500.0
CORRECTION_HU = 100.0
OWN_CHANNELS = 5
MIDDLE_VIEWS = 36
NEGLIGIBLE_HU = 5.0  # a root mean square error below it counts as that: a window of air must not outweigh one of a patient
LOG_ERROR_RANGE = (-6.0, 3.0)  # of the expected absolute error in units of CORRECTION_HU: .25 to 2000 HU


class Config(BaseModel):
    """Network and passes.

    neighbours: slices on each side that the network sees beside its own. passes: evaluations, unless a condition asks for others.
    error_weight: of the objective by which the expected error is learned.
    error_scale: by which the expected error is multiplied, from calibration on scans set aside.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: tuple[int, ...] = (24, 48, 96, 192)
    blocks: tuple[int, ...] = (1, 1, 2, 2)
    refined: int = Field(default=16, gt=0)
    neighbours: int = Field(default=1, ge=0)
    passes: int = Field(default=3, gt=0)
    error_weight: float = Field(default=0.05, ge=0)
    error_scale: float = Field(default=1.0, gt=0)


class Shown(NamedTuple):
    """What the network sees of slices, HU [s y x]: the image to correct, the same after a few steps on the data, and what these leave
    unexplained (0 HU: nothing)."""

    image: Tensor
    asked: Tensor
    unexplained: Tensor


class SparseView(nn.Module):
    """The generator contract (`core.generator.Generator`) on a 2-D network. Its answer has two channels: the image, and the logarithm of
    the absolute error that is expected of it, in units of CORRECTION_HU.

    The condition's image is [b 3 x y z], what the first pass is shown; its sinogram, acquisition and passes say the rest.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.net = SliceUNet(
            in_channels=OWN_CHANNELS + 2 * config.neighbours,
            out_channels=2,
            channels=config.channels,
            blocks=config.blocks,
            refined=config.refined,
        )

    @property
    def stride(self) -> int:
        """Sides of a slice must be multiples of this."""
        return self.net.stride

    def answer(self, condition: Condition) -> Float[Tensor, "b 2 x y z"]:
        """After all passes: the image in network units, and its expected error; gradients flow through the last pass, which alone is
        confined to the condition's window."""
        volumes, scale = len(condition.image), CT().fit()
        assert condition.sinogram is not None
        assert condition.acquisition is not None
        sinogram = condition.sinogram.float().flatten(0, 1)
        operator = condition.acquisition.operator(sinogram.device)
        shown = Shown(*(to_slices(scale.decode(channel.float())) for channel in condition.image.unbind(1)))
        for number in range(condition.passes - 1):
            with torch.no_grad():
                image, _ = self.one_pass(shown, operator.geometry.views, number, volumes)
                shown = shown_of(operator, sinogram, led_back(operator, sinogram, image))
        image, log_error = self.one_pass(shown, operator.geometry.views, condition.passes - 1, volumes, condition.window)
        return torch.stack([scale.encode(from_slices(image, volumes)), from_slices(log_error, volumes)], dim=1)

    def image(self, answer: Float[Tensor, "b 2 x y z"]) -> Float[Tensor, "b 1 x y z"]:
        """The image in network units."""
        return answer[:, :1]

    def uncertainty(self, answer: Float[Tensor, "b 2 x y z"]) -> Float[Tensor, "b 1 x y z"]:
        """Absolute error that is to be expected, HU."""
        return self.expected_error(answer[:, 1:])

    def expected_error(self, log_error: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """HU, from the network's logarithm of it."""
        return log_error.clamp(*LOG_ERROR_RANGE).exp() * (CORRECTION_HU * self.config.error_scale)

    def fidelity(self, answer: Float[Tensor, "b 2 x y z"], target: Target) -> dict[str, Float[Tensor, ""]]:
        """Logarithm of the root mean square error of each slab, and the Laplace likelihood of its error; weighted means.

        The logarithm, which is PSNR but for its unit, since errors at 18 views are several times those at 72, and a plain mean would learn
        for 18 views alone. The likelihood leaves the image alone.
        """
        unit = CT().fit().half_width / CORRECTION_HU
        image, log_error = answer[:, :1] * unit, answer[:, 1:].clamp(*LOG_ERROR_RANGE)
        wanted = target.image * unit
        error = (image.detach() - wanted).abs()
        square = _weighted_mean((image - wanted).square(), target.weight) + (NEGLIGIBLE_HU / CORRECTION_HU) ** 2
        return {
            "log_rmse": 0.5 * square.log().mean(),
            "error_likelihood": self.config.error_weight * _weighted_mean(error * torch.exp(-log_error) + log_error, target.weight).mean(),
        }

    def sample(self, condition: Condition, rng: torch.Generator | None = None) -> Float[Tensor, "b 1 x y z"]:
        """The image. Deterministic: `rng` is not drawn from."""
        return self.image(self.answer(condition))

    def one_pass(
        self, shown: Shown, views: int, number: int, volumes: int, window: tuple[int, int, int] | None = None
    ) -> tuple[Float[Tensor, "s j i"], Float[Tensor, "s j i"]]:
        """One evaluation of the network: the image in HU, and the logarithm of its expected error, in the window.

        number: of the pass, from 0. volumes: how many the slices are of; neighbours are looked up within each.
        """
        image = shown.image
        own = image / IMAGE_HU
        channels = [
            own,
            (shown.asked - image).clamp(-CHANGE_LIMIT_HU, CHANGE_LIMIT_HU) / CHANGE_HU,
            shown.unexplained.clamp(-RESIDUAL_LIMIT_HU, RESIDUAL_LIMIT_HU) / RESIDUAL_HU,
            torch.full_like(own, math.log2(views / MIDDLE_VIEWS)),
            torch.full_like(own, float(number > 0)),
            *_neighbours(own, volumes, self.config.neighbours),
        ]
        inputs = torch.stack(channels, dim=1)
        if window is not None:
            inputs, image = _cut(inputs, window), _cut(image, window)
        correction, log_error = self.net(inputs).float().unbind(1)
        return image + CORRECTION_HU * correction, log_error


def _weighted_mean(values: Float[Tensor, "b 1 x y z"], weight: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, " b"]:
    """Of each slab."""
    return (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1)


def shown_of(operator: Projector, sinogram: Float[Tensor, "s v d"], image_hu: Float[Tensor, "s y x"]) -> Shown:
    """What the next pass is shown of an image."""
    image_hu = image_hu.clamp(*IMAGE_RANGE_HU)
    with torch.autocast(sinogram.device.type, enabled=False):
        asked, unexplained = asked_of(operator, sinogram, attenuation(image_hu))
    return Shown(image_hu, mu_to_hu(asked), unexplained * (1000 / MU_WATER_PER_MM))


def led_back(operator: Projector, sinogram: Float[Tensor, "s v d"], image_hu: Float[Tensor, "s y x"]) -> Float[Tensor, "s y x"]:
    """The image of a pass, made to agree with the data before the next."""
    with torch.autocast(sinogram.device.type, enabled=False):
        return mu_to_hu(smoothed(operator, sinogram, attenuation(image_hu.clamp(*IMAGE_RANGE_HU)), BETWEEN_EPOCHS))


def build(config: Config) -> SparseView:
    """A generator with random weights."""
    return SparseView(config)


def _cut(slices: Float[Tensor, "*s y x"], window: tuple[int, int, int]) -> Float[Tensor, "*s j i"]:
    """The window, which is given in RAS+, of slices in LPS."""
    x, y, side = window
    rows, columns = slices.shape[-2:]
    return slices[..., rows - y - side : rows - y, columns - x - side : columns - x]


def _neighbours(slices: Float[Tensor, "s y x"], volumes: int, reach: int) -> list[Float[Tensor, "s y x"]]:
    """For each slice those below and above it, nearest first; at a volume's ends the last one again."""
    stacked = slices.unflatten(0, (volumes, -1))
    count = stacked.shape[1]
    places = torch.arange(count, device=slices.device)
    steps = [step for distance in range(1, reach + 1) for step in (-distance, distance)]
    return [stacked[:, (places + step).clamp(0, count - 1)].flatten(0, 1) for step in steps]
