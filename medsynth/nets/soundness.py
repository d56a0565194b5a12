"""Whether a convolution's gradient can be trusted in bfloat16 on this CPU.

oneDNN 3.12, which torch 2.13 ships, reads beyond its buffers on some CPUs (AMD Zen 5 among them) where a map has two voxels along an axis:
weights' gradients are then of any size and change from call to call (docs/log.md). Three voxels, or one, are computed rightly.
"""

from functools import cache

import torch
from torch import nn

from medsynth.nets.layout import channels_last

UNSAFE_SIDE = 2
PROBED = ((2, 2, 2), (2, 3, 3), (2, 4, 4))
TOLERANCE = 0.1  # bfloat16 itself is off by less than a hundredth


@cache
def small_maps_are_sound() -> bool:
    """Whether gradients of small maps agree with those in float32; takes some milliseconds, once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolution = channels_last(nn.Conv3d(16, 16, 3, padding=1, bias=False))
        maps = [torch.randn(4, 16, *sides).contiguous(memory_format=torch.channels_last_3d) for sides in PROBED]
    for x in maps:
        in_half, in_single = (_gradient(convolution, x, half=half) for half in (True, False))
        if not (in_half - in_single).norm() <= TOLERANCE * in_single.norm():  # not a number is no agreement either
            return False
    return True


def _gradient(convolution: nn.Conv3d, x: torch.Tensor, *, half: bool) -> torch.Tensor:
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        answer = convolution(x)
    (gradient,) = torch.autograd.grad(answer.float().square().mean(), convolution.weight)
    return gradient
