"""The queue of earlier samples: what stays, what goes, and where it is looked for."""

import copy

import torch

from medsynth.objectives.queue import FeatureQueue


def maps(*values: float) -> dict[str, torch.Tensor]:
    """One map of 2 locations and 3 numbers, a sample a value."""
    return {"m": torch.tensor(values, dtype=torch.float32)[:, None, None].expand(-1, 2, 3).clone()}


def held(queue: FeatureQueue, places: list[int], count: int) -> list[float]:
    found = queue.newest("m", torch.tensor(places), count)
    return [] if found is None else found[:, 0, 0].tolist()


def test_an_empty_queue_gives_nothing() -> None:
    assert FeatureQueue(2, 4).newest("m", torch.tensor([0]), 4) is None


def test_the_oldest_of_a_place_go_first() -> None:
    queue = FeatureQueue(2, 3)
    queue.push(maps(1, 2, 3, 4, 5), torch.tensor([0, 0, 1, 0, 0]))
    assert held(queue, [0], 10) == [2, 4, 5]
    assert held(queue, [1], 10) == [3]


def test_the_newest_are_shared_out_as_the_places_are() -> None:
    """Were real samples of two places as many as each other and generated ones were not, equal distributions would drift apart."""
    queue = FeatureQueue(3, 8)
    queue.push(maps(1, 2, 3, 4, 5, 6), torch.tensor([0, 0, 0, 2, 2, 2]))
    assert held(queue, [2, 0, 0, 0], 4) == [1, 2, 3, 6]


def test_a_queue_of_no_size_keeps_nothing() -> None:
    queue = FeatureQueue(1, 0)
    queue.push(maps(1), torch.tensor([0]))
    assert queue.newest("m", torch.tensor([0]), 1) is None
    assert queue.nbytes == 0


def test_a_queue_goes_through_a_checkpoint() -> None:
    queue, other = FeatureQueue(2, 3), FeatureQueue(2, 3)
    queue.push(maps(1, 2, 3, 4), torch.tensor([0, 1, 0, 0]))
    other.load(copy.deepcopy(queue.state()))
    for one in (queue, other):
        one.push(maps(9), torch.tensor([0]))
    assert held(other, [0, 1], 10) == held(queue, [0, 1], 10) == [3, 4, 9, 2]
    assert queue.nbytes == 2 * 3 * 2 * 3 * 2
    seldom = FeatureQueue(100, 3)
    seldom.push(maps(1), torch.tensor([99]))
    assert seldom.nbytes == 1 * 3 * 2 * 3 * 2  # of the places seen
