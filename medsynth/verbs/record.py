"""The record of a run: `run.json` and, if a scan failed, `failures.csv`, both written anew after every scan."""

import csv
import datetime
import io
import json
import os
import platform
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from medsynth import __version__
from medsynth.core.errors import Exit, MedsynthError, OutOfMemoryError, ScanError
from medsynth.scans.files import replacing
from medsynth.zoo import Model

RUN, FAILURES = "run.json", "failures.csv"
Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What became of one scan. seconds: by stage. measured: what a verb found out about it, ready for JSON."""

    case: str
    status: Status
    output: str = ""
    code: str = ""
    cause: str = ""
    remedy: str = ""
    exit: Exit = Exit.OK
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def failed(cls, case: str, error: Exception | None) -> "Case":
        """A failure with its code; an unexpected one carries the place in the program, without values (privacy)."""
        known = _known(error)
        if known is not None:
            return cls(case=case, status="failed", code=known.code, cause=known.cause, remedy=known.remedy, exit=known.exit)
        if os.environ.get("MEDSYNTH_DEBUG"):
            traceback.print_exception(error)
        frames = traceback.extract_tb(error.__traceback__) if error else []
        where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        return cls(
            case=case,
            status="failed",
            code="E-BUG",
            cause=f"{type(error).__name__}{where}",
            remedy="this is a fault of medsynth: please report it with this line and `medsynth doctor`",
            exit=Exit.BUG,
        )


class Record:
    """Collects cases and keeps the files current. No patient data: case names, codes, times."""

    def __init__(self, out: Path, *, command: dict[str, Any], model: Model | None, device: str, precision: str) -> None:
        self.cases: list[Case] = []
        self.out = out
        self._head = {
            "medsynth": __version__,
            "settings": command,
            "model": _described(model),
            "device": device,
            "precision": precision.removeprefix("torch."),
            "machine": {
                "system": platform.platform(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            },
            "started": _now(),
        }

    def add(self, case: Case) -> None:
        """Adds a case and writes both files."""
        self.cases.append(case)
        self._write("running")

    def close(self, *, interrupted: bool) -> None:
        """Writes the files with the end of the run."""
        self._write("interrupted" if interrupted else "finished")

    @property
    def failures(self) -> list[Case]:
        """The scans without an output."""
        return [case for case in self.cases if case.status == "failed"]

    @property
    def exit(self) -> Exit:
        """OK, PARTIAL if some scans failed, else the status of the first failure."""
        if not self.failures:
            return Exit.OK
        return self.failures[0].exit if len(self.failures) == len(self.cases) else Exit.PARTIAL

    def _write(self, state: str) -> None:
        text = json.dumps(
            {**self._head, "state": state, "updated": _now(), "cases": [_row(case) for case in self.cases]}, indent=2, ensure_ascii=False
        )
        _replace(self.out / RUN, text + "\n")
        if self.failures:
            table = io.StringIO()
            writer = csv.writer(table, lineterminator="\n")
            writer.writerow(("case", "code", "cause", "remedy"))
            writer.writerows((case.case, case.code, case.cause, case.remedy) for case in self.failures)
            _replace(self.out / FAILURES, table.getvalue())
        elif state == "finished":
            (self.out / FAILURES).unlink(missing_ok=True)


def _described(model: Model | None) -> dict[str, str] | None:
    """None for a method that needs no model."""
    if model is None:
        return None
    card = model.card
    sha256 = card.weights.sha256 if card.weights else ""
    return {"name": card.name, "version": card.version, "revision": model.revision, "sha256": sha256}


def _row(case: Case) -> dict[str, Any]:
    row = asdict(case)
    return row if case.measured else {key: value for key, value in row.items() if key != "measured"}


def _known(error: Exception | None) -> MedsynthError | None:
    """The error as the user is told of it, if it is no fault of the program: the disk's and the memory's own have no code yet."""
    if isinstance(error, MemoryError):
        return OutOfMemoryError(
            "E-MEM", "the machine's memory is too small for this scan", remedy="close other programs, or use a larger machine"
        )
    if isinstance(error, OSError) and error.strerror:
        return ScanError(
            "E-FILE", f"a file cannot be read or written: {error.strerror}", remedy="check the disk's space, and who may read and write"
        )
    return error if isinstance(error, MedsynthError) else None


def _replace(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
