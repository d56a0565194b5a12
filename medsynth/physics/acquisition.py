"""One scan in a plane: geometry and image grid together, and the quick data-consistent image that a generator starts from."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from medsynth.physics.classical import accelerated_sirt
from medsynth.physics.ct import Projector, projector
from medsynth.physics.geometry import Geometry, ImageGrid

# Below so many views FBP is a poor start, and more steps from nothing do better (reference recipe, measured at 18, 36 and 72 views).
FEW_VIEWS = 27
STEPS_FROM_NOTHING, STEPS_FROM_FBP = 30, 20


class Acquisition(NamedTuple):
    """What a sinogram was measured with, and the grid of its image."""

    geometry: Geometry
    grid: ImageGrid

    def operator(self, device: torch.device) -> Projector:
        """The operator, kept between calls."""
        return projector(self.geometry, self.grid, device)


def consistent_start(operator: Projector, sinogram: Float[Tensor, "s v d"]) -> tuple[Float[Tensor, "s y x"], Float[Tensor, "s y x"]]:
    """An image that agrees with the data, and the filtered backprojection; mu in 1/mm. Raises UsageError E-VIEWS as FBP does."""
    backprojected = operator.fbp(sinogram, "hann-pixel")
    if operator.geometry.views < FEW_VIEWS:
        return accelerated_sirt(operator, sinogram, STEPS_FROM_NOTHING), backprojected
    return accelerated_sirt(operator, sinogram, STEPS_FROM_FBP, start=backprojected.clamp(min=0)), backprojected


def to_slices(volume: Float[Tensor, "b x y z"]) -> Float[Tensor, "s y x"]:
    """Volumes in RAS+ -> slices in LPS, the order of `ct`: both axes in the plane run the other way. s = b z, volume by volume."""
    return volume.flip(1, 2).permute(0, 3, 2, 1).flatten(0, 1)


def from_slices(slices: Float[Tensor, "s y x"], volumes: int) -> Float[Tensor, "b x y z"]:
    """Inverse of `to_slices` for so many volumes."""
    return slices.unflatten(0, (volumes, -1)).permute(0, 3, 2, 1).flip(1, 2)
