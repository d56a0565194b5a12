"""Coordination of two gradients: what each method promises, sample by sample."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from medsynth.core.coordinate import PairProjector, coordinate

METHODS = ("fidelity-first", "sum", "pcgrad", "mgda", "config", "upgrad")


def pair(seed: int, against: float) -> tuple[Tensor, Tensor]:
    """Two gradients [4 2 3 3 3]; `against` sets how much the second opposes the first."""
    rng = torch.Generator().manual_seed(seed)
    f, noise = (torch.randn(4, 2, 3, 3, 3, generator=rng) for _ in range(2))
    return f, noise - against * f


def dots(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


@pytest.mark.parametrize("method", METHODS)
def test_without_weight_fidelity_is_alone(method: str) -> None:
    f, d = pair(0, 0.5)
    joint, _ = coordinate(f, d, method=method, rho=0.0)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(joint, f)


@pytest.mark.parametrize("method", ["fidelity-first", "pcgrad", "mgda", "config", "upgrad"])
def test_what_contradicts_fidelity_does_not_undo_it(method: str) -> None:
    f, d = pair(1, 2.0)
    joint, figures = coordinate(f, d, method=method, rho=1.0)  # pyright: ignore[reportArgumentType]
    assert (dots(joint, f) > 0).all()
    assert figures["conflicts"] == 1


def test_fidelity_keeps_its_whole_length_under_conflict() -> None:
    f, d = pair(2, 2.0)
    joint, _ = coordinate(f, d, method="fidelity-first", rho=0.7)
    torch.testing.assert_close(dots(joint, f), dots(f, f))


def test_without_conflict_both_are_added() -> None:
    f, d = pair(3, -1.0)
    f, d = f, 0.1 * d
    joint, figures = coordinate(f, d, method="fidelity-first", rho=0.5)
    torch.testing.assert_close(joint, f + 0.5 * d)
    assert figures["conflicts"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_long_drift_is_cut_to_the_fidelitys_length(method: str) -> None:
    f, d = pair(4, 0.3)
    longer, figures = coordinate(f, 1000 * d, method=method, rho=1.0)  # pyright: ignore[reportArgumentType]
    much_longer, _ = coordinate(f, 1e6 * d, method=method, rho=1.0)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(longer, much_longer, rtol=1e-3, atol=1e-4)
    assert (longer.flatten(1).norm(dim=1) <= 2.01 * f.flatten(1).norm(dim=1)).all()
    assert figures["norm_ratio"] > 500


@pytest.mark.parametrize("method", METHODS)
def test_every_sample_is_coordinated_by_itself(method: str) -> None:
    f, d = pair(5, 0.8)
    together, _ = coordinate(f, d, method=method, rho=1.0)  # pyright: ignore[reportArgumentType]
    alone = [coordinate(f[i : i + 1], d[i : i + 1], method=method, rho=1.0)[0] for i in range(4)]  # pyright: ignore[reportArgumentType]
    if method != "pcgrad":  # draws the order of its projections
        torch.testing.assert_close(together, torch.cat(alone))
    swapped, _ = coordinate(f.flip(0), d.flip(0), method="fidelity-first", rho=1.0)
    torch.testing.assert_close(swapped.flip(0), coordinate(f, d, method="fidelity-first", rho=1.0)[0])


def test_upgrad_helps_both() -> None:
    f, d = pair(6, 1.5)
    joint, _ = coordinate(f, d, method="upgrad", rho=1.0)
    assert (dots(joint, f) >= -1e-4).all()
    assert (dots(joint, d) >= -1e-4).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_projection_in_closed_form_is_that_of_a_solver(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(2, 6))
    gradients[1] -= 0.8 * gradients[0]
    gramian = gradients @ gradients.T
    for bound in (np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.4, 0.6])):
        solved = minimize(lambda v: v @ gramian @ v, bound + 0.5, bounds=[(b, None) for b in bound], method="L-BFGS-B", tol=1e-12).x
        got = PairProjector()(torch.tensor(bound[None]), torch.tensor(gramian))[0].numpy()
        np.testing.assert_allclose(got, solved, atol=1e-4)


def test_figures_say_how_the_two_relate() -> None:
    f = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    d = torch.tensor([[0.0, 3.0], [0.0, -1.0]])
    _, figures = coordinate(f, d, method="fidelity-first", rho=0.5)
    assert figures["cosine"].item() == pytest.approx(-0.5)
    assert figures["norm_ratio"].item() == pytest.approx((3 + 0.5) / 2)
    assert figures["conflicts"].item() == 0.5


def test_a_vanishing_gradient_does_no_harm() -> None:
    f, d = pair(7, 0.5)
    for a, b in ((f, torch.zeros_like(d)), (torch.zeros_like(f), d)):
        joint, figures = coordinate(a, b, method="fidelity-first", rho=1.0)
        assert joint.isfinite().all()
        assert all(value.isfinite() for value in figures.values())
    torch.testing.assert_close(coordinate(f, torch.zeros_like(d), method="fidelity-first", rho=1.0)[0], f)
