"""The U-Net on the folded grid: shapes, folding, and that it leaves no stripes of two voxels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from medsynth.nets.unet import CELLS, ResEncUNet, binomial_on_folded, fold, unfold

even = st.integers(1, 4).map(lambda n: 2 * n)


@settings(deadline=None)
@given(st.integers(1, 2), st.integers(1, 3), even, even, even)
def test_unfold_undoes_fold(b: int, c: int, x: int, y: int, z: int) -> None:
    image = torch.arange(b * c * x * y * z, dtype=torch.float32).reshape(b, c, x, y, z)
    folded = fold(image)
    assert folded.shape == (b, 8 * c, x // 2, y // 2, z // 2)
    assert torch.equal(unfold(folded), image)
    assert torch.equal(fold(unfold(folded)), folded)


def test_a_folded_voxel_holds_its_eight_neighbours() -> None:
    image = torch.randn(1, 1, 4, 4, 4)
    assert torch.equal(fold(image)[0, :, 1, 0, 1].reshape(2, 2, 2), image[0, 0, 2:4, 0:2, 2:4])


def test_the_binomial_on_the_folded_grid_is_the_binomial_on_the_full_one() -> None:
    image = torch.randn(1, 1, 8, 6, 10, dtype=torch.float64)
    on_folded = unfold(F.conv3d(fold(image), binomial_on_folded().double(), padding=1))
    torch.testing.assert_close(on_folded, _binomial(image))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=CELLS, max_size=CELLS))
def test_a_stripe_of_two_voxels_comes_out_flat(cells: list[float]) -> None:
    stripes = torch.tensor(cells, dtype=torch.float64)[None, :, None, None, None].expand(1, CELLS, 5, 5, 5)
    smoothed = unfold(F.conv3d(stripes, binomial_on_folded().double(), padding=1))[..., 2:-2, 2:-2, 2:-2]
    torch.testing.assert_close(smoothed, torch.full_like(smoothed, sum(cells) / CELLS))


def test_the_last_convolution_holds_the_smoothing() -> None:
    net = _net(out_channels=3)
    features = torch.randn(1, net.out.in_channels, 4, 6, 4)
    folded_in = unfold(F.conv3d(features, *net._smoothed(), padding=1))
    afterwards = _binomial(unfold(F.conv3d(features, net.out.weight, net.out.bias)))
    inside = (slice(None), slice(None), *[slice(1, -1)] * 3)  # the filter sees zeros past the border, the folded bias does not
    torch.testing.assert_close(folded_in[inside], afterwards[inside], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("levels", "stride"), [(3, 8), (4, 16)])
def test_the_stride_is_the_smallest_side_that_works(levels: int, stride: int) -> None:
    net = _net(channels=(8,) * levels)
    assert net.stride == stride
    side = 2 * stride  # a single voxel at the bottom has no spread to normalise
    assert net(torch.randn(1, 1, side, side + stride, side)).shape == (1, 2, side, side + stride, side)
    with pytest.raises(RuntimeError):
        net(torch.randn(1, 1, side + stride // 2, side, side))


def test_channels_and_batch_come_out_as_asked_for() -> None:
    net = _net(in_channels=2, out_channels=5, head_channels=24)
    assert net(torch.randn(3, 2, 16, 16, 16)).shape == (3, 5, 16, 16, 16)


def test_every_parameter_learns() -> None:
    net = _net()
    net(torch.randn(1, 1, 16, 16, 16)).square().sum().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_the_smoothing_is_not_part_of_the_weights() -> None:
    assert not [name for name in _net().state_dict() if "smoothing" in name]


def _net(*, in_channels: int = 1, out_channels: int = 2, head_channels: int = 16, channels: tuple[int, ...] = (8, 8, 16)) -> ResEncUNet:
    torch.manual_seed(0)
    return ResEncUNet(in_channels=in_channels, out_channels=out_channels, channels=channels, head_channels=head_channels, groups=4)


def _binomial(image: Tensor) -> Tensor:
    """(1, 2, 1)/4 along each axis, zero outside: the filter as it is written in books."""
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=image.dtype)
    kernel = torch.einsum("i,j,k->ijk", taps, taps, taps).expand(image.shape[1], 1, 3, 3, 3)
    return F.conv3d(image, kernel, padding=1, groups=image.shape[1])
