"""What a run prints: a bar on a terminal, a line per scan elsewhere, and a table of failures at the end."""

import sys
import time

import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from medsynth.core.errors import Exit
from medsynth.verbs.record import FAILURES, RUN, Case, Record


class RunPrinter:
    """Receives what `synthesize` reports. Case names, no paths and no patient data."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._total = 0
        self._seen = 0
        self._began = time.perf_counter()
        self._bar: tqdm | None = None  # pyright: ignore[reportMissingTypeArgument]

    def started(self, total: int) -> None:
        """How many scans there are."""
        self._total = total
        if sys.stderr.isatty() and not self._quiet:
            self._bar = tqdm(total=total, unit="scan", file=sys.stderr)

    def ended(self, case: Case) -> None:
        """One scan's outcome."""
        self._seen += 1
        if self._bar is not None:
            self._bar.set_postfix_str(case.case)
            self._bar.update()
        for warning in () if self._quiet else case.warnings:
            self._line(f"{case.case}: note: {warning}", err=True)
        if case.status == "failed":
            self._line(f"[{self._seen}/{self._total}] {case.case} failed {case.code}: {case.cause}", err=True)
        elif not self._quiet:
            seconds = "" if not case.seconds else " " + " ".join(f"{stage} {value:.1f}s" for stage, value in case.seconds.items())
            self._line(f"[{self._seen}/{self._total}] {case.case} {case.status}{seconds}" + (f" -> {case.output}" if case.output else ""))

    def summary(self, record: Record) -> None:
        """Failures with their remedies, then where everything is."""
        if self._bar is not None:
            self._bar.close()
        failures = record.failures
        if failures:
            table = Table("scan", "code", "cause", "remedy", title=f"{len(failures)} of {len(record.cases)} scans failed ({FAILURES})")
            for case in failures:
                table.add_row(case.case, case.code, case.cause, case.remedy)
            Console(stderr=True, markup=False).print(table)  # names may hold brackets
        if not self._quiet:
            done = sum(case.status == "done" for case in record.cases)
            skipped = sum(case.status == "skipped" for case in record.cases)
            seconds = time.perf_counter() - self._began
            typer.echo(f"{done} done, {skipped} skipped, {len(failures)} failed in {seconds:.0f} s; record: {record.out / RUN}")
        if any(case.exit is Exit.BUG for case in failures):
            typer.echo("some failures are faults of medsynth: please report them", err=True)

    def _line(self, text: str, *, err: bool = False) -> None:
        if self._bar is not None:
            tqdm.write(text, file=sys.stderr)
        else:
            typer.echo(text, err=err)
