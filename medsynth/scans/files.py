"""Writing without half-written files: under a hidden name beside the target, which is renamed when it is whole."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


def replacing(path: Path) -> AbstractContextManager[Path]:
    """A hidden name beside `path`, with its ending, to write to; the file takes its place when the block ends without an error."""
    return _renamed(path.with_name(f".medsynth-part-{path.name}"), path)


def shared(path: Path) -> AbstractContextManager[Path]:
    """As `replacing`, for a cache that several processes may write to at once: each has a temporary name of its own."""
    return _renamed(path.with_name(f".medsynth-part-{os.getpid()}-{path.name}"), path)


@contextmanager
def _renamed(part: Path, path: Path) -> Iterator[Path]:
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
