"""A cone-beam scan of spheres, projected by formula; its geometry in RTK's own file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medsynth.core.errors import UsageError
from medsynth.physics import rtk

SOURCE_MM, DETECTOR_MM = 1000.0, 1536.0
Sphere = tuple[tuple[float, float, float], float, float]  # centre along RTK's x, y, z and radius in mm; mu in 1/mm


def insist_rtk() -> None:
    """Skips the test where RTK is not installed."""
    try:
        rtk.load()
    except UsageError as error:
        pytest.skip(error.cause)


def full_turn(views: int) -> list[float]:
    """Angles in degrees."""
    return [view * 360 / views for view in range(views)]


def write_geometry(path: Path, angles_deg: Sequence[float], *, shift_mm: float = 0.0, to_detector_mm: float = DETECTOR_MM) -> Path:
    """RTK's file of a circle. shift_mm: of the detector along u, which RTK calls ProjectionOffsetX. Skips the test without RTK."""
    insist_rtk()
    _, module = rtk.load()
    geometry = module.ThreeDCircularProjectionGeometry.New()
    for angle in angles_deg:
        geometry.AddProjection(SOURCE_MM, to_detector_mm, angle, shift_mm)
    writer = module.ThreeDCircularProjectionGeometryXMLFileWriter.New()
    writer.SetFilename(str(path))
    writer.SetObject(geometry)
    writer.WriteFile()
    return path


def projections(spheres: Sequence[Sphere], angles_deg: Sequence[float], u_mm: np.ndarray, v_mm: np.ndarray) -> np.ndarray:
    """float32 [views rows columns], line integrals of the rays from the source to the cells at u and v, which hold the detector's shift."""
    stack = np.zeros((len(angles_deg), len(v_mm), len(u_mm)))
    for view, angle in enumerate(np.deg2rad(angles_deg)):
        across, towards = np.array([np.cos(angle), 0, -np.sin(angle)]), np.array([np.sin(angle), 0, np.cos(angle)])  # u, the source
        source = SOURCE_MM * towards
        cells = u_mm[None, :, None] * across + v_mm[:, None, None] * np.array([0, 1, 0]) - (DETECTOR_MM - SOURCE_MM) * towards
        rays = (cells - source) / np.linalg.norm(cells - source, axis=-1, keepdims=True)
        for centre, radius_mm, mu in spheres:
            to_centre = np.array(centre) - source
            missed = to_centre @ to_centre - (rays @ to_centre) ** 2  # squared distance of the ray from the centre
            stack[view] += 2 * mu * np.sqrt(np.maximum(radius_mm**2 - missed, 0))
    return stack.astype(np.float32)


def places_mm(cells: int, cell_mm: float) -> np.ndarray:
    """Of the cells of a detector whose middle is at 0."""
    return (np.arange(cells) - (cells - 1) / 2) * cell_mm


def write_stack(path: Path, stack: np.ndarray, cell_mm: float, *, centred: bool = True) -> Path:
    """The projections in any format that ITK writes, the detector's middle, or its first cell, at u = v = 0."""
    image = sitk.GetImageFromArray(stack)
    _, rows, columns = stack.shape
    image.SetSpacing([cell_mm, cell_mm, 1.0])
    image.SetOrigin([-(columns - 1) / 2 * cell_mm, -(rows - 1) / 2 * cell_mm, 0.0] if centred else [0.0, 0.0, 0.0])
    sitk.WriteImage(image, path)
    return path
