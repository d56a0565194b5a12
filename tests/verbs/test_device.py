"""A device that was asked for by name is used or refused, never replaced."""

import pytest
import torch

from medsynth.core.errors import UsageError
from medsynth.verbs.device import resolve


@pytest.mark.parametrize(
    ("cuda_devices", "mps", "chosen"), [(0, False, "cpu"), (0, True, "mps"), (2, False, "cuda:0"), (1, True, "cuda:0")]
)
def test_auto_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch, cuda_devices: int, mps: bool, chosen: str) -> None:
    _machine(monkeypatch, cuda_devices=cuda_devices, mps=mps)
    assert resolve("auto") == chosen


@pytest.mark.parametrize(("name", "chosen"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("mps", "mps")])
def test_a_device_that_is_there_is_used(monkeypatch: pytest.MonkeyPatch, name: str, chosen: str) -> None:
    _machine(monkeypatch, cuda_devices=2, mps=True)
    assert resolve(name) == chosen


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_an_error_not_a_slow_run(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _machine(monkeypatch, cuda_devices=0, mps=False)
    with pytest.raises(UsageError, match=name) as caught:
        resolve(name)
    assert (caught.value.code, caught.value.exit) == ("E-DEVICE", 2)


def test_a_cuda_device_past_the_last_is_refused_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, cuda_devices=2, mps=False)
    with pytest.raises(UsageError, match="has 2 CUDA devices"):
        resolve("cuda:2")


@pytest.mark.parametrize("name", ["", "gpu", "cpu:1", "cuda:x", "cuda:-1", "CUDA", "mps:0"])
def test_what_is_no_device_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _machine(monkeypatch, cuda_devices=1, mps=True)
    with pytest.raises(UsageError) as caught:
        resolve(name)
    assert caught.value.remedy == "auto, cpu, cuda:N or mps"


def _machine(monkeypatch: pytest.MonkeyPatch, *, cuda_devices: int, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda_devices)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
