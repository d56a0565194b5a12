"""What `sparse-ct` and `project` are given: a CT that is to be measured, or a sinogram that was."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from medsynth.core.errors import ScanError, UsageError
from medsynth.core.volume import Origin, Volume
from medsynth.physics import geometry as geometries
from medsynth.physics.acquisition import Acquisition
from medsynth.physics.geometry import Geometry, ImageGrid, insist_fits
from medsynth.physics.noise import counts_to_line_integrals
from medsynth.scans import folder, planes, sinogram
from medsynth.scans.inplane import PlaneGrid
from medsynth.tasks import sparse_ct
from medsynth.verbs import outputs
from medsynth.verbs.measure import I0, Noise


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How the views are, or were, taken; None where the user said nothing.

    geometry: a file, in place of views. i0: photons to a cell. counts: a sinogram holds counts. seed, noiseless: of simulated noise.
    """

    views: int | None = None
    geometry: Path | None = None
    counts: bool = False
    i0: float | None = None
    noiseless: bool = False
    seed: int | None = None

    @property
    def noise(self) -> Noise:
        """Of a simulation."""
        return Noise(i0=None if self.noiseless else self.i0 or I0, seed=self.seed or 0)


class Intake(NamedTuple):
    """One case. scan: the CT, or a grid without voxels. in_planes: it in nearest RAS+ order. measured: None where it is to be simulated.

    noise: for the record. i0: for the expected noise; None where it is not known. warnings: of this case.
    """

    scan: Volume
    in_planes: Volume
    grid: PlaneGrid
    geometry: Geometry
    measured: Float[Tensor, "s v d"] | None
    noise: dict[str, Any]
    i0: float | None
    warnings: tuple[str, ...]

    @property
    def acquisition(self) -> Acquisition:
        """Geometry and grid of the reconstruction."""
        return Acquisition(self.geometry, ImageGrid(size=self.grid.size, pixel_mm=self.grid.pixel_mm))


def geometry_for_volumes(measuring: Measuring) -> Geometry:
    """What CTs are projected with. Raises UsageError E-OPTION for options that are not for them, E-GEOMETRY, E-PATH."""
    if measuring.counts:
        raise option("--counts is for sinograms; a CT is projected by medsynth itself", "leave it out")
    if measuring.noiseless and (measuring.i0 is not None or measuring.seed is not None):
        raise option("--noiseless leaves no noise for --i0 or --seed to set", "leave them out, or --noiseless")
    if (measuring.views is None) == (measuring.geometry is None):
        raise option("a CT is projected with --views, or with what --geometry says", "give one of the two, for instance --views 36")
    if measuring.geometry is not None:
        return read_geometry(measuring.geometry).geometry
    return geometries.fan(measuring.views or 0)


def insist_for_sinograms(measuring: Measuring, choices: folder.Choices) -> None:
    """Raises UsageError E-OPTION for options that are for CTs."""
    given = {"--views": measuring.views is not None, "--noiseless": measuring.noiseless, "--seed": measuring.seed is not None}
    given |= {f"--{key.replace('_', '-')}": True for key in outputs.described_choices(choices)}
    foreign = [name for name, is_given in given.items() if is_given]
    if foreign:
        raise option(f"{foreign[0]} is for CT volumes, and these are sinograms", "leave it out: the geometry file says what was measured")


def option(cause: str, remedy: str) -> UsageError:
    """Options that do not go together."""
    return UsageError("E-OPTION", cause, remedy=remedy)


def read_geometry(path: Path) -> geometries.Scan:
    """A geometry file. Raises UsageError E-PATH, E-GEOMETRY, E-OPTION for a cone beam's."""
    if path.suffix.lower() == ".xml":
        raise option(f"{path.name} is the geometry of a cone beam", "--method fdk takes it, with a stack of projections")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        cause = f"there is no geometry file {path.name}"
        raise UsageError("E-PATH", cause, remedy="check the path; docs/geometry.md has an example") from None
    return geometries.from_toml(text, path.name)


