"""CT from few views over a folder: the loop behind `medsynth sparse-ct in/ out/`.

CT volumes are projected first, sinograms are taken as they were measured. The next case is read while this one is reconstructed and the
last one is written (`verbs.pipeline`). What is complete and was made in the same way is skipped.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medsynth.core.errors import ScanError
from medsynth.core.volume import Volume
from medsynth.core.windows import Window
from medsynth.physics.geometry import Geometry
from medsynth.scans import folder, inplane, sinogram
from medsynth.tasks import sparse_ct
from medsynth.tasks.sparse_ct import RANGE_HU, TASK
from medsynth.verbs import intake, measure, methods, outputs, picture, pipeline, truth
from medsynth.verbs.device import precision_for, resolve_for_projections
from medsynth.verbs.intake import Intake, Measuring, option
from medsynth.verbs.methods import Method, Network, Reconstruction
from medsynth.verbs.outputs import Making, Product
from medsynth.verbs.pipeline import Progress, Skipped
from medsynth.verbs.record import Case, Record
from medsynth.verbs.synthesize import find_model, insist_format
from medsynth.zoo import Model

Found = folder.Found | sinogram.Found


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the user asked for. passes: None for the model's own. windows: for the picture."""

    source: Path
    out: Path
    measuring: Measuring
    method: Method = "network"
    model: str = ""
    passes: int | None = None
    device: str = "auto"
    format: outputs.Format = "nifti"
    windows: tuple[Window, ...] = ()
    overwrite: bool = False
    force: bool = False
    allow_burned_in: bool = False
    choices: folder.Choices = field(default_factory=folder.Choices)


class Plan(NamedTuple):
    """What all cases of a run share. geometry: of volumes, None for sinograms, which have one each. network: None for other methods."""

    settings: Settings
    geometry: Geometry | None
    model: Model | None
    network: Network | None
    device: torch.device
    making: Making


class Read(NamedTuple):
    taken: Intake
    fingerprint: str
    seconds: float


class Result(NamedTuple):
    """A case reconstructed. on_grid: how the reference does on the reconstruction's grid (`truth.on_grid`), empty where there is none."""

    read: Read
    made: Reconstruction
    expected_noise: float | None
    on_grid: dict[str, float]
    seconds: dict[str, float]


def reconstruct(settings: Settings, progress: Progress) -> Record:
    """Every case of `source` to `out`. Raises MedsynthError for what concerns the whole run; a case's own failure is in the record."""
    insist_no_network(settings)
    model = find_model(settings.model or TASK.model, TASK) if settings.method == "network" else None
    weights = model.weights_file() if model else None
    device = torch.device(resolve_for_projections(settings.device))
    found = find(settings.source, settings.out, settings.choices)
    geometry = _insist_sensible(settings, found)
    if model and geometry:
        methods.insist_network_takes(geometry, model.card)
    network = methods.load_network(model, weights, device, settings.passes) if model and weights else None
    outputs.prepare_folder(settings.out)
    outputs.describe_dataset(settings.out, TASK)
    plan = Plan(settings, geometry, model, network, device, making_of(settings, model))
    precision = str(precision_for(device)) if network else "torch.float32"
    record = Record(settings.out, command=plan.making.settings, model=model, device=str(device), precision=precision)
    pipeline.run(
        found,
        lambda item: read_case(item, plan),
        lambda read: compute(read, plan),
        lambda item, result: write_result(item, result, plan),
        record,
        progress,
    )
    return record


def insist_no_network(settings: Settings) -> None:
    """Raises UsageError E-OPTION for options of the network with another method."""
    if settings.method != "network" and (settings.passes is not None or settings.model):
        name = "--model" if settings.model else "--passes"
        raise option(f"{name} is for the network, and --method {settings.method} has none", "leave it out, or --method network")


