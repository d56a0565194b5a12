"""How large a comparison is: everything that differs between two cores and a GPU, and nothing else."""

from typing import NamedTuple


class Size(NamedTuple):
    """channels, head_channels: of the network. patch: voxels on a side, at spacing_mm. seconds: training time of a cell, after
    warm_seconds of L1 that all cells of a seed start from.

    training, validation, test: pairs drawn once. judge_seconds: training time of the judge.
    volume: voxels of the scan for which the time of synthesis is measured.
    """

    channels: tuple[int, ...]
    head_channels: int
    patch: int
    batch: int
    training: int
    validation: int
    test: int
    warm_seconds: float
    seconds: float
    judge_seconds: float
    spacing_mm: float = 2.0
    volume: tuple[int, int, int] = (96, 112, 96)
    learning_rate: float = 1e-3
    ema: float = 0.995


SIZES = {
    "small": Size(
        channels=(24, 48, 96),
        head_channels=32,
        patch=48,
        batch=4,
        training=600,
        validation=32,
        test=64,
        warm_seconds=600,
        seconds=180,
        judge_seconds=180,
    ),
    "large": Size(
        channels=(32, 64, 160, 320),
        head_channels=32,
        patch=64,
        batch=16,
        training=2000,
        validation=64,
        test=128,
        warm_seconds=1200,
        seconds=3600,
        judge_seconds=600,
        ema=0.999,
    ),
}
