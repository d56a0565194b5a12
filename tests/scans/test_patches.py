"""Windows blended into a volume: what a predictor says of each window is what the volume says, whatever its size and the memory."""

import itertools
from collections import namedtuple

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from medsynth.core.errors import Exit, OutOfMemoryError
from medsynth.scans import patches

PATCH = (32, 32, 32)
CPU = torch.device("cpu")
SHAPE = (50, 41, 37)


def everywhere(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.ones(shape, dtype=bool)


def noise(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """float32 [1 x y z]"""
    return np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)


def same(image: Tensor) -> Tensor:
    return image.clone()  # MONAI weights what it is given in place


def blend(
    predict: patches.Predict, image: np.ndarray, region: np.ndarray, *, patch: tuple[int, int, int] = PATCH, batch: int = 1
) -> np.ndarray:
    return patches.blend(predict, image, region, patch=patch, batch=batch, device=CPU)


class Limited:
    """Multiplies by two, with memory for so many voxels at once; beyond, it fails as torch does. tried: shapes of the batches it saw."""

    def __init__(self, voxels: int, error: Exception) -> None:
        self.voxels = voxels
        self.error = error
        self.tried: list[tuple[int, ...]] = []

    def __call__(self, image: Tensor) -> Tensor:
        self.tried.append(tuple(image.shape))
        if image.numel() > self.voxels:
            raise self.error
        return 2 * image

    def sizes(self) -> list[tuple[int, ...]]:
        """Batch and sides, each run of equal ones once; the last batch of a volume may be smaller than the others."""
        return [shape for shape, _ in itertools.groupby(shape[2:] for shape in self.tried)]


def test_a_constant_predictor_gives_the_constant() -> None:
    result = blend(lambda image: torch.full_like(image, 0.25), noise(), everywhere())
    assert result.dtype == np.float32
    assert np.abs(result - 0.25).max() < 1e-6


@pytest.mark.parametrize("batch", [1, 3])
def test_an_identity_predictor_gives_the_image(batch: int) -> None:
    image = noise()
    assert np.abs(blend(same, image, everywhere(), batch=batch) - image[0]).max() < 1e-5


@pytest.mark.parametrize("shape", [(20, 18, 25), (1, 40, 40), (50, 5, 33), (3, 3, 3)], ids=str)
def test_an_image_smaller_than_the_patch_is_computed_as_it_is(shape: tuple[int, ...]) -> None:
    image = noise(shape)
    result = blend(same, image, everywhere(shape))
    assert result.shape == shape
    assert np.abs(result - image[0]).max() < 1e-5


def test_the_predictor_is_always_given_whole_patches() -> None:
    predict = Limited(10**9, RuntimeError())
    blend(predict, noise((20, 50, 33)), everywhere((20, 50, 33)))
    assert set(predict.tried) == {(1, 1, *PATCH)}


def test_only_the_box_around_the_region_is_visited_and_the_rest_is_zero() -> None:
    shape, image = (120, 44, 44), noise((120, 44, 44))
    region = np.zeros(shape, dtype=bool)
    region[50:70, 10:30, 10:30] = True
    predict = Limited(10**9, RuntimeError())
    result = blend(predict, image, region)
    assert np.abs(result - 2 * image[0])[region].max() < 1e-5
    margin = patches.MARGIN
    result[50 - margin : 70 + margin, 10 - margin : 30 + margin, 10 - margin : 30 + margin] = 0
    assert not result.any()
    assert len(predict.tried) == 1


def test_several_channels_reach_the_predictor() -> None:
    image = np.concatenate([noise(), noise() + 1])
    result = blend(lambda image: image[:, 1:] - image[:, :1], image, everywhere())
    assert np.abs(result - 1).max() < 1e-5


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        MemoryError(),
    ],
    ids=["cuda", "windows", "linux", "mps", "python"],
)
def test_when_memory_runs_out_batches_then_patches_get_smaller_until_it_fits(error: Exception) -> None:
    shape = (140, 70, 70)
    image, predict = noise(shape), Limited(50_000, error)
    result = blend(predict, image, everywhere(shape), patch=(64, 64, 64), batch=4)
    assert np.abs(result - 2 * image[0]).max() < 1e-5
    assert [shape[0] for shape in predict.tried[:3]] == [4, 2, 1]
    assert predict.sizes() == [(64, 64, 64), (48, 48, 48), (32, 32, 32)]


def test_a_batch_that_fits_keeps_the_patch() -> None:
    image, predict = noise(), Limited(2 * 32**3, torch.OutOfMemoryError("CUDA out of memory"))
    result = blend(predict, image, everywhere(), batch=8)
    assert np.abs(result - 2 * image[0]).max() < 1e-5
    assert predict.sizes() == [PATCH]


def test_patches_below_the_smallest_are_refused_with_what_to_try() -> None:
    with pytest.raises(OutOfMemoryError, match="smallest tiles") as caught:
        blend(Limited(1000, RuntimeError("not enough memory")), noise(), everywhere(), patch=(48, 64, 48), batch=2)
    assert (caught.value.code, caught.value.exit) == ("E-MEM", Exit.MEMORY)
    assert caught.value.remedy


def test_other_failures_of_the_predictor_are_not_taken_for_memory() -> None:
    predict = Limited(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        blend(predict, noise(), everywhere())
    assert len(predict.tried) == 1


def free(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> None:
    """A machine with this much memory free."""
    memory = namedtuple("memory", ["available", "total"])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(int(gigabytes * 1e9), int(64e9)))


def test_a_scan_that_cannot_fit_is_refused_with_both_amounts(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 0.5)
    with pytest.raises(OutOfMemoryError, match=r"needs about \d+\.\d GB, and 0\.5 GB are free") as caught:
        patches.affordable_batch(256**3, (96, 112, 96), CPU)
    assert (caught.value.code, caught.value.exit) == ("E-MEM", Exit.MEMORY)


def test_a_scan_that_fits_is_computed_patch_by_patch_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 16)
    assert patches.affordable_batch(256**3, (96, 112, 96), CPU) == 1


@pytest.mark.parametrize(("gigabytes", "batch"), [(0.1, 1), (1.0, 3), (80.0, 8)])
def test_a_gpu_gets_as_many_patches_as_fit_but_at_least_one(gigabytes: float, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 64)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(gigabytes * 1e9), int(80e9)))
    assert patches.affordable_batch(256**3, (96, 112, 96), torch.device("cuda", 0)) == batch


def test_the_estimate_grows_with_the_scan_the_patch_and_the_batch() -> None:
    small = patches.required_bytes(10**6, PATCH, 1)
    assert small < patches.required_bytes(10**7, PATCH, 1)
    assert small < patches.required_bytes(10**6, (64, 64, 64), 1)
    assert small < patches.required_bytes(10**6, PATCH, 2)
