"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real scans: MEDSYNTH_DATA, or `shared/data` beside the checkout. The test is skipped where they are absent."""
    folder = Path(os.environ.get("MEDSYNTH_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "README.md").is_file():
        pytest.skip("the folder of real scans is not on this machine (set MEDSYNTH_DATA)")
    return folder
