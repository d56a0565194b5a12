"""The generator contract, and the objective of the GDM-style generator."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from medsynth.core.errors import UsageError
from medsynth.core.generator import Condition, Generator, Target
from medsynth.core.quantity import CT
from medsynth.generators import build
from medsynth.generators.gdm import GDM, NETWORK_MAX, Config, class_shares

CLASS_HU = Config().class_hu
TINY = {"channels": (8, 8, 16), "head_channels": 16, "groups": 4}
SIDE = 16


def test_gdm_keeps_the_generator_contract() -> None:
    assert isinstance(_tiny(), Generator)


def test_losses_are_finite_scalars_under_their_own_names() -> None:
    losses = _losses(_tiny(), *_pair())
    assert set(losses) == {"cross_entropy", "l1"}
    assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in losses.values())


@pytest.mark.parametrize("name", ["cross_entropy", "l1"])
def test_each_loss_alone_reaches_the_first_layer(name: str) -> None:
    generator = _tiny()
    _losses(generator, *_pair())[name].backward()
    first = next(generator.parameters())
    assert first.grad is not None
    assert first.grad.abs().sum() > 0


def test_a_voxel_of_weight_zero_teaches_nothing() -> None:
    generator, (condition, target) = _tiny(), _pair()
    weight = target.weight.clone()
    weight[..., : SIDE // 2] = 0
    spoilt = target.image.clone()
    spoilt[..., : SIDE // 2] = 1.0
    gradients = [_gradient(generator, condition, Target(image=image, weight=weight)) for image in (target.image, spoilt)]
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)


def test_a_pair_without_a_known_voxel_gives_zero_loss_and_no_gradient() -> None:
    generator, (condition, target) = _tiny(), _pair()
    blind = Target(image=target.image, weight=torch.zeros_like(target.weight))
    assert all(loss == 0 for loss in _losses(generator, condition, blind).values())
    assert not _gradient(generator, condition, blind).any()


def test_every_sample_counts_alike_however_much_of_it_is_known() -> None:
    """So that processes which share a batch out have the same mean as one."""
    generator, (condition, target) = _tiny(), _pair()
    sparse = target.weight.clone()
    sparse[..., : SIDE // 2] = 0
    alone = [_losses(generator, condition, Target(image=target.image, weight=weight)) for weight in (target.weight, sparse)]
    both = Target(image=torch.cat([target.image] * 2), weight=torch.cat([target.weight, sparse]))
    together = _losses(generator, Condition(image=torch.cat([condition.image] * 2)), both)
    for name, value in together.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2)


def test_weights_count_relative_to_their_sum() -> None:
    generator, (condition, target) = _tiny(), _pair()
    halved = Target(image=target.image, weight=target.weight / 2)
    for whole, half in zip(*(_losses(generator, condition, t).values() for t in (target, halved)), strict=True):
        torch.testing.assert_close(whole, half)


def test_l1_is_in_thousands_of_hu_times_its_weight() -> None:
    generator, (condition, target) = _tiny(l1_weight=3.0), _pair()
    error_hu = CT().fit().half_width * (generator.sample(condition) - target.image).abs().mean()
    torch.testing.assert_close(_losses(generator, condition, target)["l1"], 3 * error_hu / 1000)


def test_cross_entropy_is_least_at_the_true_shares() -> None:
    """Gibbs' inequality, with a network that can only give one constant answer."""
    condition, _ = _pair()
    shares = torch.tensor([0.1, 0.2, 0.05, 0.25, 0.2, 0.15, 0.05])
    target = Target(image=torch.zeros_like(condition.image), weight=torch.ones_like(condition.image), shares=_everywhere(shares))
    entropy = -(shares * shares.log()).sum()
    at_truth, beside = (_losses(_constant(logits), condition, target)["cross_entropy"] for logits in (shares.log(), (shares + 0.1).log()))
    torch.testing.assert_close(at_truth, entropy)
    assert beside > at_truth + 1e-3


def test_shares_of_the_source_go_before_those_read_off_the_image() -> None:
    generator, (condition, target) = _tiny(), _pair()
    derived = Target(image=target.image, weight=target.weight, shares=class_shares(target.image, generator.class_values))
    air = Target(image=target.image, weight=target.weight, shares=_everywhere(torch.eye(len(CLASS_HU))[0]))
    read_off, given_same, given_air = (_losses(generator, condition, t)["cross_entropy"] for t in (target, derived, air))
    assert read_off == given_same
    assert read_off != given_air