def take_volume(found: folder.Found, geometry: Geometry, noise: Noise, choices: folder.Choices, *, force: bool) -> Intake:
    """A CT to be projected. Raises ScanError as `folder.read` and `sparse_ct.insist_projectable` do."""
    scan = folder.read(found, choices=choices)
    in_planes = planes.nearest_ras(scan)
    warnings = sparse_ct.insist_projectable(in_planes, geometry, force=force)
    grid = sparse_ct.plane_grid(scan.shape, scan.affine_ras)
    return Intake(scan, in_planes, grid, geometry, None, noise.described, noise.i0, (*warnings, *scan.origin.notes))


def take_sinogram(found: sinogram.Found, measuring: Measuring, *, force: bool) -> Intake:
    """A measured scan. Raises ScanError E-SINOGRAM for what does not fit or cannot be, UsageError E-GEOMETRY without a geometry."""
    path = measuring.geometry or found.geometry
    if path is None:
        cause = f"nothing says how {found.file.name} was measured"
        raise UsageError("E-GEOMETRY", cause, remedy=f"put {found.case}{sinogram.GEOMETRY} beside it, or give --geometry")
    described = read_geometry(path)
    stored = sinogram.read(found)
    insist_fits(described.geometry, stored.shape)
    measured, warnings = integrals(stored, measuring, force=force)
    warnings += sinogram.notes_on_integrals(measured.numpy())
    shape, affine, guessed = _image(described, len(stored))
    empty = sparse_ct.empty(shape, affine)
    scan = Volume(array=empty.array, affine_ras=affine, origin=Origin(kind="nifti", case=found.case, files=(found.file,), modality="CT"))
    in_planes = planes.nearest_ras(scan)
    if in_planes.shape[2] != len(stored):
        cause = f"{found.file.name} has {len(stored)} slices, and the volume that {path.name} describes {in_planes.shape[2]}"
        raise ScanError("E-SINOGRAM", cause, remedy="give the geometry file that belongs to it")
    noise: dict[str, Any] = {"measured": True}
    i0 = measuring.i0 or (I0 if measuring.counts else None)
    grid = sparse_ct.plane_grid(shape, affine)
    return Intake(scan, in_planes, grid, described.geometry, measured, noise | ({"i0": i0} if i0 else {}), i0, (*warnings, *guessed))


def integrals(stored: sinogram.Sinogram, measuring: Measuring, *, force: bool) -> tuple[Float[Tensor, "s v d"], tuple[str, ...]]:
    """Line integrals of a sinogram as it is stored, and what a user is warned of. Raises ScanError E-SINOGRAM."""
    i0 = measuring.i0 or I0
    cause, remedy = sinogram.problem_of_counts(stored, i0) if measuring.counts else sinogram.problem_of_integrals(stored)
    if cause and not force:
        raise ScanError("E-SINOGRAM", cause, remedy=f"{remedy}; or --force to go on regardless")
    measured = torch.from_numpy(stored)
    notes = sinogram.notes_on_counts(stored, i0) if measuring.counts else ()
    if measuring.counts:
        measured = counts_to_line_integrals(measured, i0)
    return measured, (*((cause,) if cause else ()), *notes)


def _image(described: geometries.Scan, slices: int) -> tuple[tuple[int, int, int], np.ndarray, tuple[str, ...]]:
    """Shape and affine of the volume to reconstruct on, and a note where the file does not say."""
    if described.image is not None:
        return described.image.shape, np.array(described.image.affine, dtype=np.float64), ()
    shape, affine = sparse_ct.image_of_view(described.geometry, slices)
    note = f"the geometry file has no [image]: {shape[0]} x {shape[1]} pixels of {affine[0, 0]:.2f} mm, slices taken to be 1 mm apart"
    return shape, affine, (note,)
