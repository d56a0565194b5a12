"""Writing without half-written files: under a hidden name beside the target, which is renamed when it is whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`, with its ending, to write to; the file takes its place when the block ends without an error."""
    part = path.with_name(f".medsynth-part-{path.name}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def shared(path: Path) -> Iterator[Path]:
    """As `replacing`, for a cache that several processes may write to at once: each has a temporary name of its own."""
    part = path.with_name(f".medsynth-part-{os.getpid()}-{path.name}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
