"""The log of a training run: `log.csv`, TensorBoard events, and a bar on a terminal or a plain line now and then."""

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

SAY_EVERY = 25


class TrainLog:
    """Rows (step, name, value). After a resume, rows past the checkpoint are dropped, so that no step is logged twice.

    enabled: false on all but the first process of a distributed run; nothing is then written or said.
    """

    def __init__(self, out: Path, *, first_step: int, total: int, say: Callable[[str], None], enabled: bool = True) -> None:
        self._enabled = enabled
        if not enabled:
            return
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / "log.csv"
        self._say = say
        self._total = total
        self._first = first_step
        self._started = time.perf_counter()
        self._sums: dict[str, float] = {}
        self._count = 0
        rows = self._kept_rows(first_step)
        self._file = self._path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._writer.writerow(("step", "name", "value"))
        self._writer.writerows(rows)
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1)  # TensorBoard drops this step and later ones
        self._bar = tqdm(total=total, initial=first_step, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None

    def step(self, step: int, values: dict[str, float], seconds: float) -> None:
        """Adds a training step; writes the mean of every SAY_EVERY steps."""
        if not self._enabled:
            return
        for name, value in (values | {"seconds": seconds}).items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in list(values.items())[:3]}, refresh=False)
            self._bar.update()
        if step % SAY_EVERY and step != self._total:
            return
        means = {name: total / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        self._write(step, "train", means)
        pace = (time.perf_counter() - self._started) / (step - self._first)
        shown = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        if self._bar is None:
            self._say(f"step {step}/{self._total} {shown} {pace:.2f} s/step, {pace * (self._total - step) / 60:.0f} min left")

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Writes a row a figure."""
        if not self._enabled:
            return
        self._write(step, "validation", values)
        line = f"step {step} validation " + " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._say(line) if self._bar is None else self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Flushes both logs."""
        if not self._enabled:
            return
        self._file.close()
        self._board.close()
        if self._bar is not None:
            self._bar.close()

    def _write(self, step: int, group: str, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.writerow((step, f"{group}/{name}", f"{value:.6g}"))
            self._board.add_scalar(f"{group}/{name}", value, step)
        self._file.flush()
        self._board.flush()

    def _kept_rows(self, first_step: int) -> list[list[str]]:
        if first_step == 0 or not self._path.exists():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            return [row for row in list(csv.reader(file))[1:] if int(row[0]) <= first_step]
