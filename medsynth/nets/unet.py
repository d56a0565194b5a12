"""Residual-encoder 3-D U-Net that works on half the grid and answers on the full one.

The body is nnU-Net's residual-encoder U-Net (Isensee 2024) as MONAI builds it. Input voxels are folded two by two by two into channels, so
that all wide convolutions run on an eighth of the voxels; the last one unfolds. A plain unfolding (pixel shuffle) leaves stripes of two
voxels where the network is unsure. Here a binomial filter follows it: it is zero at just those frequencies, and since it is linear it
is folded into the last convolution's weights and costs nothing.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from monai.networks.nets.dynunet import DynUNet
from torch import Tensor, nn
from torch.nn import functional as F

FOLD = 2
CELLS = FOLD**3


class ResEncUNet(nn.Module):
    """Maps [b in x y z] to [b out x y z]; each of x, y, z must be a multiple of `stride`."""

    def __init__(self, *, in_channels: int, out_channels: int, channels: Sequence[int], head_channels: int, groups: int) -> None:
        super().__init__()
        levels = len(channels)
        folded = in_channels * CELLS
        self.stride = FOLD * 2 ** (levels - 1)
        self.body = DynUNet(
            spatial_dims=3,
            in_channels=folded,
            out_channels=head_channels - folded,
            kernel_size=[3] * levels,
            strides=[1] + [2] * (levels - 1),
            upsample_kernel_size=[2] * (levels - 1),
            filters=list(channels),
            norm_name=("group", {"num_groups": groups}),
            act_name=("leakyrelu", {"negative_slope": 0.1, "inplace": True}),
            res_block=True,
        )
        # MONAI keeps every block under two names; its forward pass uses `skip_layers`. One name each, or weights are stored twice.
        for name in ("input_block", "downsamples", "bottleneck", "upsamples"):
            delattr(self.body, name)
        self.head = nn.Conv3d(head_channels, 2 * head_channels, 3, padding=1)
        self.out = nn.Conv3d(2 * head_channels, out_channels * CELLS, 1)
        self.register_buffer("smoothing", binomial_on_folded(), persistent=False)

    def forward(self, x: Float[Tensor, "b in x y z"]) -> Float[Tensor, "b out x y z"]:
        folded = fold(x).contiguous(memory_format=torch.channels_last_3d)
        features = self.body(folded)
        features = torch.cat([features, folded.to(features.dtype)], dim=1).contiguous(memory_format=torch.channels_last_3d)
        features = F.leaky_relu(self.head(features), 0.1)
        return unfold(F.conv3d(features, *self._smoothed(), padding=1))

    def _smoothed(self) -> tuple[Float[Tensor, "o i 3 3 3"], Float[Tensor, " o"]]:
        """Weight and bias of the 1^3 convolution `out`, unfolding and smoothing together: one 3^3 convolution on the folded grid."""
        assert self.out.bias is not None
        weight, bias = (part.unflatten(0, (-1, CELLS)) for part in (self.out.weight[:, :, 0, 0, 0], self.out.bias))
        bias = torch.einsum("dcijk,oc->od", self.smoothing, bias)
        return torch.einsum("dcijk,oce->odeijk", self.smoothing, weight).flatten(0, 1), bias.flatten()


def fold(x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c8 x2 y2 z2"]:
    """Every 2^3 block of voxels into 8 channels (pixel unshuffle in 3-D)."""
    b, c, nx, ny, nz = x.shape
    blocks = x.reshape(b, c, nx // FOLD, FOLD, ny // FOLD, FOLD, nz // FOLD, FOLD)
    return blocks.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * CELLS, nx // FOLD, ny // FOLD, nz // FOLD)


def unfold(x: Float[Tensor, "b c8 x y z"]) -> Float[Tensor, "b c x2 y2 z2"]:
    """Inverse of `fold`."""
    b, c, nx, ny, nz = x.shape
    blocks = x.reshape(b, c // CELLS, FOLD, FOLD, FOLD, nx, ny, nz)
    return blocks.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c // CELLS, nx * FOLD, ny * FOLD, nz * FOLD)


def binomial_on_folded() -> Float[Tensor, "8 8 3 3 3"]:
    """The separable filter (1, 2, 1)/4 on the full grid as a convolution [to from i j k] between the 8 cells of the folded grid."""
    axis = torch.zeros(2, 2, 3)
    for to in range(2):
        for shift, share in ((-1, 0.25), (0, 0.5), (1, 0.25)):
            block, cell = divmod(to + shift, 2)
            axis[to, cell, block + 1] += share
    kernel = torch.einsum("adi,bej,cfk->abcdefijk", axis, axis, axis)
    return kernel.reshape(CELLS, CELLS, 3, 3, 3)
