"""The slice network: shapes, no normalisation, no checkerboard, a start near the image that it corrects."""

import pytest
import torch

from medsynth.nets.slice_unet import SliceUNet


@pytest.fixture
def network() -> SliceUNet:
    torch.manual_seed(0)
    return SliceUNet(in_channels=3, out_channels=2, channels=(8, 16, 24), blocks=(1, 1, 2), refined=4)


def test_any_multiple_of_the_stride_is_answered_on_its_own_grid(network: SliceUNet) -> None:
    assert network.stride == 8
    assert network(torch.zeros(2, 3, 32, 48)).shape == (2, 2, 32, 48)


def test_the_answer_at_a_place_does_not_depend_on_what_is_far_away(network: SliceUNet) -> None:
    """A normalisation over the slice would make HU in one organ depend on another."""
    image = torch.randn(1, 3, 128, 32, generator=torch.Generator().manual_seed(1))
    changed = image.clone()
    changed[:, :, 96:] += 3
    torch.testing.assert_close(network(image)[:, :, :32], network(changed)[:, :, :32])


def test_an_untrained_network_corrects_little(network: SliceUNet) -> None:
    answer = network(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2)))
    assert 0 < answer.std() < 0.5


def test_a_flat_input_gives_no_checkerboard_before_training(network: SliceUNet) -> None:
    """Neighbours in the unfolded grid come from other channels of one convolution, which begin alike."""
    inner = network(torch.ones(1, 3, 64, 64))[0, :, 24:40, 24:40]
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)
    stripes = torch.tensor([1.0, -1.0]).repeat(8)
    for pattern in (board, stripes[:, None].expand(16, 16), stripes[None].expand(16, 16)):
        assert ((inner * pattern).mean((1, 2)).abs() < 1e-4).all()


def test_the_last_convolutions_keep_single_precision(network: SliceUNet) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.zeros(1, 3, 16, 16)).dtype == torch.float32
