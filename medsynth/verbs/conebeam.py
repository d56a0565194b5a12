"""Cone-beam CT over a folder: the loop behind `medsynth sparse-ct --method fdk --geometry geometry.xml in/ out/`.

Stacks of projections, with the geometry that RTK's tools write, to CTs by FDK: files, record and picture are those of the other methods.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32

from medsynth.core.errors import ScanError, UsageError
from medsynth.core.volume import Origin, Volume
from medsynth.physics import cone, rtk
from medsynth.physics.cone import ConeBeam, Detector, VolumeGrid
from medsynth.physics.ct import mu_to_hu
from medsynth.scans import folder, sinogram, stack
from medsynth.tasks import sparse_ct
from medsynth.tasks.sparse_ct import RANGE_HU, TASK
from medsynth.verbs import intake, measure, outputs, picture, pipeline
from medsynth.verbs.intake import option
from medsynth.verbs.measure import I0
from medsynth.verbs.outputs import Making, Product
from medsynth.verbs.pipeline import Progress, Skipped
from medsynth.verbs.reconstruct import Settings, insist_no_network, making_of
from medsynth.verbs.record import Case, Record

BESIDE = "_geometry.xml"


class Plan(NamedTuple):
    """What all cases of a run share."""

    settings: Settings
    making: Making


class Read(NamedTuple):
    """One case. projections: line integrals. i0: None where it is not known."""

    projections: Float32[np.ndarray, "v r c"]
    xml: Path
    beam: ConeBeam
    detector: Detector
    grid: VolumeGrid
    i0: float | None
    warnings: tuple[str, ...]
    fingerprint: str
    seconds: float


class Result(NamedTuple):
    """A case reconstructed, HU on its grid."""

    read: Read
    image_hu: Float32[np.ndarray, "x y z"]
    expected_noise: float | None
    seconds: dict[str, float]


def reconstruct(settings: Settings, progress: Progress) -> Record:
    """Every stack of `source` to `out`. Raises MedsynthError for what concerns the whole run; a case's own failure is in the record."""
    _insist_sensible(settings)
    found = pipeline.scans_in(settings.source, settings.out, settings.choices)
    rtk.load()
    if settings.measuring.geometry:
        rtk.read_geometry_xml(settings.measuring.geometry)
    outputs.prepare_folder(settings.out)
    outputs.describe_dataset(settings.out, TASK)
    plan = Plan(settings, making_of(settings, None))
    record = Record(settings.out, command=plan.making.settings, model=None, device="cpu", precision="float32")
    pipeline.run(
        found,
        lambda item: read_case(item, plan),
        compute,
        lambda item, result: write_result(item, result, plan),
        record,
        progress,
    )
    return record


def read_case(found: folder.Found, plan: Plan) -> Read:
    """First stage: a file -> line integrals, what the scan sees, and the grid that fills it. Raises Skipped if there is nothing to do."""
    began, settings = time.perf_counter(), plan.settings
    xml = settings.measuring.geometry or _beside(found)
    fingerprint = outputs.fingerprint((*found.files, xml), plan.making, found.case)
    if not settings.overwrite and outputs.is_complete(settings.out / f"{found.case}_{TASK.suffix}.json", fingerprint):
        raise Skipped(f"{found.case}_{TASK.suffix}.nii.gz")
    if found.kind == "dicom":
        remedy = "give the projections of a scan as one .mha, .mhd, .nrrd or .nii.gz file"
        raise ScanError("E-SINOGRAM", f"{found.case} is DICOM, and no stack of projections", remedy=remedy)
    stored = stack.read(found.files[0])
    views, rows, columns = stored.projections.shape
    detector = Detector(cells=(columns, rows), cell_mm=stored.cell_mm, first_mm=stored.first_mm)
    beam = rtk.cone_beam(xml, detector, views)
    by_row = stored.projections.transpose(1, 0, 2)  # each row as the sinogram of a slice, which the checks are for
    measured, warnings = intake.integrals(by_row, settings.measuring, force=settings.force)
    if not beam.is_displaced:
        warnings += sinogram.notes_on_integrals(measured.numpy())
    grid = cone.grid_of_view(beam, detector)
    return Read(
        projections=np.ascontiguousarray(measured.numpy().transpose(1, 0, 2)),
        xml=xml,
        beam=beam,
        detector=detector,
        grid=grid,
        i0=settings.measuring.i0 or (I0 if settings.measuring.counts else None),
        warnings=(*sparse_ct.warn_of_views(views), *warnings, *_notes(beam, grid)),
        fingerprint=fingerprint,
        seconds=time.perf_counter() - began,
    )


def compute(read: Read) -> Result:
    """Second stage: FDK, on this thread; what not every view sees becomes air."""
    began = time.perf_counter()
    image_mu = rtk.fdk(read.projections, read.xml, read.detector, read.grid)
    image_mu *= cone.in_view(read.beam, read.grid)
    noise = None if read.i0 is None else measure.expected_noise(torch.from_numpy(read.projections), read.i0)
    seconds = {"read": read.seconds, "reconstruct": time.perf_counter() - began}
    return Result(read, mu_to_hu(torch.from_numpy(image_mu)).clamp(*RANGE_HU).numpy(), noise, seconds)


