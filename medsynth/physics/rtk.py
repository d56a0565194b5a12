"""Cone-beam reconstruction through ITK-RTK, which comes with `pip install medsynth[rtk]` and is imported only when it is used.

Axes are RTK's own: the source turns around y, stands on +z at gantry angle 0, and the detector's u and v run along x and y there. Its XML
file holds source, detector and angle of each projection (RTK's documentation, "3D circular projection geometry").
"""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from pydantic import BaseModel

from medsynth.core.errors import ScanError, UsageError
from medsynth.physics.geometry import Count, Length

Lengths = tuple[Length, Length, Length]


class VolumeGrid(BaseModel, frozen=True, extra="forbid"):
    """Voxels along RTK's x, y and z, their spacing, and the middle of the first voxel; in mm, the isocentre at 0."""

    shape: tuple[Count, Count, Count]
    spacing_mm: Lengths
    origin_mm: tuple[float, float, float]


def centred(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> VolumeGrid:
    """A grid with the isocentre in its middle."""
    first = [-(n - 1) / 2 * step for n, step in zip(shape, spacing_mm, strict=True)]
    return VolumeGrid(shape=shape, spacing_mm=spacing_mm, origin_mm=(first[0], first[1], first[2]))


def fdk(
    projections: Float32[np.ndarray, "v r c"], geometry_xml: Path, cell_mm: tuple[float, float], grid: VolumeGrid
) -> Float32[np.ndarray, "x y z"]:
    """mu in 1/mm by Feldkamp, Davis and Kress (1984, JOSA A 1(6), 612-619), with the ramp filter as it is and RTK's weights for gaps.

    projections: line integrals, rows along v and columns along u. cell_mm: pitch along u and v, which RTK's XML file does not hold; the
    detector's middle lies at u = v = 0, shifts are in the file. Raises UsageError E-RTK if RTK is not installed or cannot read the file,
    ScanError E-SINOGRAM if the file describes another number of projections.
    """
    itk, rtk = load()
    geometry = read_geometry_xml(geometry_xml)
    views = len(geometry.GetGantryAngles())
    if views != len(projections):
        remedy = "give the geometry file that belongs to these projections"
        raise ScanError("E-SINOGRAM", f"{geometry_xml.name} describes {views} projections, there are {len(projections)}", remedy=remedy)
    stack = detector_stack(projections, cell_mm)
    image_type = type(stack)
    source = rtk.ConstantImageSource[image_type].New()
    source.SetSize(grid.shape)
    source.SetSpacing(grid.spacing_mm)
    source.SetOrigin(grid.origin_mm)
    source.SetConstant(0.0)
    filter_ = rtk.FDKConeBeamReconstructionFilter[image_type].New()
    filter_.SetInput(0, source.GetOutput())
    filter_.SetInput(1, stack)
    filter_.SetGeometry(geometry)
    filter_.Update()
    return np.ascontiguousarray(itk.array_from_image(filter_.GetOutput()).T)


def read_geometry_xml(path: Path) -> Any:
    """RTK's geometry object. Raises UsageError E-RTK if RTK is not installed or the file is not a geometry of its own."""
    _, rtk = load()
    remedy = "give a geometry that RTK's tools have written"
    reader = rtk.ThreeDCircularProjectionGeometryXMLFileReader.New()
    reader.SetFilename(str(path))
    try:
        reader.GenerateOutputInformation()
    except RuntimeError as error:
        raise UsageError("E-RTK", f"RTK cannot read {path.name}: {str(error).strip().splitlines()[-1]}", remedy=remedy) from None
    geometry = reader.GetOutputObject()
    if geometry is None or not len(geometry.GetGantryAngles()):
        raise UsageError("E-RTK", f"{path.name} holds no projection of an RTK geometry", remedy=remedy)
    return geometry


def detector_stack(projections: Float32[np.ndarray, "v r c"], cell_mm: tuple[float, float]) -> Any:
    """An ITK image of the projections, its third axis the views, with the detector's middle at u = v = 0."""
    itk, _ = load()
    stack = itk.image_from_array(np.ascontiguousarray(projections))
    _, rows, columns = projections.shape
    stack.SetSpacing([*cell_mm, 1.0])
    stack.SetOrigin([-(columns - 1) / 2 * cell_mm[0], -(rows - 1) / 2 * cell_mm[1], 0.0])
    return stack


def load() -> tuple[Any, Any]:
    """The modules `itk` and `itk.RTK`. Raises UsageError E-RTK where they are not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # SWIG's types
            itk = import_module("itk")
            _ = itk.RTK.ThreeDCircularProjectionGeometry  # loads the libraries, in about ten seconds; SWIG's warning, as an error, is fatal
            return itk, itk.RTK
    except (ImportError, AttributeError):
        cause = "cone-beam reconstruction needs ITK-RTK, which is not installed"
        raise UsageError("E-RTK", cause, remedy="pip install medsynth[rtk]") from None