def find(source: Path, out: Path, choices: folder.Choices) -> list[Found]:
    """The CTs, or the sinograms, in a file or folder. Raises UsageError E-OPTION if it holds both, and as `pipeline.scans_in`."""
    pipeline.insist_apart(source, out)
    sinograms = [item for item in sinogram.find(source) if not pipeline.lies_in(item.file, out, source)]
    files = {item.file for item in sinograms}
    try:
        scans = [item for item in pipeline.scans_in(source, out, choices) if item.files[0] not in files]
    except ScanError as error:
        if error.code != "E-EMPTY" or not sinograms:
            raise
        scans = []
    if scans and sinograms and source.is_dir():
        named = [item for item in sinograms if item.geometry or item.file.stem.lower().endswith(sinogram.SINO)]
        if named:
            cause = f"{source.name} holds {len(scans)} scans and {len(named)} sinograms"
            raise option(cause, "give them in two runs: they have other options")
        return list(scans)
    return list(sinograms or scans)


def read_case(found: Found, plan: Plan) -> Read:
    """First stage: files -> a CT with its grid, or a sinogram that was checked. Raises Skipped if there is nothing to do."""
    began, settings = time.perf_counter(), plan.settings
    given = (settings.measuring.geometry,) if settings.measuring.geometry else ()
    fingerprint = outputs.fingerprint((*found.files, *given), plan.making, found.case)
    if not settings.overwrite and outputs.is_complete(settings.out / f"{found.case}_{TASK.suffix}.json", fingerprint):
        raise Skipped(_output_name(found, plan))
    if isinstance(found, sinogram.Found):
        taken = intake.take_sinogram(found, settings.measuring, force=settings.force)
    else:
        insist_format(found, settings.format)
        assert plan.geometry is not None
        taken = intake.take_volume(found, plan.geometry, settings.measuring.noise, settings.choices, force=settings.force)
    views, learned = sparse_ct.warn_of_views(taken.geometry.views), ()
    if plan.model:
        learned = (*methods.insist_network_takes(taken.geometry, plan.model.card), *sparse_ct.warn_of_pixels(taken.grid.pixel_mm))
    return Read(taken._replace(warnings=(*views, *learned, *taken.warnings)), fingerprint, time.perf_counter() - began)


def compute(read: Read, plan: Plan) -> Result:
    """Second stage: projection of a CT, reconstruction, on this thread."""
    began = time.perf_counter()
    taken, seconds, measured = read.taken, {"read": read.seconds}, read.taken.measured
    if measured is None:
        measured = measure.project(taken.in_planes, taken.grid, taken.geometry, plan.settings.measuring.noise, plan.device)
        seconds["project"] = time.perf_counter() - began
        began = time.perf_counter()
    if plan.network is not None:
        made = methods.by_network(plan.network, measured, taken.acquisition)
    else:
        made = methods.by_classical(plan.settings.method, measured, taken.acquisition, plan.device)
    seconds["reconstruct"] = time.perf_counter() - began
    noise = None if taken.i0 is None else measure.expected_noise(measured, taken.i0)
    on_grid = {} if taken.measured is not None else truth.on_grid(taken, measured, made.image_hu, plan.device)
    return Result(read, made, noise, on_grid, seconds)


def write_result(found: Found, result: Result, plan: Plan) -> Case:
    """Third stage: HU on the scan's own grid, files and picture."""
    began, taken = time.perf_counter(), result.read.taken
    output = _on_scan(result.made.image_hu, taken, *RANGE_HU)
    against = (
        truth.on_scan(taken.scan.array, output.array) | {"psnr_on_grid_db": round(result.on_grid["psnr_db"], 6)} if result.on_grid else {}
    )
    facts = _facts(result, taken, plan) | ({"AgainstReference": against} if against else {})
    uncertainty = None if result.made.uncertainty_hu is None else _on_scan(result.made.uncertainty_hu, taken, 0.0, RANGE_HU[1])
    product = Product(
        output=output,
        picture=lambda: _picture(output, uncertainty, taken, plan, facts),
        warnings=taken.warnings,
        facts={"Reconstruction": facts},
        uncertainty=uncertainty,
    )
    name = outputs.write(product, plan.making, result.read.fingerprint)
    seconds = {**result.seconds, "write": time.perf_counter() - began}
    return Case(case=found.case, status="done", output=name, warnings=taken.warnings, seconds=seconds, measured=facts)


