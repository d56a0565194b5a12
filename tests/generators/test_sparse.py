"""The sparse-view generator: what its passes do, what it learns, and that slices stay in place."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from medsynth.core.generator import Condition, Target
from medsynth.core.quantity import CT
from medsynth.generators.sparse import CORRECTION_HU, Config, SparseView, shown_of
from medsynth.physics.acquisition import Acquisition, asked_of, first_image, from_slices, to_slices
from medsynth.physics.ct import attenuation, mu_to_hu, relative_residual
from medsynth.physics.geometry import ImageGrid, fan

CONFIG = Config(channels=(8, 16), blocks=(1, 1), refined=4, neighbours=1)
SCALE = CT().fit()
GEOMETRY = fan(18, detectors=96, pitch_mm=4.0)


def phantom(volumes: int, slices: int, size: int = 32) -> Tensor:
    """HU [b x y z]: a disc of water with a bone that lies at another place in each slice."""
    at = torch.arange(size) - (size - 1) / 2
    x, y = torch.meshgrid(at, at, indexing="ij")
    image = torch.where(x**2 + y**2 < (0.4 * size) ** 2, 0.0, -1000.0).expand(volumes, slices, size, size).clone()
    for i in range(volumes * slices):
        bone = (x - 4 + i) ** 2 + (y + 5) ** 2 < 9
        image[i // slices, i % slices][bone] = 800.0
    return image.permute(0, 2, 3, 1)


def condition(volume_hu: Tensor, passes: int = 1) -> Condition:
    acquisition = Acquisition(GEOMETRY, ImageGrid(size=volume_hu.shape[1], pixel_mm=6.0))
    operator = acquisition.operator(torch.device("cpu"))
    sinogram = operator.forward(attenuation(to_slices(volume_hu)))
    shown = shown_of(operator, sinogram, mu_to_hu(first_image(operator, sinogram)))
    image = SCALE.encode(torch.stack([from_slices(x, len(volume_hu)) for x in shown], dim=1))
    per_slice = sinogram.unflatten(0, (len(volume_hu), -1)).contiguous()
    return Condition(image=image, sinogram=per_slice, acquisition=acquisition, passes=passes)


@pytest.fixture
def generator() -> SparseView:
    torch.manual_seed(0)
    return SparseView(CONFIG)


def silent(generator: SparseView) -> SparseView:
    """The same without any correction."""
    torch.nn.init.zeros_(generator.net.tail.weight)
    return generator


def test_slices_and_volumes_turn_into_each_other() -> None:
    volume = torch.randn(2, 4, 5, 3)
    assert to_slices(volume).shape == (6, 5, 4)
    assert torch.equal(from_slices(to_slices(volume), 2), volume)
    assert to_slices(volume)[3, 0, 0] == volume[1, -1, -1, 0]  # left and back in LPS are the low ends in RAS


@pytest.mark.parametrize("passes", [1, 3])
def test_without_a_correction_every_slice_is_the_first_image_in_its_place(generator: SparseView, passes: int) -> None:
    given = condition(phantom(2, 3), passes)
    answer = silent(generator).sample(given)
    difference_hu = (answer - given.image[:, :1]).abs().mean() * SCALE.half_width
    assert difference_hu < (1e-2 if passes == 1 else 20)  # between passes it is led back to the data


def test_so_many_evaluations_are_made_as_passes_are_asked_for(generator: SparseView) -> None:
    calls: list[int] = []
    generator.net.register_forward_hook(lambda *_: calls.append(1))
    generator.sample(condition(phantom(1, 2), passes=3))
    assert len(calls) == 3


def test_the_network_sees_what_leads_the_image_back_to_the_data() -> None:
    given = condition(phantom(1, 2))
    assert given.sinogram is not None
    operator, sinogram = given.acquisition.operator(torch.device("cpu")), given.sinogram[0]
    wrong_hu = to_slices(phantom(1, 2)[:]) + 60 * (to_slices(phantom(1, 2)) > -500)
    wrong = attenuation(wrong_hu)
    before, after = (relative_residual(operator, x, sinogram).mean() for x in (wrong, asked_of(operator, sinogram, wrong)[0]))
    assert after < 0.5 * before


def test_a_slice_sees_its_neighbours_and_nothing_of_other_volumes(generator: SparseView) -> None:
    given = condition(phantom(2, 3))
    changed = Condition(image=given.image.clone(), sinogram=given.sinogram, acquisition=given.acquisition)
    changed.image[0, :, :, :, 2] += 0.05
    differs = [
        (a != b).any().item()
        for a, b in zip(to_slices(generator.sample(given)[:, 0]), to_slices(generator.sample(changed)[:, 0]), strict=True)
    ]
    assert differs == [False, True, True, False, False, False]


def test_the_expected_error_is_learned_without_moving_the_image(generator: SparseView) -> None:
    answer = torch.zeros(1, 2, 4, 4, 2, requires_grad=True)
    target = Target(image=torch.full((1, 1, 4, 4, 2), 0.1), weight=torch.ones(1, 1, 4, 4, 2))
    generator.fidelity(answer, target)["error_likelihood"].backward()
    assert answer.grad is not None
    assert (answer.grad[:, 0] == 0).all()
    assert (answer.grad[:, 1] != 0).all()


def test_the_likelihood_is_least_where_the_expected_error_is_the_error(generator: SparseView) -> None:
    error_hu = 50.0
    target = Target(image=torch.full((1, 1, 2, 2, 2), SCALE.encode(error_hu) - SCALE.encode(0.0)), weight=torch.ones(1, 1, 2, 2, 2))

    def likelihood(expected_hu: float) -> float:
        answer = torch.zeros(1, 2, 2, 2, 2)
        answer[:, 1] = np.log(expected_hu / CORRECTION_HU)
        return generator.fidelity(answer, target)["error_likelihood"].item()

    assert likelihood(error_hu) < min(likelihood(0.8 * error_hu), likelihood(1.2 * error_hu))
    answer = torch.full((1, 2, 1, 1, 1), float(np.log(0.5)))
    assert generator.uncertainty(answer).item() == pytest.approx(50.0)


def test_a_network_learns_to_correct_a_slice(generator: SparseView) -> None:
    volume = phantom(1, 2)
    given, target = condition(volume), Target(image=SCALE.encode(volume)[:, None], weight=torch.ones(1, 1, 32, 32, 2))
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(60):
        loss = generator.fidelity(generator.answer(given), target)["log_rmse"]
        losses.append(loss.exp().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_a_window_is_that_part_of_the_whole_answer(generator: SparseView) -> None:
    """But for the border, where the network lacks what lies beyond. Without a correction the two agree everywhere."""
    whole = condition(phantom(1, 2))
    given = replace(whole, window=(8, 4, 16))
    answer, part = silent(generator).answer(whole), generator.answer(given)
    assert part.shape == (1, 2, 16, 16, 2)
    torch.testing.assert_close(part[:, :1], answer[:, :1, 8:24, 4:20], rtol=1e-3, atol=1e-3)
