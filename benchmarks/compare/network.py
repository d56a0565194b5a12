"""The one network that all methods train: the package's U-Net, and two convolutions on the full grid.

The U-Net's answer is smoothed so that it shows no stripes, and its body runs in bfloat16: alone it could not carry noise up to the grid's
limit. The last convolutions see the inputs again, in full precision. Where the condition is nearly the answer, the network says what to
add to it: otherwise all of a small training goes into learning to copy (docs/log.md, "drifting on 18 views").
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.core.quantity import CT
from medsynth.generators.gdm import NETWORK_MAX
from medsynth.nets.unet import ResEncUNet

from .sizes import Size

INPUTS = 3  # condition, noise (or the image so far), time
COARSE, MIDDLE = 4, 8
START_HU = 40.0  # what an untrained network says
Image = Float[Tensor, "b 1 x y z"]


class Network(nn.Module):
    """(condition, noise, time) -> image, all in network units.

    base: the image, made from the condition, that the answer is added to; None where the condition is no such image.
    """

    def __init__(self, size: Size, base: Callable[[Image], Image] | None = None) -> None:
        super().__init__()
        self.base = base
        self.body = ResEncUNet(in_channels=INPUTS, out_channels=COARSE, channels=size.channels, head_channels=size.head_channels, groups=8)
        self.refine = nn.Conv3d(COARSE + INPUTS, MIDDLE, 3, padding=1)
        self.out = nn.Conv3d(MIDDLE, 1, 3, padding=1)
        if base is None:
            nn.init.constant_(self.out.bias, CT().fit().encode(START_HU))  # pyright: ignore[reportArgumentType]
        else:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, condition: Image, noise: Image, time: Float[Tensor, " b"]) -> Image:
        """time: whatever tells a method's evaluations apart, of order 1; 0 where there is one only."""
        inputs = torch.cat([condition.clamp(0, NETWORK_MAX), noise, time[:, None, None, None, None].expand_as(noise)], dim=1)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
            coarse = self.body(inputs)
        features = torch.cat([coarse.float(), inputs], dim=1).contiguous(memory_format=torch.channels_last_3d)
        answer = self.out(F.leaky_relu(self.refine(features), 0.1)).contiguous()
        return answer if self.base is None else self.base(condition) + answer
