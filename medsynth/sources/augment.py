"""What else a scanner might have made of a real MR: contrast, bias field, blur, thick slices, noise, gain.

Milder than `degrade`, which begins with an ideal image, and in the scan's own scale instead of the patch's: a patch may hold little but
air. Drawn first (`draw_change`), into a record; `change` is then a function of image, record and noise.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Spacing = tuple[float, float, float]
BIAS_NODES = 4
BLUR_MM = (0.3, 1.0)  # standard deviation
SLICE_MM = (2.0, 6.0)
KERNEL_SIGMAS = 2.5


class Change(NamedTuple):
    """Parameters of one change.

    gamma: power of the signal, 1 being the scan's bright tissue. bias: nodes [1 i j k] of the log of the field. blur_sigma: voxels by
    axis, 0 for none. slice_axis, slice_voxels: thick slices, 1 for none. noise: relative to bright tissue. gain: of the whole.
    """

    gamma: float
    bias: np.ndarray
    blur_sigma: Spacing
    slice_axis: int
    slice_voxels: float
    noise: float
    gain: float


def draw_change(rng: np.random.Generator, spacing_mm: Spacing) -> Change:
    """One change; each part but gamma, bias and gain is left out in most."""
    nodes = (1, *[BIAS_NODES] * 3)
    blur_mm = rng.uniform(*BLUR_MM) * (rng.random() < 0.3)
    axis = int(rng.choice(3, p=[0.2, 0.2, 0.6]))
    thick_mm = rng.uniform(*SLICE_MM)
    return Change(
        gamma=float(np.exp(rng.normal(0, 0.15))),
        bias=(rng.standard_normal(nodes) * rng.uniform(0, 0.2)).astype(np.float32),
        blur_sigma=(blur_mm / spacing_mm[0], blur_mm / spacing_mm[1], blur_mm / spacing_mm[2]),
        slice_axis=axis,
        slice_voxels=max(1.0, thick_mm / spacing_mm[axis]) if rng.random() < 0.2 else 1.0,
        noise=rng.uniform(0, 0.04) * (rng.random() < 0.5),
        gain=float(np.exp(rng.normal(0, 0.1))),
    )


def change(image: Float[Tensor, "c x y z"], how: Change, rng: torch.Generator) -> Float[Tensor, "c x y z"]:
    """The MR changed, in network units; 0 and above. rng: of the noise, on the image's device."""
    image = image.clamp(min=0) ** how.gamma
    nodes = torch.from_numpy(how.bias)[None].to(image.device)
    image = image * F.interpolate(nodes, size=image.shape[1:], mode="trilinear", align_corners=True)[0].exp_()
    image = _thicken(_blur(image, how.blur_sigma), how)
    if how.noise > 0:  # of a magnitude image (Rician)
        real, imaginary = torch.randn((2, *image.shape), generator=rng, device=image.device) * how.noise
        image = torch.sqrt((image + real) ** 2 + imaginary**2)
    return image * how.gain


def _blur(image: Float[Tensor, "c x y z"], sigma_voxels: Spacing) -> Float[Tensor, "c x y z"]:
    volume = image[:, None]
    for axis, sigma in enumerate(sigma_voxels):
        reach = int(np.ceil(KERNEL_SIGMAS * sigma))
        if reach == 0:
            continue
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=image.device) / sigma) ** 2)
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[axis + 2], padding[axis] = len(kernel), reach
        volume = F.conv3d(volume, (kernel / kernel.sum()).view(shape), padding=padding)
    return volume[:, 0]


def _thicken(image: Float[Tensor, "c x y z"], how: Change) -> Float[Tensor, "c x y z"]:
    if how.slice_voxels <= 1:
        return image
    x, y, z = (max(1, round(n / how.slice_voxels)) if axis == how.slice_axis else n for axis, n in enumerate(image.shape[1:]))
    thick = F.adaptive_avg_pool3d(image[None], (x, y, z))
    return F.interpolate(thick, size=image.shape[1:], mode="trilinear", align_corners=False)[0]
