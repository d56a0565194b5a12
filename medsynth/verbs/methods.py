"""From a sinogram to slices: the network with its preparation and finish, and the classical methods, all in batches of slices.

What each leaves unexplained of the measurement is counted on the way: ||A x - b|| / ||b|| over the whole scan.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from medsynth.core.errors import UsageError
from medsynth.generators import build
from medsynth.generators.sparse import led_back, shown_of
from medsynth.physics.acquisition import Acquisition, first_image
from medsynth.physics.classical import accelerated_sirt, ordered_total_variation, total_variation, tv_weight
from medsynth.physics.ct import MATRIX_LIMIT_BYTES, Projector, attenuation, mu_to_hu, relative_residual
from medsynth.physics.geometry import Geometry
from medsynth.physics.joseph import most_bytes
from medsynth.tasks.sparse_ct import MULTIPLE
from medsynth.verbs.device import precision_for
from medsynth.zoo import Card, Model

Method = Literal["network", "fbp", "sirt", "tv", "fdk"]  # the last is a cone beam's: `verbs.conebeam`
METHODS: tuple[Method, ...] = ("network", "fbp", "sirt", "tv")
BATCH = 8  # slices that are reconstructed together
SIRT_STEPS, TV_STEPS = 50, 150
FINISH_EPOCHS = 3  # more lead back to what TV would have made alone
Slices = Float[Tensor, "s y x"]


class Reconstruction(NamedTuple):
    """Slices in HU, on the CPU. uncertainty_hu: expected absolute error, where the method knows it. evaluations: of the network, a slice.

    residuals: relative, over the scan, by stage: those of the classical methods have but the "result".
    """

    image_hu: Slices
    uncertainty_hu: Slices | None
    residuals: dict[str, float]
    evaluations: int


class Network(NamedTuple):
    """A generator on its device, and how it is to be used."""

    generator: Any
    passes: int
    dtype: torch.dtype
    device: torch.device


def load_network(model: Model, weights: Path, device: torch.device, passes: int | None) -> Network:
    """The generator with its weights, strictly loaded. passes: None for what its configuration says.

    Raises UsageError E-MODEL for a network that cannot halve the grids of the task as often as it must.
    """
    from safetensors.torch import load_file

    generator = build(model.card.generator, model.card.config)
    generator.load_state_dict(load_file(weights), strict=True)
    if MULTIPLE % generator.stride:
        cause = f"{model.card.name} needs slices whose sides are multiples of {generator.stride}, and these are multiples of {MULTIPLE}"
        raise UsageError("E-MODEL", cause, remedy="train one with fewer levels")
    generator = generator.to(device, memory_format=torch.channels_last).eval()
    return Network(generator, passes or generator.config.passes, precision_for(device), device)


def insist_network_takes(geometry: Geometry, card: Card) -> tuple[str, ...]:
    """What a user is warned of. Raises UsageError E-VIEWS for views that the model has not learned from."""
    if geometry.beam != "fan" or not geometry.is_complete:
        cause = f"{card.name} takes views of a fan beam that are equally spaced over 360 degrees"
        raise UsageError("E-VIEWS", cause, remedy="--method tv takes any views, and parallel rays")
    learned = card.train.views if card.train else ()
    if not learned:
        return ()
    known = ", ".join(str(views) for views in sorted(learned))
    if not min(learned) <= geometry.views <= max(learned):
        cause = f"{card.name} learned from {known} views, not from {geometry.views}"
        raise UsageError("E-VIEWS", cause, remedy="--method tv takes any number")
    return () if geometry.views in learned else (f"the model learned from {known} views: with {geometry.views} it may be less good",)


@torch.no_grad()
def by_classical(method: Method, sinogram: Float[Tensor, "s v d"], acquisition: Acquisition, device: torch.device) -> Reconstruction:
    """FBP, SIRT or TV. Raises as the method does. FBP of more views than a matrix holds has no residual."""
    operator, solve = acquisition.operator(device), CLASSICAL[method]
    images: list[Tensor] = []
    residual = _Residual(operator)
    for part in sinogram.split(BATCH):
        measured = part.to(device)
        image = solve(operator, measured)
        if has_matrix(acquisition):
            residual.add("result", image, measured)
        images.append(mu_to_hu(image).cpu())
    return Reconstruction(torch.cat(images), None, residual.relative, 0)


def has_matrix(acquisition: Acquisition) -> bool:
    """Whether the rays of a scan fit into a matrix: what everything but FBP needs."""
    return most_bytes(acquisition.geometry, acquisition.grid) <= MATRIX_LIMIT_BYTES


@torch.no_grad()
def by_network(network: Network, sinogram: Float[Tensor, "s v d"], acquisition: Acquisition) -> Reconstruction:
    """Data-consistent start, network, finish.

    All slices take a pass before any takes the next, so that those at the ends of a batch see neighbours as far on as they are themselves.
    What is held of the whole scan is on the CPU.
    """
    operator = acquisition.operator(network.device)
    residual = _Residual(operator)
    image_hu = _first_images(operator, sinogram, residual)
    for number in range(network.passes - 1):
        passed = _passed(network, operator, sinogram, image_hu, number)
        image_hu = torch.cat([led_back(operator, measured, passed_hu).cpu() for measured, passed_hu, _ in passed])
    images: list[Tensor] = []
    uncertainties: list[Tensor] = []
    for measured, passed_hu, log_error in _passed(network, operator, sinogram, image_hu, network.passes - 1):
        image = attenuation(passed_hu)
        residual.add("network", image, measured)
        finished = finish(operator, measured, image)
        residual.add("result", finished, measured)
        images.append(mu_to_hu(finished).cpu())
        uncertainties.append(network.generator.expected_error(log_error).cpu())
    return Reconstruction(torch.cat(images), torch.cat(uncertainties), residual.relative, network.passes)


def finish(operator: Projector, sinogram: Float[Tensor, "s v d"], image_mu: Slices) -> Slices:
    """What makes the network's last image, mu in 1/mm, agree with the data: a few steps of TV, which smooth what nothing demands."""
    return ordered_total_variation(operator, sinogram, tv_weight(operator.geometry.views), FINISH_EPOCHS, start=image_mu)