def write_result(found: folder.Found, result: Result, plan: Plan) -> Case:
    """Third stage: the CT, its picture, the sidecar."""
    began, read = time.perf_counter(), result.read
    origin = Origin(kind="nifti", case=found.case, files=found.files, modality="CT")
    output = Volume(array=result.image_hu, affine_ras=read.grid.affine_ras, origin=origin)
    facts = _facts(read, result.expected_noise)
    product = Product(
        output=output,
        picture=lambda: picture.draw_results(
            [picture.Column("fdk", output)],
            plan.settings.windows,
            title=f"{found.case}   {read.beam.views} views",
            differing=False,
            badge=picture.SYNTHETIC,
            warnings=read.warnings,
            notes=(f"{plan.making.maker} · {outputs.DISCLAIMER}",),
        ),
        warnings=read.warnings,
        facts={"Reconstruction": facts},
    )
    name = outputs.write(product, plan.making, read.fingerprint)
    seconds = {**result.seconds, "write": time.perf_counter() - began}
    return Case(case=found.case, status="done", output=name, warnings=read.warnings, seconds=seconds, measured=facts)


def _insist_sensible(settings: Settings) -> None:
    """Raises UsageError E-OPTION for options that FDK does not take, E-GEOMETRY for a geometry that is not RTK's, E-DEVICE, E-PATH."""
    insist_no_network(settings)
    intake.insist_for_sinograms(settings.measuring, settings.choices)
    if settings.format != "nifti":
        raise option(f"--format {settings.format} has nothing to follow: projections are no image", "leave it out")
    if settings.device not in ("auto", "cpu"):
        raise UsageError("E-DEVICE", f"--device {settings.device}, and RTK's FDK runs on the processor", remedy="leave it out")
    xml = settings.measuring.geometry
    if xml is None:
        return
    if not xml.is_file():
        raise UsageError("E-PATH", f"there is no geometry file {xml.name}", remedy="check the path; RTK's tools write one")
    if xml.suffix.lower() != ".xml":
        remedy = "give the .xml that RTK's tools write, or another method: fbp, sirt and tv take .toml"
        raise UsageError("E-GEOMETRY", f"--method fdk takes the geometry of a cone beam, and {xml.name} is no .xml", remedy=remedy)


def _beside(found: folder.Found) -> Path:
    """<name>_geometry.xml for <name>.mha. Raises UsageError E-GEOMETRY if there is none."""
    file = found.files[0]
    beside = file.with_name(Path(file.name.removesuffix(".gz")).stem + BESIDE)
    if not beside.is_file():
        remedy = f"give --geometry geometry.xml, which RTK's tools write, or put {beside.name} beside it"
        raise UsageError("E-GEOMETRY", f"nothing says how {file.name} was measured", remedy=remedy)
    return beside


def _notes(beam: ConeBeam, grid: VolumeGrid) -> tuple[str, ...]:
    """How the scan was taken to be."""
    size, lying = " x ".join(str(n) for n in grid.shape), "the patient taken to lie head first on the back"
    filled = f"the field of view is filled: {size} voxels of {grid.spacing_mm[0]:.2f} mm, {lying}"
    short = (f"a turn of {beam.turn_deg:.0f} degrees: lines that are measured twice are weighted (Parker)",) if beam.is_short else ()
    displaced = ("a displaced detector: lines that are measured twice are weighted (Wang)",) if beam.is_displaced else ()
    return (*short, *displaced, filled)


def _facts(read: Read, expected_noise: float | None) -> dict[str, Any]:
    """For record and sidecar, with the keys of the other methods. No residual: rays cross what lies above and below the volume."""
    beam, detector = read.beam, read.detector
    return {
        "Method": "fdk",
        "Evaluations": 0,
        "Views": beam.views,
        "Geometry": {
            "beam": "cone",
            "turn_deg": round(beam.turn_deg, 3),
            "short_scan": beam.is_short,
            "displaced_detector": beam.is_displaced,
            "columns": detector.cells[0],
            "rows": detector.cells[1],
            "cell_mm": list(detector.cell_mm),
            "source_to_isocentre_mm": round(beam.source_to_isocentre_mm, 4),
            "source_to_detector_mm": round(beam.source_to_detector_mm, 4),
            "field_of_view_mm": round(2 * beam.radius_mm, 3),
        },
        "Grid": {"shape": list(read.grid.shape), "voxel_mm": round(read.grid.spacing_mm[0], 6)},
        "Noise": {"measured": True, **({"i0": read.i0} if read.i0 else {})},
        "ExpectedRelativeNoise": None if expected_noise is None else float(f"{expected_noise:.6g}"),
        "RelativeResidual": {},
    }