@settings(deadline=None)
@given(st.lists(st.floats(-3000, 6000), min_size=1, max_size=8))
def test_the_expectation_of_class_shares_is_the_image_within_the_classes_range(hu: list[float]) -> None:
    image = CT().fit().encode(torch.tensor(hu))[None, None, :, None, None]
    values = CT().fit().encode(torch.tensor(CLASS_HU))
    shares = class_shares(image, values)
    expectation = torch.einsum("bkxyz,k->bxyz", shares, values)
    torch.testing.assert_close(expectation[:, None], image.clamp(values[0], values[-1]))
    torch.testing.assert_close(shares.sum(1), torch.ones(1, len(hu), 1, 1))
    assert (shares >= 0).all()
    assert ((shares > 0).sum(1) <= 2).all()


def test_a_class_value_is_its_class_alone() -> None:
    values = CT().fit().encode(torch.tensor(CLASS_HU))
    assert torch.equal(class_shares(values[None, None, :, None, None], values)[0, :, :, 0, 0], torch.eye(len(CLASS_HU)))


def test_a_sample_is_one_image_between_the_outermost_classes() -> None:
    condition, _ = _pair()
    image = CT().fit().decode(_tiny().sample(condition))
    assert image.shape == condition.image.shape
    assert image.min() >= CLASS_HU[0]
    assert image.max() <= CLASS_HU[-1]


def test_a_sample_draws_nothing_at_random() -> None:
    generator, (condition, _) = _tiny().eval(), _pair()
    rng = torch.Generator().manual_seed(1)
    before = rng.get_state()
    assert torch.equal(generator.sample(condition, rng), generator.sample(condition))
    assert torch.equal(rng.get_state(), before)


def test_what_is_brighter_than_tissue_is_cut_off() -> None:
    generator, (condition, _) = _tiny(), _pair()
    bright = Condition(image=torch.where(condition.image > 0.5, 1e4, condition.image))
    cut = Condition(image=torch.where(condition.image > 0.5, NETWORK_MAX, condition.image))
    assert torch.equal(generator.sample(bright), generator.sample(cut))


def test_a_few_steps_on_one_pair_lower_the_loss() -> None:
    generator, pair = _tiny(), _pair()
    optimizer = torch.optim.AdamW(generator.parameters(), lr=3e-3)
    totals = []
    for _ in range(15):
        total = torch.stack(list(_losses(generator, *pair).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.7 * totals[0]


def test_a_condition_and_a_target_move_whole() -> None:
    condition, target = _pair()
    moved = Condition(image=condition.image, age=torch.tensor([40.0])).to("meta")
    assert (moved.image.device.type, moved.age.device.type if moved.age is not None else "") == ("meta", "meta")
    assert moved.present is None
    assert {part.device.type for part in vars(target.to("meta")).values() if part is not None} == {"meta"}


def test_an_unknown_key_of_the_config_is_named() -> None:
    with pytest.raises(UsageError, match="chanels"):
        build("gdm", {"chanels": [8, 8, 16]})


@pytest.mark.parametrize("class_hu", [(0.0, -1000.0, 500.0), (-1000.0, 0.0, 0.0)])
def test_classes_out_of_order_are_refused(class_hu: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="ascend"):
        Config(class_hu=class_hu)


def test_the_stride_is_the_networks() -> None:
    assert _tiny().stride == _tiny().net.stride == 8


def _tiny(**settings: object) -> GDM:
    torch.manual_seed(0)
    return build("gdm", TINY | settings)


def _pair() -> tuple[Condition, Target]:
    """An MR of two tissues with its CT, batch of one."""
    rng = torch.Generator().manual_seed(1)
    noise = torch.rand(1, 1, SIDE, SIDE, SIDE, generator=rng)
    bone = torch.zeros_like(noise, dtype=torch.bool)
    bone[:, :, 4:12, 4:12, 4:12] = True
    hu = torch.where(bone, 700.0, 40.0)
    return Condition(image=noise * torch.where(bone, 0.2, 1.0)), Target(image=CT().fit().encode(hu), weight=torch.ones_like(noise))


def _losses(generator: GDM, condition: Condition, target: Target) -> dict[str, Tensor]:
    return generator.fidelity(generator.answer(condition), target)


def _gradient(generator: GDM, condition: Condition, target: Target) -> Tensor:
    generator.zero_grad()
    torch.stack(list(_losses(generator, condition, target).values())).sum().backward()
    return torch.cat([p.grad.flatten().clone() for p in generator.parameters() if p.grad is not None])


def _constant(logits: Tensor) -> GDM:
    """A generator that gives these logits everywhere, whatever it sees."""
    generator = _tiny()
    with torch.no_grad():
        generator.net.out.weight.zero_()
        assert generator.net.out.bias is not None
        generator.net.out.bias.copy_(logits.repeat_interleave(8))
    return generator


def _everywhere(shares: Tensor) -> Tensor:
    return shares[None, :, None, None, None].expand(1, -1, SIDE, SIDE, SIDE).contiguous()
