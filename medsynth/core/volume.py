"""A scan in memory: voxels, where they lie in the patient, and what is needed to write the same kind of file again."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

Kind = Literal["nifti", "nrrd", "mha", "dicom"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a volume was read from.

    case: the name that outputs get (file or series name without its ending). files: one file, or a series' slices in the order of z.
    modality: "MR", "CT" or "" where the format does not say. notes: what the reader changed or noticed, for the record, without
    patient data. series: for DICOM, the series' UID.
    """

    kind: Kind
    case: str
    files: tuple[Path, ...]
    modality: str = ""
    notes: tuple[str, ...] = ()
    series: str = ""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """array: float32 [x y z]. affine_ras: float64 [4 4], voxel indices -> mm in RAS+; may be oblique, mirrored or sheared."""

    array: np.ndarray
    affine_ras: np.ndarray
    origin: Origin = field(default_factory=lambda: Origin(kind="nifti", case="scan", files=()))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self.array.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Length of one voxel step along each axis of the array, in mm."""
        x, y, z = (float(step) for step in np.linalg.norm(self.affine_ras[:3, :3], axis=0))
        return x, y, z

    def with_array(self, array: np.ndarray) -> "Volume":
        """Other voxels on the same grid. Raises ValueError if the shape differs."""
        if array.shape != self.array.shape:
            raise ValueError(f"array of shape {array.shape} on a grid of {self.array.shape}")
        return replace(self, array=array)


def same_grid(a: Volume, b: Volume, *, tolerance_mm: float = 1e-3) -> bool:
    """Whether two volumes have one shape and corners that coincide within the tolerance."""
    return a.shape == b.shape and grid_distance_mm(a, b) <= tolerance_mm


def grid_distance_mm(a: Volume, b: Volume) -> float:
    """Largest distance, in mm, between corresponding corners of two grids of one shape."""
    return float(np.linalg.norm(_corners(a) - _corners(b), axis=0).max())


def _corners(volume: Volume) -> Any:
    ends = np.array(np.meshgrid(*[(0, n - 1) for n in volume.array.shape], indexing="ij")).reshape(3, -1)
    return volume.affine_ras[:3, :3] @ ends + volume.affine_ras[:3, 3:]
