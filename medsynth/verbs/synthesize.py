"""Runs a task over a folder of scans: the loop behind `medsynth mri2ct in/ out/`.

Three stages work at once, each in its own thread: the next scan is read and prepared, this one is in the network, the last one is written.
A scan that fails is recorded and the others go on. What is complete and was made with the same model and settings is skipped.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from medsynth import tasks, zoo
from medsynth.core.errors import ScanError, UsageError
from medsynth.core.generator import Condition
from medsynth.core.task import Prepared, Task
from medsynth.core.volume import Volume
from medsynth.core.windows import Window
from medsynth.generators import build
from medsynth.scans import folder, grid, patches
from medsynth.verbs import outputs
from medsynth.verbs.device import precision_for, resolve
from medsynth.verbs.record import Case, Record


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user asked for. format: "nifti", "dicom" or "same". windows: for the picture, a column each."""

    task: str
    model: str
    source: Path
    out: Path
    device: str = "auto"
    format: outputs.Format = "nifti"
    mask: Path | None = None
    windows: tuple[Window, ...] = ()
    overwrite: bool = False
    force: bool = False
    allow_burned_in: bool = False
    choices: folder.Choices = field(default_factory=folder.Choices)


@runtime_checkable
class Progress(Protocol):
    """What the caller shows."""

    def started(self, total: int) -> None:
        """How many scans there are."""
        ...

    def ended(self, case: Case) -> None:
        """One scan's outcome."""
        ...


class Read(NamedTuple):
    scan: Volume
    card_affine: np.ndarray
    prepared: Prepared
    fingerprint: str
    seconds: float


def synthesize(settings: Settings, progress: Progress) -> Record:
    """Every scan of `source` to `out`. Raises MedsynthError for what concerns the whole run; a scan's own failure is in the record."""
    task: Task = tasks.get(settings.task)
    model = zoo.find(settings.model)
    if model.card.task != task.name:
        raise UsageError(
            "E-MODEL", f"{model.card.name} is a model for {model.card.task}", remedy=f"choose one for {task.name}: medsynth models list"
        )
    weights = model.weights_file()
    device = torch.device(resolve(settings.device))
    found = _inputs(settings)
    masks = outputs.match_masks(settings.mask, found)
    outputs.prepare_folder(settings.out)
    outputs.describe_dataset(settings.out, task)
    record = Record(
        settings.out, command=outputs.described(settings), model=model, device=str(device), precision=str(precision_for(device))
    )
    predict = predictor(model, weights, device)
    progress.started(len(found))
    with _stage("read") as reading, _stage("write") as writing:
        pending: Future[Case] | None = None
        try:
            for item, ready in _ahead(reading, found, lambda f: read_scan(f, task, model, settings, masks.get(f.case))):
                result = compute(ready, predict, model, device)
                if pending is not None:
                    _ended(record, progress, pending.result())
                pending = writing.submit(write_result, item, result, task, model, settings)
            if pending is not None:
                _ended(record, progress, pending.result())
        except KeyboardInterrupt:
            reading.shutdown(cancel_futures=True)
            writing.shutdown()
            outputs.remove_partial(settings.out)
            record.close(interrupted=True)
            raise
    record.close(interrupted=False)
    return record


class Result(NamedTuple):
    """read and prediction, or the reason why there is none; skipped when the output is there already."""

    read: Read | None
    prediction: np.ndarray | None
    error: Exception | None
    seconds: float
    skipped: bool = False


class _Skipped(Exception):
    """The output is complete and was made with the same model and settings."""


def read_scan(found: folder.Found, task: Task, model: zoo.Model, settings: Settings, mask: folder.Found | None) -> Read:
    """First stage: file -> prepared network input. Raises _Skipped if there is nothing to do."""
    began = time.perf_counter()
    fingerprint = outputs.fingerprint(found, mask, model, settings)
    if not settings.overwrite and outputs.is_complete(found.case, task.suffix, fingerprint, settings):
        raise _Skipped
    scan = folder.read(found, choices=settings.choices)
    if settings.format == "dicom" and scan.origin.kind != "dicom":
        raise ScanError(
            "E-FORMAT",
            f"{found.case} is no DICOM series, so no DICOM series can be derived from it",
            remedy="--format nifti or --format same",
        )
    on_card = grid.to_card(scan, model.card.grid.spacing_mm)
    region = None if mask is None else grid.mask_to(folder.read(mask, choices=folder.Choices(trust=settings.choices.trust)), on_card)
    prepared = task.prepare(on_card, region, settings.force)
    return Read(scan, on_card.affine_ras, prepared, fingerprint, time.perf_counter() - began)


