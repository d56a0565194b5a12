"""Heads drawn by formula, packed once for all tests of the sources."""

from pathlib import Path

import pytest
import tiny

from medsynth.sources.labels import LabelPairs
from medsynth.sources.packed import Head, pack


@pytest.fixture(scope="session")
def head() -> Head:
    """The tiny head, packed."""
    return pack(tiny.labels())


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> LabelPairs:
    """Pairs from two tiny heads, patch 32 at 1.5 mm."""
    folder: Path = tmp_path_factory.mktemp("sources")
    maps = tiny.write_label_maps(folder / "maps")
    return LabelPairs(maps, ("01", "02"), cache=folder / "cache", patch=(32, 32, 32), spacing_mm=1.5, seed=3)
