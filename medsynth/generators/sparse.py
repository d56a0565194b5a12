"""GDM-style generator for CT from few views: a network corrects a data-consistent image, slice by slice, in one or a few passes.

Between passes a few steps on the measured data make the image agree with them again. As in GDM (arXiv 2604.19736, abstract) the generator
is a residual on an image that is reconstructed without a network; that this image is consistent with the data rather than filtered
backprojection, and the passes, are ours (docs/sparse-ct.md).

Few views leave much open, and consistency with them is no proof. So the network also says how far off it expects to be: beside the
correction it gives the scale of a Laplace distribution of the error (Kendall and Gal 2017, section 2.2), learned with the image held fixed.
"""

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.core.generator import Condition, Target
from medsynth.core.quantity import CT
from medsynth.nets.slice_unet import SliceUNet
from medsynth.physics.acquisition import from_slices, to_slices
from medsynth.physics.classical import accelerated_sirt
from medsynth.physics.ct import MU_WATER_PER_MM, Projector, attenuation, hu_to_mu, mu_to_hu

# Units and bounds of the network's input, HU; a correction is in units of CORRECTION_HU.
IMAGE_HU, IMAGE_RANGE_HU = 300.0, (-1000.0, 3500.0)
CHANGE_HU, CHANGE_LIMIT_HU = 100.0, 1000.0
RESIDUAL_HU, RESIDUAL_LIMIT_HU = 50.0, 500.0
CORRECTION_HU = 100.0
OWN_CHANNELS = 5
MIDDLE_VIEWS = 36
SMOOTH_FROM = 0.3  # of CORRECTION_HU: below it the loss is quadratic
LOG_ERROR_RANGE = (-6.0, 3.0)  # of the expected absolute error in units of CORRECTION_HU: .25 to 2000 HU


class Config(BaseModel):
    """Network and passes.

    neighbours: slices on each side that the network sees beside its own. passes: evaluations, unless a condition asks for others.
    consistency_steps: of accelerated SIRT between two passes. error_weight: of the objective by which the expected error is learned.
    error_scale: by which the expected error is multiplied, from calibration on scans set aside.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: tuple[int, ...] = (32, 64, 128, 256)
    blocks: tuple[int, ...] = (1, 1, 2, 2)
    refined: int = Field(default=12, gt=0)
    neighbours: int = Field(default=1, ge=0)
    passes: int = Field(default=3, gt=0)
    consistency_steps: int = Field(default=5, ge=0)
    error_weight: float = Field(default=0.05, ge=0)
    error_scale: float = Field(default=1.0, gt=0)


class SparseView(nn.Module):
    """The generator contract (`core.generator.Generator`) on a 2-D network. Its answer has two channels: the image, and the logarithm of
    the absolute error that is expected of it, in units of CORRECTION_HU.

    The condition's image is [b 2 x y z]: the data-consistent image and the filtered backprojection; its sinogram, acquisition and passes
    say the rest.
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
        consistent, before = (to_slices(scale.decode(condition.image[:, channel].float())) for channel in range(2))
        assert condition.sinogram is not None
        assert condition.acquisition is not None
        sinogram = condition.sinogram.float().flatten(0, 1)
        operator = condition.acquisition.operator(sinogram.device)
        for number in range(condition.passes - 1):
            with torch.no_grad():
                image, _ = self.one_pass(operator, sinogram, consistent, before, number, volumes)
                before = image.clamp(*IMAGE_RANGE_HU)
                consistent = self.agreeing(operator, sinogram, before)
        image, log_error = self.one_pass(operator, sinogram, consistent, before, condition.passes - 1, volumes, condition.window)
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
        """Smooth L1 of the image in units of CORRECTION_HU, and the Laplace likelihood of its error; weighted means.

        Smooth, since an L1 alone stays at the median of the correction, zero, for hundreds of steps. The likelihood leaves the image alone.
        """
        weight = target.weight / target.weight.sum().clamp(min=1)
        unit = CT().fit().half_width / CORRECTION_HU
        image, log_error = answer[:, :1] * unit, answer[:, 1:].clamp(*LOG_ERROR_RANGE)
        wanted = target.image * unit
        error = (image.detach() - wanted).abs()
        return {
            "smooth_l1": (F.smooth_l1_loss(image, wanted, beta=SMOOTH_FROM, reduction="none") * weight).sum(),
            "error_likelihood": self.config.error_weight * ((error * torch.exp(-log_error) + log_error) * weight).sum(),
        }

    def sample(self, condition: Condition, rng: torch.Generator | None = None) -> Float[Tensor, "b 1 x y z"]:
        """The image. Deterministic: `rng` is not drawn from."""
        return self.image(self.answer(condition))

    def agreeing(self, operator: Projector, sinogram: Float[Tensor, "s v d"], image_hu: Float[Tensor, "s y x"]) -> Float[Tensor, "s y x"]:
        """The image in HU after a few steps on the data."""
        with torch.autocast(sinogram.device.type, enabled=False):
            return mu_to_hu(accelerated_sirt(operator, sinogram, self.config.consistency_steps, start=attenuation(image_hu)))

    def one_pass(
        self,
        operator: Projector,
        sinogram: Float[Tensor, "s v d"],
        consistent: Float[Tensor, "s y x"],
        before: Float[Tensor, "s y x"],
        number: int,
        volumes: int,
        window: tuple[int, int, int] | None = None,
    ) -> tuple[Float[Tensor, "s j i"], Float[Tensor, "s j i"]]:
        """One evaluation of the network: the image in HU, and the logarithm of its expected error, in the window.

        consistent, before: the data-consistent image that is corrected, and what it was made from: filtered backprojection, or the image of
        the pass before; HU. number: of the pass, from 0. volumes: how many the slices are of; neighbours are looked up within each.
        """
        with torch.autocast(sinogram.device.type, enabled=False):
            unexplained = operator.fbp(sinogram - operator.forward(hu_to_mu(consistent).clamp(min=0)), "hann-pixel")
            residual_hu = unexplained * (1000 / MU_WATER_PER_MM)
        own = consistent.clamp(*IMAGE_RANGE_HU) / IMAGE_HU
        views = torch.tensor(operator.geometry.views / MIDDLE_VIEWS).log2().item()
        channels = [
            own,
            (before - consistent).clamp(-CHANGE_LIMIT_HU, CHANGE_LIMIT_HU) / CHANGE_HU,
            residual_hu.clamp(-RESIDUAL_LIMIT_HU, RESIDUAL_LIMIT_HU) / RESIDUAL_HU,
            torch.full_like(own, views),
            torch.full_like(own, float(number > 0)),
            *_neighbours(own, volumes, self.config.neighbours),
        ]
        inputs = torch.stack(channels, dim=1)
        if window is not None:
            inputs, consistent = _cut(inputs, window), _cut(consistent, window)
        correction, log_error = self.net(inputs).float().unbind(1)
        return consistent + CORRECTION_HU * correction, log_error


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
