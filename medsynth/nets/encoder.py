"""A small convolutional 3-D encoder, and the masked autoencoder that teaches it without labels.

Masked autoencoding for convolutions with GroupNorm, as the drift core's authors train their feature encoder (Deng 2026, arXiv 2602.04770):
blocks of the image are set to zero, a light U-Net decoder fills them in, and only what was hidden counts. Input voxels are folded two
by two by two into channels, so that all convolutions run on an eighth of the voxels.
"""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from monai.networks.blocks.segresnet_block import ResBlock, get_conv_layer, get_upsample_layer
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from medsynth.nets.unet import CELLS, FOLD, fold, unfold

MASK_BLOCK = 8  # voxels along each side of a block that is hidden as a whole
MASK_SHARE = 0.6
# Bounds at thirty how much a normalisation raises faint differences, and their gradients, where all else is constant, as in air.
NORM_EPSILON = 1e-3


class EncoderConfig(BaseModel):
    """channels, blocks: of each stage, from fine to coarse. groups: of the normalisation; divides every entry of `channels`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    in_channels: int = Field(default=2, gt=0)
    channels: tuple[int, ...] = (16, 32, 64, 128)
    blocks: tuple[int, ...] = (1, 2, 2, 2)
    groups: int = Field(default=8, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "EncoderConfig":
        if not self.channels or len(self.blocks) != len(self.channels):
            raise ValueError("channels and blocks need one entry for each stage")
        if any(width <= 0 or width % self.groups for width in self.channels) or min(self.blocks) < 1:
            raise ValueError("channels must be multiples of groups, and each stage needs a block")
        return self


class Encoder(nn.Module):
    """Stage maps of an image. The first stage has half the image's resolution, each further one half of the last."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        norm = _norm(config)
        self.stride = FOLD * 2 ** (len(config.channels) - 1)
        self.stem = get_conv_layer(3, config.in_channels * CELLS, config.channels[0])
        self.downsamples = nn.ModuleList(get_conv_layer(3, fine, coarse, stride=2) for fine, coarse in pairwise(config.channels))
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResBlock(3, width, norm) for _ in range(count)))
            for width, count in zip(config.channels, config.blocks, strict=True)
        )

    def forward(self, x: Float[Tensor, "b c x y z"]) -> list[Float[Tensor, "b k i j l"]]:
        """One map a stage, fine to coarse. Sides of the image must be multiples of `stride`."""
        features = self.stem(fold(x).contiguous(memory_format=torch.channels_last_3d))
        maps = [self.stages[0](features)]
        for downsample, stage in zip(self.downsamples, self.stages[1:], strict=True):
            maps.append(stage(downsample(maps[-1])))
        return maps


class MaskedAutoencoder(nn.Module):
    """An encoder with a light U-Net decoder that fills in hidden blocks; only the encoder is kept after training."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        coarse_to_fine = config.channels[::-1]
        self.encoder = Encoder(config)
        self.narrowing = nn.ModuleList(get_conv_layer(3, coarse, fine, kernel_size=1) for coarse, fine in pairwise(coarse_to_fine))
        self.upsample = get_upsample_layer(3, config.channels[0])
        self.merging = nn.ModuleList(ResBlock(3, width, _norm(config)) for width in coarse_to_fine[1:])
        self.out = nn.Conv3d(config.channels[0], config.in_channels * CELLS, 1)

    def loss(self, x: Float[Tensor, "b c x y z"], rng: torch.Generator) -> Float[Tensor, ""]:
        """Mean squared error on the voxels that a mask drawn from `rng` hides."""
        mask = draw_mask(x, rng)
        return masked_mse(self.reconstruct(x, mask), x, mask)

    def reconstruct(self, x: Float[Tensor, "b c x y z"], mask: Bool[Tensor, "b 1 x y z"]) -> Float[Tensor, "b c x y z"]:
        """The image as read off what the mask leaves: where it is true, voxels are zeroed before the encoder sees them."""
        *skips, features = self.encoder(x.masked_fill(mask, 0.0))
        for narrow, merge, skip in zip(self.narrowing, self.merging, reversed(skips), strict=True):
            features = merge(self.upsample(narrow(features)) + skip)
        return unfold(self.out(features)).float()


def draw_mask(x: Float[Tensor, "b c x y z"], rng: torch.Generator) -> Bool[Tensor, "b 1 x y z"]:
    """MASK_SHARE of each image's blocks, chosen at random; sides must be multiples of MASK_BLOCK. `rng` is on the CPU on every device."""
    blocks = (x.shape[0], *(side // MASK_BLOCK for side in x.shape[2:]))
    order = torch.rand(blocks, generator=rng).flatten(1).argsort(1)  # of each image: its blocks numbered at random
    hidden = (order < round(MASK_SHARE * order.shape[1])).reshape(blocks)[:, None].to(x.device)
    for axis in (2, 3, 4):
        hidden = hidden.repeat_interleave(MASK_BLOCK, axis)
    return hidden


def masked_mse(a: Float[Tensor, "b c x y z"], b: Float[Tensor, "b c x y z"], mask: Bool[Tensor, "b 1 x y z"]) -> Float[Tensor, ""]:
    """Mean squared difference where the mask is true."""
    return (((a - b) ** 2).mean(1, keepdim=True) * mask).sum() / mask.sum()


def _norm(config: EncoderConfig) -> tuple[str, dict[str, float]]:
    return ("group", {"num_groups": config.groups, "eps": NORM_EPSILON})
