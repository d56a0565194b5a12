"""Cone-beam FDK through ITK-RTK: spheres from their own projections, and clear words where RTK is absent."""

from collections.abc import Sequence
from pathlib import Path

import cone_scan
import numpy as np
import pytest

from medsynth.core.errors import ScanError, UsageError
from medsynth.physics import rtk
from medsynth.physics.cone import centred, centred_detector, grid_of_view, in_view

RADIUS_MM, MU, CELL_MM, COLUMNS, ROWS = 40.0, 0.02, 2.0, 96, 56
BALL: cone_scan.Sphere = ((0.0, 0.0, 0.0), RADIUS_MM, MU)
DENSE: cone_scan.Sphere = ((20.0, 8.0, 14.0), 8.0, MU)
TURN = cone_scan.full_turn(120)
SHORT = [40.0 + 2 * view for view in range(111)]


def reconstructed(folder: Path, angles_deg: Sequence[float], *, columns: int = COLUMNS, shift_mm: float = 0.0) -> dict[str, float]:
    """mu of the ball, of the dense ball in it, of the dense ball's mirror images, and of the air around, in shares of the ball's own."""
    xml = cone_scan.write_geometry(folder / "geometry.xml", angles_deg, shift_mm=shift_mm)
    places = (cone_scan.places_mm(columns, CELL_MM) + shift_mm, cone_scan.places_mm(ROWS, CELL_MM))
    detector = centred_detector((columns, ROWS), (CELL_MM, CELL_MM))
    beam = rtk.cone_beam(xml, detector, len(angles_deg))
    grid = grid_of_view(beam, detector)
    volume = rtk.fdk(cone_scan.projections([BALL, DENSE], angles_deg, *places), xml, detector, grid)
    assert volume.shape == grid.shape
    x, y, z = np.meshgrid(*grid.axes_mm, indexing="ij")

    def mean(at: tuple[float, float, float]) -> float:
        near = (x - at[0]) ** 2 + (y - at[1]) ** 2 + (z - at[2]) ** 2 < 5**2
        return float(volume[near].mean()) / MU

    (a, b, c), air = DENSE[0], (np.hypot(x, z) > 1.1 * RADIUS_MM) & (np.abs(y) < 15) & in_view(beam, grid)
    mirrored = max(abs(mean(at) - 1) for at in ((-a, b, c), (a, -b, c), (a, b, -c)))
    return {"ball": mean((0, 0, 0)), "dense": mean(DENSE[0]), "mirrored": mirrored, "air": float(np.abs(volume[air]).max()) / MU}


@pytest.mark.parametrize(
    ("angles_deg", "columns", "shift_mm"),
    [(TURN, COLUMNS, 0.0), (SHORT, COLUMNS, 0.0), (SHORT[::-1], COLUMNS, 0.0), (TURN, 64, 30.0), (TURN, 64, -30.0)],
    ids=["full turn", "short scan", "short scan backwards", "displaced detector", "detector displaced to the other side"],
)
def test_spheres_are_found_where_they_are(angles_deg: list[float], columns: int, shift_mm: float, tmp_path: Path) -> None:
    found = reconstructed(tmp_path, angles_deg, columns=columns, shift_mm=shift_mm)
    assert found["ball"] == pytest.approx(1, abs=0.005)
    assert found["dense"] == pytest.approx(2, abs=0.01)
    assert found["mirrored"] < 0.01
    assert found["air"] < 0.05


def test_few_views_of_a_full_turn_are_not_taken_for_a_short_scan(tmp_path: Path) -> None:
    """RTK takes any gap of 20 degrees for the end of the scan, and would weight these as a turn of 330 degrees."""
    assert reconstructed(tmp_path, cone_scan.full_turn(12))["ball"] == pytest.approx(1, abs=0.03)


def test_a_geometry_of_another_number_of_projections_is_refused(tmp_path: Path) -> None:
    xml = cone_scan.write_geometry(tmp_path / "geometry.xml", TURN)
    with pytest.raises(ScanError, match=r"E-SINOGRAM.*120 projections, there are 7"):
        rtk.fdk(np.zeros((7, 8, 8), dtype=np.float32), xml, centred_detector((8, 8), (2.0, 2.0)), centred((8, 8, 8), (1.0, 1.0, 1.0)))


def test_a_file_that_is_no_geometry_is_refused(tmp_path: Path) -> None:
    cone_scan.insist_rtk()
    file = tmp_path / "geometry.xml"
    for text in ("<?xml version='1.0'?><other/>", "no xml"):
        file.write_text(text)
        with pytest.raises(UsageError, match="E-RTK"):
            rtk.read_geometry_xml(file)
    with pytest.raises(UsageError, match="E-RTK"):
        rtk.read_geometry_xml(file.with_name("absent.xml"))


def test_without_rtk_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(rtk, "import_module", absent)
    with pytest.raises(UsageError, match=r"(?s)E-RTK.*pip install medsynth\[rtk\]"):
        rtk.read_geometry_xml(Path("geometry.xml"))