def compute(ready: Future[Read], predict: patches.Predict, model: zoo.Model, device: torch.device) -> Result:
    """Second stage: the network, on this thread."""
    try:
        read = ready.result()
        began = time.perf_counter()
        patch = model.card.grid.patch
        batch = patches.affordable_batch(read.scan.array.size, patch, device)
        prediction = patches.blend(predict, read.prepared.image, read.prepared.region, patch=patch, batch=batch, device=device)
        return Result(read, prediction, None, time.perf_counter() - began)
    except _Skipped:
        return Result(None, None, None, 0.0, skipped=True)
    except Exception as error:  # noqa: BLE001 - one bad scan must not stop the others; the record tells bugs from bad input
        return Result(None, None, error, 0.0)


def write_result(found: folder.Found, result: Result, task: Task, model: zoo.Model, settings: Settings) -> Case:
    """Third stage: HU on the scan's own grid, files and picture."""
    if result.skipped:
        return Case(case=found.case, status="skipped", output=outputs.output_name(found, task.suffix, settings.format))
    if result.error is not None or result.read is None or result.prediction is None:
        return Case.failed(found.case, result.error)
    began = time.perf_counter()
    read = result.read
    try:
        values = task.finish(result.prediction, read.prepared)
        output = grid.back(values, read.card_affine, read.scan, outside=task.outside)
        output = output.with_array(np.clip(output.array, *task.range))
        assert output.shape == read.scan.shape
        assert np.array_equal(output.affine_ras, read.scan.affine_ras)
        seconds = {"read": read.seconds, "network": result.seconds}
        return outputs.write(output, read.scan, read.prepared, task, model, settings, read.fingerprint, seconds, began)
    except Exception as error:  # noqa: BLE001 - as above
        return Case.failed(found.case, error)


def predictor(model: zoo.Model, weights: Path, device: torch.device) -> patches.Predict:
    """The generator with its weights, strictly loaded, as a function of a batch of patches."""
    from safetensors.torch import load_file

    generator = build(model.card.generator, model.card.config)
    generator.load_state_dict(load_file(weights), strict=True)
    generator = generator.to(device, memory_format=torch.channels_last_3d).eval()
    dtype = precision_for(device)

    @torch.no_grad()
    def predict(image: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            return generator.sample(Condition(image=image)).float()

    return predict


def _inputs(settings: Settings) -> list[folder.Found]:
    """The scans in `source`, without what an earlier run left in an `out` that lies inside it.

    Raises UsageError E-OUTPUT if both are one folder, and as `folder.find`.
    """
    source, out = settings.source.resolve(), settings.out.resolve()
    if source == out:
        raise UsageError(
            "E-OUTPUT",
            "the results would lie among the scans, and a second run would take them for scans",
            remedy="give another folder for them",
        )
    found = folder.find(settings.source, choices=settings.choices)
    new = [item for item in found if source not in out.parents or out not in item.files[0].resolve().parents]
    if not new:
        raise ScanError(
            "E-EMPTY", f"{source.name} holds no scan but the results of an earlier run", remedy="give the folder with the scans"
        )
    return new


def _ahead(
    pool: ThreadPoolExecutor, found: list[folder.Found], work: Callable[[folder.Found], Read]
) -> Iterator[tuple[folder.Found, Future[Read]]]:
    """Each scan with its future; the next one is begun before this one is handed out."""
    coming: Future[Read] | None = pool.submit(work, found[0]) if found else None
    for i, item in enumerate(found):
        current = coming
        assert current is not None
        current.exception()  # waits: the next scan is begun when this one is in memory, so that two are held, not three
        coming = pool.submit(work, found[i + 1]) if i + 1 < len(found) else None
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
