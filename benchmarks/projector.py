"""What the CT projector costs: forward and adjoint at 18 views of 512 x 512 pixels and 736 cells, beside scikit-image and ASTRA.

    python benchmarks/projector.py [--repeats 7] [--out benchmarks/results/projector.json]

One thread, one run: only the ratios mean something. scikit-image has parallel rays only, and no exact adjoint: its unfiltered `iradon` is
timed. The error is that of the line integrals of one drawn body against their formula. What is not installed is named and left out.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and ASTRA start their threads

import argparse
import datetime
import importlib.metadata
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from medsynth.physics.ct import Projector
from medsynth.physics.geometry import Geometry, ImageGrid, fan, parallel

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "physics"))
import ellipses

VIEWS, SIZE, SLICES = 18, 512, 8
GRID = ImageGrid(size=SIZE, pixel_mm=0.9)
BODY = tuple(e._replace(x=1.7 * e.x, y=1.7 * e.y, a=1.7 * e.a, b=1.7 * e.b) for e in ellipses.BODY)


class Operator(NamedTuple):
    """One library's way: `forward` of one image gives a sinogram, which `adjoint` takes back; `slices` are done at once."""

    name: str
    forward: Callable[[], Any]
    adjoint: Callable[[], Any]
    slices: int = 1


def main() -> None:
    """Measure, print, write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"date": str(datetime.date.today()), "machine": machine()}
    for geometry in (parallel(VIEWS), fan(VIEWS)):
        image = ellipses.image(GRID, BODY, oversampling=4)
        truth = ellipses.sinogram(geometry, BODY)
        measured = [timed(operator, truth, arguments.repeats) for operator in operators(geometry, image)]
        show(geometry.beam, measured)
        figures[geometry.beam] = measured
    if arguments.out is not None:
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


def operators(geometry: Geometry, image: torch.Tensor) -> Iterator[Operator]:
    """Ours, alone and with several slices at once, then those of the others that are installed and know the beam."""
    began = time.perf_counter()
    ours = Projector(geometry, GRID)
    sinogram = ours.forward(image)
    print(f"{geometry.beam}: the matrix was built in {time.perf_counter() - began:.2f} s", flush=True)
    yield Operator("medsynth", lambda: ours.forward(image), lambda: ours.adjoint(sinogram))
    images = image.repeat(SLICES, 1, 1)
    sinograms = ours.forward(images)
    yield Operator(f"medsynth, {SLICES} slices", lambda: ours.forward(images), lambda: ours.adjoint(sinograms), SLICES)
    for name, build in {"scikit-image": scikit_image, "astra-toolbox": astra_toolbox}.items():
        if version(name) is None:
            print(f"{name} is not installed")
        elif name == "scikit-image" and geometry.beam == "fan":
            print("scikit-image has no fan beam")
        else:
            yield build(geometry, image[0].numpy())


def scikit_image(geometry: Geometry, image: np.ndarray) -> Operator:
    """Rotation and summation; cells as wide as pixels, as many as the image has. Its y runs upwards, so it gets the mirrored image."""
    from skimage.transform import iradon, radon

    angles = 90 + np.array(geometry.angles_deg)
    mirrored = np.ascontiguousarray(image[::-1])
    sinogram = radon(mirrored, angles, circle=True)
    return Operator(
        "scikit-image",
        lambda: GRID.pixel_mm * on_cells(radon(mirrored, angles, circle=True).T, geometry),
        lambda: iradon(sinogram, angles, filter_name=None, circle=True),
    )


def on_cells(sinogram: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A sinogram of scikit-image, interpolated at the geometry's cells. It turns the image around pixel SIZE / 2, half a pixel off ours."""
    cells = (np.arange(geometry.detectors) - (geometry.detectors - 1) / 2) * geometry.pitch_mm
    off = [(math.sin(angle) + math.cos(angle)) / 2 for angle in geometry.angles_rad]
    own = [(np.arange(SIZE) - SIZE // 2 - pixels) * GRID.pixel_mm for pixels in off]
    return np.stack([np.interp(cells, positions, view, left=0, right=0) for positions, view in zip(own, sinogram, strict=True)])


def astra_toolbox(geometry: Geometry, image: np.ndarray) -> Operator:
    """ASTRA on the processor: linear interpolation for parallel rays, which is Joseph's; for a fan what the installed version offers."""
    import astra

    half = SIZE * GRID.pixel_mm / 2
    volume = astra.create_vol_geom(SIZE, SIZE, -half, half, -half, half)
    turned = np.array(geometry.angles_rad) + np.pi / 2  # its source stands at -y at angle 0
    if geometry.beam == "parallel":
        projections = astra.create_proj_geom("parallel", geometry.pitch_mm, geometry.detectors, turned)
        projector = astra.create_projector("linear", projections, volume)
    else:
        behind = geometry.source_to_detector_mm - geometry.source_to_isocentre_mm
        cells = (geometry.pitch_mm, geometry.detectors)
        projections = astra.create_proj_geom("fanflat", *cells, turned, geometry.source_to_isocentre_mm, behind)
        projector = astra.create_projector("line_fanflat", projections, volume)
    rows_from_top = np.ascontiguousarray(image[::-1])

    def forward() -> np.ndarray:
        identifier, sinogram = astra.create_sino(rows_from_top, projector)
        astra.data2d.delete(identifier)
        return sinogram

    sinogram = forward()

    def adjoint() -> np.ndarray:
        identifier, back = astra.create_backprojection(sinogram, projector)
        astra.data2d.delete(identifier)
        return back

    return Operator("astra-toolbox", forward, adjoint)


def timed(operator: Operator, truth: torch.Tensor, repeats: int) -> dict[str, Any]:
    """Medians in ms for one slice, and the relative error of the line integrals."""
    found = torch.as_tensor(np.asarray(operator.forward()), dtype=torch.float32)
    found = found[:1] if found.ndim == 3 else found[None]
    return {
        "operator": operator.name,
        "version": version(operator.name.split(",")[0]),
        "forward_ms": median_ms(operator.forward, repeats) / operator.slices,
        "adjoint_ms": median_ms(operator.adjoint, repeats) / operator.slices,
        "error": ellipses.relative(found, truth),
    }


def show(beam: str, measured: list[dict[str, Any]]) -> None:
    """One beam's table; ratios to ours with one slice."""
    print(f"{beam:22} {'forward ms':>10} {'adjoint ms':>10} {'ratio':>6} {'ratio':>6} {'error':>7}")
    for row in measured:
        forward, adjoint = (row[key] / measured[0][key] for key in ("forward_ms", "adjoint_ms"))
        times = f"{row['forward_ms']:10.1f} {row['adjoint_ms']:10.1f} {forward:6.2f} {adjoint:6.2f}"
        print(f"{row['operator']:22} {times} {row['error']:7.4f}", flush=True)


def median_ms(run: Callable[[], object], repeats: int) -> float:
    """Median wall time; the first run has been made already."""
    taken: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken)


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> str:
    """Processor and torch."""
    return f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}"


if __name__ == "__main__":
    main()
