"""Runs a task over a folder of scans: the loop behind `medsynth mri2ct in/ out/`.

The next scan is read and prepared while this one is in the network and the last one is written (`verbs.pipeline`). What is complete and was
made with the same model and settings is skipped.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
from medsynth.verbs import outputs, picture, pipeline
from medsynth.verbs.device import precision_for, resolve
from medsynth.verbs.outputs import Making, Product
from medsynth.verbs.pipeline import Progress, Skipped
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


class Read(NamedTuple):
    scan: Volume
    card_affine: np.ndarray
    prepared: Prepared
    fingerprint: str
    seconds: float


def synthesize(settings: Settings, progress: Progress) -> Record:
    """Every scan of `source` to `out`. Raises MedsynthError for what concerns the whole run; a scan's own failure is in the record."""
    task: Task = tasks.get(settings.task)
    model = find_model(settings.model, task)
    weights = model.weights_file()
    device = torch.device(resolve(settings.device))
    found = pipeline.scans_in(settings.source, settings.out, settings.choices)
    masks = outputs.match_masks(settings.mask, found)
    outputs.prepare_folder(settings.out)
    outputs.describe_dataset(settings.out, task)
    record = Record(settings.out, command=described(settings), model=model, device=str(device), precision=str(precision_for(device)))
    predict = predictor(model, weights, device)
    pipeline.run(
        found,
        lambda item: read_scan(item, task, model, settings, masks.get(item.case)),
        lambda read: compute(read, predict, model, device),
        lambda item, result: write_result(item, result, task, model, settings),
        record,
        progress,
    )
    return record


def find_model(reference: str, task: Task) -> zoo.Model:
    """The model that `--model` names. Raises UsageError E-MODEL if it is for another task, and as `zoo.find`."""
    model = zoo.find(reference)
    if model.card.task != task.name:
        raise UsageError(
            "E-MODEL", f"{model.card.name} is a model for {model.card.task}", remedy=f"choose one for {task.name}: medsynth models list"
        )
    return model


class Result(NamedTuple):
    read: Read
    prediction: np.ndarray
    seconds: float


def read_scan(found: folder.Found, task: Task, model: zoo.Model, settings: Settings, mask: folder.Found | None) -> Read:
    """First stage: file -> prepared network input. Raises Skipped if there is nothing to do."""
    began = time.perf_counter()
    fingerprint = outputs.fingerprint((*found.files, *(mask.files if mask else ())), _making(task, model, settings))
    if not settings.overwrite and outputs.is_complete(settings.out / f"{found.case}_{task.suffix}.json", fingerprint):
        raise Skipped(outputs.output_name(found, task.suffix, settings.format))
    scan = folder.read(found, choices=settings.choices)
    insist_format(found, settings.format)
    on_card = grid.to_card(scan, model.card.grid.spacing_mm)
    region = None if mask is None else grid.mask_to(folder.read(mask, choices=folder.Choices(trust=settings.choices.trust)), on_card)
    prepared = task.prepare(on_card, region, settings.force)
    return Read(scan, on_card.affine_ras, prepared, fingerprint, time.perf_counter() - began)


def compute(read: Read, predict: patches.Predict, model: zoo.Model, device: torch.device) -> Result:
    """Second stage: the network, on this thread."""
    began = time.perf_counter()
    patch = model.card.grid.patch
    batch = patches.affordable_batch(read.scan.array.size, patch, device)
    prediction = patches.blend(predict, read.prepared.image, read.prepared.region, patch=patch, batch=batch, device=device)
    return Result(read, prediction, time.perf_counter() - began)


def write_result(found: folder.Found, result: Result, task: Task, model: zoo.Model, settings: Settings) -> Case:
    """Third stage: HU on the scan's own grid, files and picture."""
    began = time.perf_counter()
    read = result.read
    values = task.finish(result.prediction, read.prepared)
    output = grid.back(values, read.card_affine, read.scan, outside=task.outside)
    output = output.with_array(np.clip(output.array, *task.range))
    assert output.shape == read.scan.shape
    assert np.array_equal(output.affine_ras, read.scan.affine_ras)
    warnings = read.prepared.warnings + read.scan.origin.notes
    making = _making(task, model, settings)
    footer = f"{making.maker} · {outputs.DISCLAIMER}"
    product = Product(
        output=output,
        picture=lambda: picture.draw_pair(read.scan, output, settings.windows, footer=footer, warnings=warnings),
        warnings=warnings,
        facts={"InputScale": vars(read.prepared.source_scale)},
    )
    name = outputs.write(product, making, read.fingerprint)
    seconds = {"read": read.seconds, "network": result.seconds, "write": time.perf_counter() - began}
    return Case(case=found.case, status="done", output=name, warnings=warnings, seconds=seconds)


def insist_format(found: folder.Found, format_: outputs.Format) -> None:
    """Raises ScanError E-FORMAT if a DICOM series was asked for and there is none to derive it from."""
    if format_ == "dicom" and found.kind != "dicom":
        raise ScanError(
            "E-FORMAT",
            f"{found.case} is no DICOM series, so no DICOM series can be derived from it",
            remedy="--format nifti or --format same",
        )


def described(settings: Settings) -> dict[str, Any]:
    """The settings that change an output, without paths."""
    flags = {k: True for k in ("force", "allow_burned_in") if getattr(settings, k)}
    return {
        "task": settings.task,
        "format": settings.format,
        "mask": settings.mask is not None,
        "windows": outputs.described_windows(settings.windows),
        **flags,
        **outputs.described_choices(settings.choices),
    }


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


def _making(task: Task, model: zoo.Model, settings: Settings) -> Making:
    return Making(
        out=settings.out,
        task=task,
        model=model,
        settings=described(settings),
        format=settings.format,
        allow_burned_in=settings.allow_burned_in,
    )
