"""Simulates scans with few views and writes their sinograms: the loop behind `medsynth project in/ sinograms/`.

For each CT `<case>_sino.npz`, `<case>_geometry.toml`, by which `sparse-ct` finds its way back to the CT's own grid, and a sidecar.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medsynth import __version__
from medsynth.physics import geometry as geometries
from medsynth.physics.geometry import Geometry, Target
from medsynth.scans import folder, sinogram
from medsynth.tasks import sparse_ct
from medsynth.tasks.sparse_ct import TASK
from medsynth.verbs import intake, measure, outputs, pipeline
from medsynth.verbs.device import resolve_for_projections
from medsynth.verbs.intake import Intake, Measuring
from medsynth.verbs.outputs import Making
from medsynth.verbs.pipeline import Progress, Skipped
from medsynth.verbs.record import Case, Record


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user asked for."""

    source: Path
    out: Path
    measuring: Measuring
    device: str = "auto"
    overwrite: bool = False
    force: bool = False
    choices: folder.Choices = field(default_factory=folder.Choices)


class Result(NamedTuple):
    """A CT and its sinogram [slices, views, detectors]."""

    taken: Intake
    fingerprint: str
    measured: Tensor
    seconds: dict[str, float]


def project(settings: Settings, progress: Progress) -> Record:
    """Every CT of `source` to `out`. Raises MedsynthError for what concerns the whole run; a scan's own failure is in the record."""
    geometry = intake.geometry_for_volumes(settings.measuring)
    device = torch.device(resolve_for_projections(settings.device))
    found = pipeline.scans_in(settings.source, settings.out, settings.choices)
    outputs.prepare_folder(settings.out)
    making = Making(out=settings.out, task=TASK, model=None, method="project", settings=_described(settings, geometry))
    record = Record(settings.out, command=making.settings, model=None, device=str(device), precision="torch.float32")
    pipeline.run(
        found,
        lambda item: _read(item, settings, geometry, making),
        lambda read: _compute(read, settings, device),
        lambda item, result: _write(item, result, settings, making),
        record,
        progress,
    )
    return record


def _read(found: folder.Found, settings: Settings, geometry: Geometry, making: Making) -> tuple[Intake, str, float]:
    began = time.perf_counter()
    fingerprint = outputs.fingerprint(found.files, making, found.case)
    sidecar, beside = settings.out / f"{found.case}{sinogram.SINO}.json", settings.out / f"{found.case}{sinogram.GEOMETRY}"
    if not settings.overwrite and beside.exists() and outputs.is_complete(sidecar, fingerprint, ending=".npz"):
        raise Skipped(f"{found.case}{sinogram.SINO}.npz")
    taken = intake.take_volume(found, geometry, settings.measuring.noise, settings.choices, force=settings.force)
    views = sparse_ct.warn_of_views(geometry.views)
    return taken._replace(warnings=(*views, *taken.warnings)), fingerprint, time.perf_counter() - began


def _compute(read: tuple[Intake, str, float], settings: Settings, device: torch.device) -> Result:
    taken, fingerprint, seconds = read
    began = time.perf_counter()
    measured = measure.project(taken.in_planes, taken.grid, taken.geometry, settings.measuring.noise, device)
    return Result(taken, fingerprint, measured, {"read": seconds, "project": time.perf_counter() - began})


def _write(found: folder.Found, result: Result, settings: Settings, making: Making) -> Case:
    name = f"{found.case}{sinogram.SINO}.npz"
    began, taken, out = time.perf_counter(), result.taken, settings.out
    facts = _facts(taken, result.measured)
    sidecar_path = out / f"{found.case}{sinogram.SINO}.json"
    sidecar_path.unlink(missing_ok=True)  # an earlier one must not vouch for files that are half replaced
    outputs.write_text(out / f"{found.case}{sinogram.GEOMETRY}", geometries.to_toml(_described_scan(taken)))
    sinogram.write(result.measured.numpy(), out / name)
    sidecar = {
        "Description": f"Simulated line integrals [slices, views, detectors] of a CT. {outputs.DISCLAIMER}",
        "GeneratedBy": {"Name": "medsynth", "Version": __version__},
        "Sources": [file.name for file in taken.scan.origin.files[:1]],
        "Settings": making.settings,
        "Projection": facts,
        "Warnings": list(taken.warnings),
        "Fingerprint": result.fingerprint,
        "Output": {"Name": name, "Sha256": outputs.content_hash(out / name)},
    }
    outputs.write_json(sidecar_path, sidecar)
    seconds = {**result.seconds, "write": time.perf_counter() - began}
    return Case(case=found.case, status="done", output=name, warnings=taken.warnings, seconds=seconds, measured=facts)


def _described_scan(taken: Intake) -> geometries.Scan:
    """The geometry, and the CT's own grid to reconstruct on."""
    affine = tuple(tuple(float(value) for value in row) for row in taken.scan.affine_ras)
    return geometries.Scan(geometry=taken.geometry, image=Target(affine=affine, shape=taken.scan.shape))


def _facts(taken: Intake, measured: Tensor) -> dict[str, Any]:
    noise = None if taken.i0 is None else float(f"{measure.expected_noise(measured, taken.i0):.6g}")
    return {"Views": taken.geometry.views, "Noise": taken.noise, "ExpectedRelativeNoise": noise, "Shape": list(measured.shape)}


def _described(settings: Settings, geometry: Geometry) -> dict[str, Any]:
    return {
        "task": "project",
        "geometry": json.loads(geometry.model_dump_json()),
        **settings.measuring.noise.described,
        **({"force": True} if settings.force else {}),
        **outputs.described_choices(settings.choices),
    }
