"""Three stages that work at once on the scans of a run: the next one is read, this one is computed, the last one is written.

Reading and writing have a thread each, computing has the caller's. A scan that fails is recorded and the others go on.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from medsynth.core.errors import ScanError, UsageError
from medsynth.scans import folder
from medsynth.verbs import outputs
from medsynth.verbs.record import Case, Record


@runtime_checkable
class Scan(Protocol):
    """What a run is over."""

    @property
    def case(self) -> str:
        """Its name in record and output."""
        ...


Item = TypeVar("Item", bound=Scan)
Read, Result, Given, Made = TypeVar("Read"), TypeVar("Result"), TypeVar("Given"), TypeVar("Made")


class Skipped(Exception):
    """What `read` raises when the output is complete and was made in the same way."""

    def __init__(self, output: str) -> None:
        super().__init__(output)
        self.output = output


@runtime_checkable
class Progress(Protocol):
    """What the caller shows."""

    def started(self, total: int) -> None:
        """How many scans there are."""
        ...

    def ended(self, case: Case) -> None:
        """One scan's outcome."""
        ...


def run(
    found: Sequence[Item],
    read: Callable[[Item], Read],
    compute: Callable[[Read], Result],
    write: Callable[[Item, Result], Case],
    record: Record,
    progress: Progress,
) -> None:
    """Takes every item through the stages; the outcomes are in the record.

    Each stage may raise; what it raises is the end of that scan alone.
    """
    progress.started(len(found))
    with _stage("read") as reading, _stage("write") as writing:
        pending: Future[Case] | None = None
        try:
            for item, ready in _ahead(reading, found, read):
                result = _go_on(item, ready.result(), compute)
                if pending is not None:
                    _ended(record, progress, pending.result())
                pending = writing.submit(_written, item, result, write)
            if pending is not None:
                _ended(record, progress, pending.result())
        except KeyboardInterrupt:
            reading.shutdown(cancel_futures=True)
            writing.shutdown()
            outputs.remove_partial(record.out)
            record.close(interrupted=True)
            raise
    record.close(interrupted=False)


def scans_in(source: Path, out: Path, choices: folder.Choices) -> list[folder.Found]:
    """The scans in `source`, without what an earlier run left in an `out` that lies inside it.

    Raises UsageError E-OUTPUT if both are one folder, and as `folder.find`.
    """
    insist_apart(source, out)
    new = [item for item in folder.find(source, choices=choices) if not lies_in(item.files[0], out, source)]
    if not new:
        raise ScanError(
            "E-EMPTY", f"{source.resolve().name} holds no scan but the results of an earlier run", remedy="give the folder with the scans"
        )
    return new


def insist_apart(source: Path, out: Path) -> None:
    """Raises UsageError E-OUTPUT if the results would lie among the scans."""
    if source.resolve() == out.resolve():
        raise UsageError(
            "E-OUTPUT",
            "the results would lie among the scans, and a second run would take them for scans",
            remedy="give another folder for them",
        )


def lies_in(file: Path, out: Path, source: Path) -> bool:
    """Whether a file is in a folder of results that lies inside `source`."""
    within = out.resolve()
    return source.resolve() in within.parents and within in file.resolve().parents


def _go_on(item: Scan, given: Given | Case, work: Callable[[Given], Made]) -> Made | Case:
    """The next stage of a scan: what comes out of it, or what became of the scan if it ends here, or has ended before."""
    if isinstance(given, Case):
        return given
    try:
        return work(given)
    except Skipped as skipped:
        return Case(case=item.case, status="skipped", output=skipped.output)
    except Exception as error:  # noqa: BLE001 - one bad scan must not stop the others; the record tells bugs from bad input
        return Case.failed(item.case, error)


def _written(item: Item, result: Result | Case, write: Callable[[Item, Result], Case]) -> Case:
    return _go_on(item, result, lambda made: write(item, made))


def _ahead(pool: ThreadPoolExecutor, found: Sequence[Item], read: Callable[[Item], Read]) -> Iterator[tuple[Item, Future[Read | Case]]]:
    """Each scan with its future; the next one is begun before this one is handed out."""
    coming: Future[Read | Case] | None = pool.submit(_go_on, found[0], found[0], read) if found else None
    for i, item in enumerate(found):
        current = coming
        assert current is not None
        current.exception()  # waits: the next scan is begun when this one is in memory, so that two are held, not three
        coming = pool.submit(_go_on, found[i + 1], found[i + 1], read) if i + 1 < len(found) else None
        yield item, current


def _ended(record: Record, progress: Progress, case: Case) -> None:
    record.add(case)
    progress.ended(case)


@contextmanager
def _stage(name: str) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_lower_priority)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _lower_priority() -> None:
    """The network's threads wait for each other; reading and writing should not make them."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)
