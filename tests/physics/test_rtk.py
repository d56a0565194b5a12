"""Cone-beam FDK through ITK-RTK: a sphere from its own projections, and clear words where RTK is absent."""

from pathlib import Path

import numpy as np
import pytest

from medsynth.core.errors import ScanError, UsageError
from medsynth.physics import rtk

SOURCE_MM, DETECTOR_MM, RADIUS_MM, MU = 1000.0, 1536.0, 40.0, 0.02


@pytest.fixture
def geometry_xml(tmp_path: Path) -> Path:
    """120 projections over a full turn, in RTK's own file; the test is skipped where RTK is not installed."""
    try:
        _, module = rtk.load()
    except UsageError as error:
        pytest.skip(error.cause)
    geometry = module.ThreeDCircularProjectionGeometry.New()
    for view in range(120):
        geometry.AddProjection(SOURCE_MM, DETECTOR_MM, view * 3.0)
    writer = module.ThreeDCircularProjectionGeometryXMLFileWriter.New()
    writer.SetFilename(str(tmp_path / "geometry.xml"))
    writer.SetObject(geometry)
    writer.WriteFile()
    return tmp_path / "geometry.xml"


def sphere_projection(cells: int, cell_mm: float) -> np.ndarray:
    """float32 [rows cells], chords of the cone's rays through a sphere around the isocentre; the same from all sides."""
    u = (np.arange(cells) - (cells - 1) / 2) * cell_mm
    square = u[:, None] ** 2 + u[None] ** 2
    nearest = SOURCE_MM**2 * square / (square + DETECTOR_MM**2)  # squared distance of the ray from the isocentre
    return (2 * MU * np.sqrt(np.maximum(RADIUS_MM**2 - nearest, 0))).astype(np.float32)


def test_a_sphere_is_found_from_its_cone_beam_projections(geometry_xml: Path) -> None:
    projections = np.repeat(sphere_projection(96, 2.0)[None], 120, axis=0)
    grid = rtk.centred((48, 31, 52), (2.0, 3.0, 2.0))
    volume = rtk.fdk(projections, geometry_xml, (2.0, 2.0), grid)
    assert volume.shape == grid.shape
    axes = [origin + step * np.arange(n) for n, step, origin in zip(grid.shape, grid.spacing_mm, grid.origin_mm, strict=True)]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    assert volume[distance < 0.8 * RADIUS_MM].mean() == pytest.approx(MU, rel=0.02)
    assert abs(volume[(distance > 1.1 * RADIUS_MM) & (distance < 46)].mean()) < 0.03 * MU


def test_a_geometry_of_another_number_of_projections_is_refused(geometry_xml: Path) -> None:
    with pytest.raises(ScanError, match="E-SINOGRAM"):
        rtk.fdk(np.zeros((7, 8, 8), dtype=np.float32), geometry_xml, (2.0, 2.0), rtk.centred((8, 8, 8), (1.0, 1.0, 1.0)))


def test_a_file_that_is_no_geometry_is_refused(geometry_xml: Path) -> None:
    for text in ("<?xml version='1.0'?><other/>", "no xml"):
        geometry_xml.write_text(text)
        with pytest.raises(UsageError, match="E-RTK"):
            rtk.read_geometry_xml(geometry_xml)
    with pytest.raises(UsageError, match="E-RTK"):
        rtk.read_geometry_xml(geometry_xml.with_name("absent.xml"))


def test_without_rtk_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(rtk, "import_module", absent)
    with pytest.raises(UsageError, match=r"(?s)E-RTK.*pip install medsynth\[rtk\]"):
        rtk.fdk(np.zeros((1, 2, 2), dtype=np.float32), Path("geometry.xml"), (1.0, 1.0), rtk.centred((2, 2, 2), (1.0, 1.0, 1.0)))