def _fbp(operator: Projector, sinogram: Float[Tensor, "s v d"]) -> Slices:
    return operator.fbp(sinogram, "hann-pixel")


def _sirt(operator: Projector, sinogram: Float[Tensor, "s v d"]) -> Slices:
    return accelerated_sirt(operator, sinogram, SIRT_STEPS)


def _tv(operator: Projector, sinogram: Float[Tensor, "s v d"]) -> Slices:
    return total_variation(operator, sinogram, tv_weight(operator.geometry.views), TV_STEPS)


CLASSICAL: dict[Method, Callable[[Projector, Float[Tensor, "s v d"]], Slices]] = {"fbp": _fbp, "sirt": _sirt, "tv": _tv}


class _Residual:
    """Sums up what images leave unexplained, by stage."""

    def __init__(self, operator: Projector) -> None:
        self._operator = operator
        self._squares: dict[str, tuple[float, float]] = {}

    def add(self, stage: str, image: Slices, measured: Float[Tensor, "s v d"]) -> None:
        signal = measured.square().sum((1, 2))
        unexplained = relative_residual(self._operator, image, measured).square() * signal
        before = self._squares.get(stage, (0.0, 0.0))
        self._squares[stage] = (before[0] + float(unexplained.sum()), before[1] + float(signal.sum()))

    @property
    def relative(self) -> dict[str, float]:
        return {stage: math.sqrt(left / max(signal, 1e-30)) for stage, (left, signal) in self._squares.items()}


def _first_images(operator: Projector, sinogram: Float[Tensor, "s v d"], residual: _Residual) -> Slices:
    """What the network begins with, of all slices, HU, on the CPU."""
    images: list[Tensor] = []
    for part in sinogram.split(BATCH):
        measured = part.to(operator.device)
        image = first_image(operator, measured)
        residual.add("start", image, measured)
        images.append(mu_to_hu(image).cpu())
    return torch.cat(images)


def _passed(
    network: Network, operator: Projector, sinogram: Float[Tensor, "s v d"], image_hu: Slices, number: int
) -> Iterator[tuple[Float[Tensor, "s v d"], Slices, Slices]]:
    """One pass, in batches on the network's device: what was measured, the image in HU and the logarithm of its error.

    With each batch the network is shown as many slices beyond its ends as it looks at.
    """
    reach, count = network.generator.config.neighbours, len(sinogram)
    for first in range(0, count, BATCH):
        own = slice(first, min(first + BATCH, count))
        seen = slice(max(0, own.start - reach), min(count, own.stop + reach))
        kept = slice(own.start - seen.start, own.stop - seen.start)
        measured, before_hu = (whole[seen].to(network.device) for whole in (sinogram, image_hu))
        shown = shown_of(operator, measured, before_hu)
        with torch.autocast(network.device.type, network.dtype, enabled=network.dtype is not torch.float32):
            passed_hu, log_error = network.generator.one_pass(shown, operator.geometry.views, number, volumes=1)
        yield measured[kept], passed_hu[kept], log_error[kept]
