"""The probe for a fault of oneDNN: it says of this machine what repeated gradients say."""

import torch
from torch import nn

from medsynth.nets.soundness import small_maps_are_sound


def test_the_probe_agrees_with_a_comparison_of_a_whole_layer() -> None:
    torch.manual_seed(1)
    layer, x = nn.Conv3d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last_3d), torch.randn(4, 64, 2, 2, 2)

    def gradient(half: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            answer = layer(x.contiguous(memory_format=torch.channels_last_3d))
        return torch.autograd.grad(answer.float().square().mean(), layer.weight)[0]

    right = bool((gradient(True) - gradient(False)).norm() <= 0.1 * gradient(False).norm())
    assert right or not small_maps_are_sound()
