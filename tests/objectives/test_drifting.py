"""The realism objective: what it learns from, what it refuses, and that it makes smooth images textured."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from medsynth.core.errors import UsageError
from medsynth.core.recipe import DriftTable
from medsynth.objectives.drifting import Drifting

TABLE = DriftTable(queue=8, drawn=4, generated_queue=0, locations=16)


def encoder(ct_hu: Tensor) -> Sequence[Tensor]:
    """Two stages without weights: voxels and their differences, and the same at half the grid."""
    fine = torch.cat([ct_hu, ct_hu.diff(dim=2, prepend=ct_hu[:, :, :1])], dim=1) / 100
    return [fine, torch.nn.functional.avg_pool3d(fine, 2)]


def images(seed: int, *, sd: float = 30.0, count: int = 4) -> Tensor:
    return sd * torch.randn(count, 1, 8, 8, 8, generator=torch.Generator().manual_seed(seed)) + 40


PLACE = torch.tensor([0, 0, 1, 1])


def test_figures_are_means_over_the_maps_and_the_gradient_goes_to_the_image() -> None:
    drifting = Drifting(encoder, TABLE, batch=4)
    image, target = images(0).requires_grad_(), images(1).requires_grad_()
    loss, figures = drifting(image, target, PLACE)
    loss.backward()
    assert set(figures) == {"scale", "rms_0.02", "rms_0.05", "rms_0.2"}
    assert image.grad is not None
    assert (image.grad.flatten(1).norm(dim=1) > 0).all()
    assert target.grad is None


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_too_few_generated_samples_are_refused_with_a_reason(batch: int) -> None:
    with pytest.raises(UsageError, match="too few") as caught:
        Drifting(encoder, TABLE, batch=batch)
    assert caught.value.code == "E-DRIFT"
    assert "generated_queue" in caught.value.remedy


def test_kept_generated_samples_serve_a_small_batch() -> None:
    """They repel: with them the force on a single sample is another."""
    drifting = Drifting(encoder, TABLE.model_copy(update={"generated_queue": 4, "queue": 0}), batch=1)
    forces = []
    for _ in range(2):
        image = images(2, count=1).requires_grad_()
        loss, _ = drifting(image, images(3, count=1), torch.tensor([0]))
        loss.backward()
        forces.append(image.grad)
    assert not torch.allclose(forces[0], forces[1])


def test_real_samples_of_earlier_steps_draw_too() -> None:
    drifting, forgetful = (Drifting(encoder, TABLE.model_copy(update={"queue": q}), batch=4) for q in (8, 0))
    losses = []
    for one in (drifting, forgetful):
        one(images(4), images(5), PLACE)
        losses.append(one(images(6), images(7), PLACE)[1]["scale"])
    assert losses[0] != losses[1]


def test_units_come_from_real_features() -> None:
    drifting = Drifting(encoder, TABLE, batch=4)
    targets = [images(seed) for seed in range(8)]
    _, before = drifting(images(8), images(9), PLACE)
    drifting.calibrate(targets)
    _, after = drifting(images(8), images(9), PLACE)
    assert drifting.calibrated
    assert after["scale"] != before["scale"]
    _, louder = _calibrated([100 * t for t in targets])(100 * images(8), 100 * images(9), PLACE)
    torch.testing.assert_close(louder["scale"], _calibrated(targets)(images(8), images(9), PLACE)[1]["scale"], rtol=1e-2, atol=1e-3)


def _calibrated(targets: list[Tensor]) -> Drifting:
    drifting = Drifting(encoder, TABLE, batch=4)
    drifting.calibrate(targets)
    return drifting


def test_the_state_goes_through_a_checkpoint() -> None:
    drifting, other = _calibrated([images(seed) for seed in range(4)]), Drifting(encoder, TABLE, batch=4)
    drifting(images(4), images(5), PLACE)
    other.load(copy.deepcopy(drifting.state()))
    torch.testing.assert_close(drifting(images(6), images(7), PLACE), other(images(6), images(7), PLACE))


def test_a_smooth_image_gets_the_texture_of_real_ones() -> None:
    drifting = _calibrated([images(seed) for seed in range(20, 24)])
    image = images(10, sd=3.0).requires_grad_()
    optimizer = torch.optim.Adam([image], lr=1.0)
    for step in range(60):
        optimizer.zero_grad()
        drifting(image, images(30 + step), PLACE)[0].backward()
        optimizer.step()
    assert image.std() > 20
    assert abs(image.mean() - 40) < 10


@pytest.mark.parametrize("masked", [True, False])
def test_images_that_equal_their_targets_stay(masked: bool) -> None:
    """Patches of different places differ much more from each other than from their own targets, as anatomy does."""
    drifting = Drifting(encoder, TABLE.model_copy(update={"queue": 0, "masked": masked}), batch=4)
    target = images(40) + 200 * torch.arange(4.0).reshape(4, 1, 1, 1, 1)
    drifting.calibrate([target])
    exact = target.clone().requires_grad_()
    _, figures = drifting(exact, target, PLACE)
    assert all(figures[name] < 1e-4 for name in figures if name.startswith("rms"))


def test_stages_may_be_chosen() -> None:
    drifting = Drifting(encoder, TABLE.model_copy(update={"stages": (1,), "levels": ("global",)}), batch=4)
    drifting.calibrate([images(0)])
    assert "1 maps, 4 channels" in drifting.describe()


def test_tiles_of_one_patch_are_samples() -> None:
    drifting = Drifting(encoder, TABLE.model_copy(update={"tile": (8, 8, 8), "queue": 0, "generated_queue": 64}), batch=1)
    image = images(50, count=4).transpose(0, 2).reshape(1, 1, 8, 8 * 4, 8).requires_grad_()
    loss, _ = drifting(image, images(51, count=4).transpose(0, 2).reshape(1, 1, 8, 8 * 4, 8), torch.tensor([2]))
    loss.backward()
    assert image.grad is not None
    assert (image.grad.unflatten(3, (4, 8)).abs().sum((0, 1, 2, 4, 5)) > 0).all()
