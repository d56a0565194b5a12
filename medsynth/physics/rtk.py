"""Cone-beam reconstruction through ITK-RTK, which comes with `pip install medsynth[rtk]` and is imported only when it is used.

Axes are RTK's own (`physics.cone`); the detector's u and v run along x and y at gantry angle 0. Its XML file holds source, detector and
angle of each projection (RTK's documentation, "3D circular projection geometry").
"""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from medsynth.core.errors import ScanError, UsageError
from medsynth.physics.cone import ConeBeam, Detector, VolumeGrid, insist_possible


def fdk(
    projections: Float32[np.ndarray, "v r c"], geometry_xml: Path, detector: Detector, grid: VolumeGrid
) -> Float32[np.ndarray, "x y z"]:
    """mu in 1/mm by Feldkamp, Davis and Kress (1984, JOSA A 1(6), 612-619), Hann window up to the voxel's Nyquist frequency along u.

    projections: line integrals, rows along v and columns along u. Parker's weights for a turn that is not full, Wang's for a displaced
    detector, RTK's for uneven steps. Raises as `cone_beam` does, and ScanError E-RTK if RTK stops.
    """
    itk, rtk = load()
    geometry, beam = read_geometry_xml(geometry_xml), cone_beam(geometry_xml, detector, len(projections))
    weighted = stack = detector_stack(projections, detector)
    image_type = type(stack)
    if beam.is_displaced or beam.is_short:  # RTK would take less than 18 views of a full turn for a short scan
        weights = rtk.DisplacedDetectorImageFilter if beam.is_displaced else rtk.ParkerShortScanImageFilter
        weighting = weights[image_type].New()
        weighting.SetInput(stack)
        weighting.SetGeometry(geometry)
        weighted = weighting.GetOutput()
    source = rtk.ConstantImageSource[image_type].New()
    source.SetSize(grid.shape)
    source.SetSpacing(grid.spacing_mm)
    source.SetOrigin(grid.origin_mm)
    source.SetConstant(0.0)
    filter_ = rtk.FDKConeBeamReconstructionFilter[image_type].New()
    filter_.SetInput(0, source.GetOutput())
    filter_.SetInput(1, weighted)
    filter_.SetGeometry(geometry)
    pitch_mm = detector.cell_mm[0] * beam.source_to_isocentre_mm / beam.source_to_detector_mm
    filter_.GetRampFilter().SetHannCutFrequency(min(1.0, pitch_mm / min(grid.spacing_mm)))
    try:
        filter_.Update()
    except RuntimeError as error:
        raise ScanError("E-RTK", f"RTK stopped: {_reason(error)}", remedy="check geometry and projections with RTK's own rtkfdk") from None
    return np.ascontiguousarray(itk.array_from_image(filter_.GetOutput()).T)


def cone_beam(geometry_xml: Path, detector: Detector, projections: int) -> ConeBeam:
    """What the views of RTK's file see with a detector, which the file does not describe.

    Raises as `read_geometry_xml` and `cone.insist_possible` do, and ScanError E-SINOGRAM if there are more or fewer projections.
    """
    geometry = read_geometry_xml(geometry_xml)
    angles = np.rad2deg(list(geometry.GetGantryAngles()))
    if len(angles) != projections:
        remedy = "give the geometry file that belongs to these projections"
        raise ScanError("E-SINOGRAM", f"{geometry_xml.name} describes {len(angles)} projections, there are {projections}", remedy=remedy)
    to_isocentre, to_detector, shift, height = (
        np.array(list(values))
        for values in (
            geometry.GetSourceToIsocenterDistances(),
            geometry.GetSourceToDetectorDistances(),
            geometry.GetProjectionOffsetsY(),
            geometry.GetSourceOffsetsY(),
        )
    )
    scale = to_isocentre / np.where(to_detector == 0, np.inf, to_detector)
    left, right = ([geometry.ToUntiltedCoordinateAtIsocenter(view, end[0]) for view in range(projections)] for end in detector.ends_mm)
    low, high = ((end[1] + shift - height) * scale + height for end in detector.ends_mm)
    beam = ConeBeam(
        angles_deg=tuple(angles.tolist()),
        source_to_isocentre_mm=float(to_isocentre.mean()),
        source_to_detector_mm=float(to_detector.mean()),
        across_mm=(max(left), min(right)),
        along_mm=(float(low.max()), float(high.min())),
        climb_mm=float(np.ptp([geometry.GetSourcePosition(view)[1] for view in range(projections)])),
        curved_mm=geometry.GetRadiusCylindricalDetector(),
    )
    insist_possible(beam, detector)
    return beam


def read_geometry_xml(path: Path) -> Any:
    """RTK's geometry object. Raises UsageError E-RTK if RTK is not installed or the file is not a geometry of its own."""
    _, rtk = load()
    remedy = "give a geometry that RTK's tools have written"
    reader = rtk.ThreeDCircularProjectionGeometryXMLFileReader.New()
    reader.SetFilename(str(path))
    try:
        reader.GenerateOutputInformation()
    except RuntimeError as error:
        raise UsageError("E-RTK", f"RTK cannot read {path.name}: {_reason(error)}", remedy=remedy) from None
    geometry = reader.GetOutputObject()
    if geometry is None or not len(geometry.GetGantryAngles()):
        raise UsageError("E-RTK", f"{path.name} holds no projection of an RTK geometry", remedy=remedy)
    return geometry


def detector_stack(projections: Float32[np.ndarray, "v r c"], detector: Detector) -> Any:
    """An ITK image of the projections, its third axis the views, where the detector is."""
    itk, _ = load()
    stack = itk.image_from_array(np.ascontiguousarray(projections))
    stack.SetSpacing([*detector.cell_mm, 1.0])
    stack.SetOrigin([*detector.first_mm, 0.0])
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


def _reason(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1]