def _insist_sensible(settings: Settings, found: list[Found]) -> Geometry | None:
    """The geometry of CTs, None for sinograms. Raises UsageError E-OPTION for options that are not for what was found."""
    if not isinstance(found[0], sinogram.Found):
        return intake.geometry_for_volumes(settings.measuring)
    intake.insist_for_sinograms(settings.measuring, settings.choices)
    if settings.format != "nifti":
        raise option(f"--format {settings.format} has nothing to follow: a sinogram is no image", "leave it out")
    return None


def making_of(settings: Settings, model: Model | None) -> Making:
    """What decides the outputs of a run, without paths."""
    measuring = {key: value for key, value in vars(settings.measuring).items() if key != "geometry" and value not in (None, False)}
    described: dict[str, Any] = {
        "task": TASK.name,
        "method": settings.method,
        "format": settings.format,
        "windows": outputs.described_windows(settings.windows),
        **measuring,
        **({"geometry": "a file"} if settings.measuring.geometry else {}),
        **({"passes": settings.passes} if settings.passes else {}),
        **{key: True for key in ("force", "allow_burned_in") if getattr(settings, key)},
        **outputs.described_choices(settings.choices),
    }
    return Making(
        out=settings.out,
        task=TASK,
        model=model,
        method=settings.method,
        settings=described,
        format=settings.format,
        allow_burned_in=settings.allow_burned_in,
    )


def _output_name(found: Found, plan: Plan) -> str:
    if isinstance(found, sinogram.Found):
        return f"{found.case}_{TASK.suffix}.nii.gz"
    return outputs.output_name(found, TASK.suffix, plan.settings.format)


def _on_scan(slices: Tensor, taken: Intake, low: float, high: float) -> Volume:
    """Slices of the reconstruction's grid on the scan's own, kept between two values."""
    values = inplane.off(slices.float().numpy(), taken.grid, taken.in_planes).clip(low, high)
    output = taken.scan.with_array(inplane.as_stored(values, taken.scan))
    assert output.shape == taken.scan.shape
    return output


def _facts(result: Result, taken: Intake, plan: Plan) -> dict[str, Any]:
    """How the case was measured and reconstructed, for record and sidecar. Residuals are relative; "reference" is the truth's own."""
    residuals = result.made.residuals | ({"reference": result.on_grid["residual"]} if "residual" in result.on_grid else {})
    return {
        "Method": plan.settings.method,
        "Evaluations": result.made.evaluations,
        "Views": taken.geometry.views,
        "Geometry": json.loads(taken.geometry.model_dump_json()),
        "Grid": {"size": taken.grid.size, "pixel_mm": taken.grid.pixel_mm},
        "Noise": taken.noise,
        "ExpectedRelativeNoise": None if result.expected_noise is None else float(f"{result.expected_noise:.6g}"),
        "RelativeResidual": {stage: float(f"{value:.6g}") for stage, value in residuals.items()},
    }


def _picture(output: Volume, uncertainty: Volume | None, taken: Intake, plan: Plan, facts: dict[str, Any]) -> Any:
    """The reference where there is one, the result, their difference, the map."""
    against = facts.get("AgainstReference", {})
    said = (f"PSNR {against['psnr_db']:.1f} dB, span {against['span_hu']:.0f} HU",) if "psnr_db" in against else ()
    result = picture.Column(plan.settings.method, output, said)
    columns = [result] if taken.measured is not None else [picture.Column("reference", taken.scan), result]
    return picture.draw_results(
        columns,
        plan.settings.windows,
        title=f"{taken.scan.origin.case}   {taken.geometry.views} views",
        differing=len(columns) > 1,
        uncertainty=uncertainty,
        badge=picture.SYNTHETIC,
        warnings=taken.warnings,
        notes=(f"{plan.making.maker} · {outputs.DISCLAIMER}",),
    )
