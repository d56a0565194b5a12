"""Stacks of projections in the files of ITK (.mha, .mhd, .nrrd, .nii.gz): first axis columns (u), then rows (v), then views.

Spacing and origin say where the detector's cells are, as RTK's tools write and read them.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk
from jaxtyping import Float32

from medsynth.core.errors import ScanError
from medsynth.scans.itk import reason

TURNED = 1e-4  # of a direction's cosines


class Stack(NamedTuple):
    """Projections as they are stored. cell_mm: pitch along u and v. first_mm: the middle of the first cell, likewise."""

    projections: Float32[np.ndarray, "v r c"]
    cell_mm: tuple[float, float]
    first_mm: tuple[float, float]


def read(path: Path) -> Stack:
    """The stack in a file, finite.

    Raises ScanError E-READ for a damaged file, E-SINOGRAM for one that is no stack, has turned axes, or holds NaN or infinity.
    """
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        remedy = "check that the file, and a data file beside it, is whole"
        raise ScanError("E-READ", f"{path.name} cannot be read: {reason(error, path)}", remedy=remedy) from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1 or "complex" in image.GetPixelIDTypeAsString():
        cause = f"{path.name} holds {image.GetPixelIDTypeAsString()} of size {list(image.GetSize())}"
        raise ScanError("E-SINOGRAM", cause, remedy="give numbers along three axes: columns, rows, views")
    if np.abs(np.reshape(image.GetDirection(), (3, 3)) - np.eye(3)).max() > TURNED:
        remedy = "write the stack with the directions 1 0 0, 0 1 0, 0 0 1; RTK's file holds the detector's turns"
        raise ScanError("E-SINOGRAM", f"{path.name}: the axes of the projections are turned or flipped", remedy=remedy)
    projections = sitk.GetArrayFromImage(image).astype(np.float32, copy=False)
    _insist_finite(projections, path)
    (u_step, v_step, _), (u_first, v_first, _) = image.GetSpacing(), image.GetOrigin()
    return Stack(projections, (u_step, v_step), (u_first, v_first))


def _insist_finite(projections: Float32[np.ndarray, "v r c"], path: Path) -> None:
    finite = np.isfinite(projections)
    if not finite.all():
        v, r, c = (int(i) for i in np.argwhere(~finite)[0])
        cause = f"{path.name}: {int((~finite).sum())} values are NaN or infinite, first in view {v}, row {r}, column {c}"
        raise ScanError("E-SINOGRAM", cause, remedy="leave the view out of stack and geometry, or interpolate the cell")
