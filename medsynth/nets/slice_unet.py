"""Residual 2-D U-Net without normalisation for slices of CT: it predicts a correction of an image that is consistent with its projections.

Without normalisation, so that a correction in HU does not depend on what else is in the slice. The wide convolutions run on half the grid.
What they unfold onto the full one starts alike in all four cells (ICNR; Aitken 2017), and two narrow convolutions there can even out what
is left. A binomial filter, as in `nets.unet`, leaves no checkerboard for certain, but costs a quarter of what is learned in a given time:
what few views leave in an image is as fine as its pixels (docs/log.md).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from monai.networks.blocks.segresnet_block import get_conv_layer
from torch import Tensor, nn
from torch.nn import functional as F

FOLD = 2
RESIDUAL_GAIN = 0.2  # of a block's last convolution at the start: deep, without normalisation, and still near the identity
TAIL_GAIN = 0.3  # small, not zero: a tail of zeros stays there for hundreds of steps (recipe: the median correction is zero, air)


class SliceUNet(nn.Module):
    """Maps [b in x y] to [b out x y]; x and y must be multiples of `stride`.

    channels, blocks: width and residual blocks of each level, from fine to coarse. refined: channels on the full grid. What it returns is
    float32 whatever the precision around it.
    """

    def __init__(self, *, in_channels: int, out_channels: int, channels: Sequence[int], blocks: Sequence[int], refined: int) -> None:
        super().__init__()
        self.stride = FOLD * 2 ** (len(channels) - 1)
        self.head = get_conv_layer(2, in_channels * FOLD**2, channels[0], bias=True)
        self.encoder = nn.ModuleList(_stage(width, count) for width, count in zip(channels, blocks, strict=True))
        self.downsamples = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairwise(channels))
        self.upsamples = nn.ModuleList(nn.Conv2d(coarse, fine * FOLD**2, 1) for fine, coarse in pairwise(channels))
        self.decoder = nn.ModuleList(_stage(width, count) for width, count in zip(channels[:-1], blocks[:-1], strict=True))
        self.unfolding = nn.Conv2d(channels[0], refined * FOLD**2, 1)
        _alike(self.unfolding)
        self.refine = nn.Conv2d(refined, refined, 3, padding=1)
        self.tail = nn.Conv2d(refined, out_channels, 3, padding=1)
        _scale(self.tail, TAIL_GAIN)

    def forward(self, x: Float[Tensor, "b in x y"]) -> Float[Tensor, "b out x y"]:
        features = self.head(F.pixel_unshuffle(x, FOLD).contiguous(memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for stage, downsample in zip(self.encoder, [*self.downsamples, None], strict=True):
            features = stage(features)
            if downsample is not None:
                skips.append(features)
                features = downsample(features)
        for upsample, stage, skip in reversed(list(zip(self.upsamples, self.decoder, skips, strict=True))):
            features = stage(F.pixel_shuffle(upsample(F.silu(features)), FOLD) + skip)
        fine = F.pixel_shuffle(self.unfolding(F.silu(features)), FOLD).contiguous(memory_format=torch.channels_last)
        return self.tail(F.silu(self.refine(fine))).float()


class ResidualBlock(nn.Module):
    """x + convolution(SiLU(convolution(x))), no normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = get_conv_layer(2, width, width, bias=True)
        self.second = get_conv_layer(2, width, width, bias=True)
        _scale(self.second.conv, RESIDUAL_GAIN)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Float[Tensor, "b c x y"]) -> Float[Tensor, "b c x y"]:
        return x + self.second(F.silu(self.first(x)))


def _stage(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(count)))


def _scale(convolution: nn.Conv2d, gain: float) -> None:
    with torch.no_grad():
        convolution.weight.mul_(gain)
        if convolution.bias is not None:
            convolution.bias.zero_()


def _alike(unfolding: nn.Conv2d) -> None:
    """All cells of a channel begin with the weights of the first."""
    with torch.no_grad():
        for values in (unfolding.weight, unfolding.bias):
            assert values is not None
            cells = values.unflatten(0, (-1, FOLD**2))
            cells.copy_(cells[:, :1].expand_as(cells).clone())
