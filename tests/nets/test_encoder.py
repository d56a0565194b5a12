"""The encoder and its masked autoencoder: stages, masks, what the loss looks at, and what it costs beside the generator."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medsynth import zoo
from medsynth.generators import build
from medsynth.nets.encoder import MASK_BLOCK, MASK_SHARE, Encoder, EncoderConfig, MaskedAutoencoder, draw_mask, masked_mse

TINY = EncoderConfig(in_channels=2, channels=(8, 16, 16), blocks=(1, 1, 2), groups=4)


def test_each_stage_halves_the_one_before() -> None:
    encoder = Encoder(TINY)
    assert encoder.stride == 8
    maps = encoder(torch.randn(2, 2, 16, 24, 32))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 8, 12, 16), (2, 16, 4, 6, 8), (2, 16, 2, 3, 4)]


def test_sides_that_cannot_be_folded_are_no_silent_crop() -> None:
    with pytest.raises(RuntimeError):
        Encoder(TINY)(torch.randn(1, 2, 17, 16, 16))


@pytest.mark.parametrize(
    "settings",
    [{"channels": (8, 16), "blocks": (1,)}, {"channels": (8, 12), "blocks": (1, 1)}, {"channels": (8,), "blocks": (0,)}, {"width": 3}],
)
def test_settings_that_fit_no_network_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EncoderConfig(**settings)


def test_a_mask_hides_its_share_of_whole_blocks_in_every_image() -> None:
    mask = draw_mask(torch.zeros(3, 2, 32, 40, 24), torch.Generator().manual_seed(0))
    assert mask.shape == (3, 1, 32, 40, 24)
    blocks = mask.reshape(3, 4, MASK_BLOCK, 5, MASK_BLOCK, 3, MASK_BLOCK).movedim((2, 4, 6), (4, 5, 6)).flatten(4)
    assert torch.equal(blocks.any(-1), blocks.all(-1))
    assert blocks.any(-1).flatten(1).sum(1).tolist() == [round(MASK_SHARE * 60)] * 3
    assert not torch.equal(mask[0], mask[1])


def test_a_mask_follows_from_its_generator() -> None:
    x = torch.zeros(2, 1, 16, 16, 16)
    first, same, other = (draw_mask(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_network_never_sees_what_is_hidden() -> None:
    network, x, mask = _scene()
    hidden_changed = torch.where(mask, torch.randn_like(x), x)
    visible_changed = torch.where(mask, x, x + 1)
    seen = network.reconstruct(x, mask)
    assert torch.equal(network.reconstruct(hidden_changed, mask), seen)
    assert not torch.equal(network.reconstruct(visible_changed, mask), seen)


def test_only_what_is_hidden_counts() -> None:
    _, x, mask = _scene()
    guess = torch.zeros_like(x)
    expected = (x**2)[mask.expand_as(x)].mean()
    torch.testing.assert_close(masked_mse(guess, x, mask), expected)
    assert masked_mse(torch.where(mask, x, 9.0), x, mask) == 0


def test_the_loss_is_that_of_its_own_mask() -> None:
    network, x, _ = _scene()
    mask = draw_mask(x, torch.Generator().manual_seed(4))
    expected = masked_mse(network.reconstruct(x, mask), x, mask)
    assert network.loss(x, torch.Generator().manual_seed(4)) == expected


def test_every_parameter_learns() -> None:
    network, x, _ = _scene()
    network.loss(x, torch.Generator().manual_seed(0)).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_it_learns_to_fill_in_a_gradient() -> None:
    """Forty steps on ramps beat predicting their mean."""
    torch.manual_seed(0)
    network = MaskedAutoencoder(TINY)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    ramp = torch.linspace(-1, 1, 16).expand(2, 2, 16, 16, 16)
    losses: list[float] = []
    for step in range(40):
        loss = network.loss(ramp, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * ramp.var()
    assert losses[-1] < losses[0]


def test_the_shipped_encoder_costs_at_most_a_seventh_of_the_generator() -> None:
    """Multiply-adds of one forward pass on the default model's patch; the drift step's budget rests on it."""
    card = zoo.find("mri2ct-head").card
    patch = card.grid.patch
    with torch.device("meta"):
        generator = build(card.generator, card.config)
        encoder = Encoder(EncoderConfig(**zoo.find_encoder("encoder-mae3d").card.config))
        of_generator = _multiply_adds(generator.net, torch.zeros(1, 1, *patch))
        of_encoder = _multiply_adds(encoder, torch.zeros(1, 2, *patch))
    assert of_encoder < 0.15 * of_generator


def _scene() -> tuple[MaskedAutoencoder, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 16, 16, 16)
    return MaskedAutoencoder(TINY), x, draw_mask(x, torch.Generator().manual_seed(0))


def _multiply_adds(network: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        network(x)
    return counter.get_total_flops() // 2
