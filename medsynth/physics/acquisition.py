"""One scan in a plane: geometry and image grid together, and the quick images that a generator starts from."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from medsynth.physics.classical import ordered_total_variation, tv_weight
from medsynth.physics.ct import Projector, projector
from medsynth.physics.geometry import Geometry, ImageGrid

# Times through the data of FEWEST_VIEWS; more views determine more, and take more: see `_epochs`.
START_EPOCHS, BETWEEN_EPOCHS, ASKED_EPOCHS = 12, 4, 2
FEWEST_VIEWS, GROWTH = 18, 0.5
MOST_EPOCHS = 16  # steps on subsets come no nearer after that, and then diverge


class Acquisition(NamedTuple):
    """What a sinogram was measured with, and the grid of its image."""

    geometry: Geometry
    grid: ImageGrid

    def operator(self, device: torch.device) -> Projector:
        """The operator, kept between calls."""
        return projector(self.geometry, self.grid, device)


def first_image(operator: Projector, sinogram: Float[Tensor, "s v d"]) -> Float[Tensor, "s y x"]:
    """What a network begins with: filtered backprojection, smoothed with total variation; mu in 1/mm.

    Raises UsageError E-VIEWS as FBP does.
    """
    return smoothed(operator, sinogram, operator.fbp(sinogram, "hann-pixel").clamp(min=0), START_EPOCHS)


def smoothed(operator: Projector, sinogram: Float[Tensor, "s v d"], image: Float[Tensor, "s y x"], epochs: int) -> Float[Tensor, "s y x"]:
    """The image, mu in 1/mm, after steps of total variation on the data."""
    views = operator.geometry.views
    return ordered_total_variation(operator, sinogram, tv_weight(views), _epochs(epochs, views), start=image)


def asked_of(
    operator: Projector, sinogram: Float[Tensor, "s v d"], image: Float[Tensor, "s y x"]
) -> tuple[Float[Tensor, "s y x"], Float[Tensor, "s y x"]]:
    """What the data say of an image, mu in 1/mm: the image after a few steps on the data alone, noise and all, and the filtered
    backprojection of what these leave unexplained."""
    views = operator.geometry.views
    agreeing = ordered_total_variation(operator, sinogram, 0.0, _epochs(ASKED_EPOCHS, views), start=image)
    return agreeing, operator.fbp(sinogram - operator.forward(agreeing), "hann-pixel")


def _epochs(of_fewest: int, views: int) -> int:
    """4 with 18 views are 6 with 36, and 8 with 72."""
    return min(MOST_EPOCHS, round(of_fewest * max(1.0, views / FEWEST_VIEWS) ** GROWTH))


def to_slices(volume: Float[Tensor, "b x y z"]) -> Float[Tensor, "s y x"]:
    """Volumes in RAS+ -> slices in LPS, the order of `ct`: both axes in the plane run the other way. s = b z, volume by volume."""
    return volume.flip(1, 2).permute(0, 3, 2, 1).flatten(0, 1)


def from_slices(slices: Float[Tensor, "s y x"], volumes: int) -> Float[Tensor, "b x y z"]:
    """Inverse of `to_slices` for so many volumes."""
    return slices.unflatten(0, (volumes, -1)).permute(0, 3, 2, 1).flip(1, 2)
