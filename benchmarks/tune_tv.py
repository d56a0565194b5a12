"""The weight of total variation, tuned on training scans for each number of views: what `physics.classical.TV_WEIGHT` holds.

    python -m benchmarks.tune_tv --ct CT_FOLDER [--out benchmarks/results/tune_tv.json]

One slice from the middle of each scan that the card of sparse-ct names for training, at native resolution where there is one, projected and
reconstructed as by the commands. Prints mean PSNR (span 4096 HU) and MAE in [-160, 240] HU for each weight; one thread.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.compare.cells import machine
from benchmarks.sparse_ct import SOFT_HU, VIEWS, psnr
from medsynth.core.volume import Volume
from medsynth.physics.acquisition import Acquisition
from medsynth.physics.classical import total_variation
from medsynth.physics.ct import mu_to_hu
from medsynth.physics.geometry import ImageGrid, fan
from medsynth.scans import folder, inplane, planes
from medsynth.tasks.sparse_ct import plane_grid
from medsynth.verbs import measure, methods

SCANS = (
    "abdomen_C3L-00189_native_slab16",
    "abdomen_LIDC-IDRI-0001_native_slab16",
    "chest_Lung-Dx-A0001_native_slab16",
    "chest_CMB-CRC-MSB-01068_native_slab16",
    "pelvis_ACRIN-FLT-Breast-001_native_slab16",
    "shoulders_LIDC-IDRI-0002_native_slab16",
    "abdomenpelvis_TCGA-09-2043_1p5mm",
    "chest_ACRIN-FLT-Breast-013_native",
)
PER_VIEW = (0.002, 0.004, 0.007, 0.0108, 0.015, 0.022)  # weights times the number of views
RESULTS = Path(__file__).parent / "results" / "tune_tv.json"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scans = [_slice(arguments.ct, name) for name in SCANS]
    rows: list[dict[str, Any]] = []
    for views in VIEWS:
        figures = np.array([_of_scan(scan, views) for scan in scans]).mean(0)
        for per_view, (decibels, soft_hu) in zip(PER_VIEW, figures.tolist(), strict=True):
            rows.append({"views": views, "weight": per_view / views, "psnr_db": decibels, "mae_soft_hu": soft_hu})
            print(f"{views} views, weight {per_view / views:.6f}: {decibels:.2f} dB, {soft_hu:.1f} HU", flush=True)
    content = {"date": str(datetime.date.today()), "machine": machine(), "scans": SCANS, "rows": rows}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _slice(ct: Path, name: str) -> Volume:
    (item,) = (item for item in folder.find(ct, choices=folder.Choices()) if item.case == name)
    scan = planes.nearest_ras(folder.read(item, choices=folder.Choices()))
    at = scan.shape[2] // 2
    return Volume(array=scan.array[:, :, at : at + 1].copy(), affine_ras=scan.affine_ras, origin=scan.origin)


@torch.no_grad()
def _of_scan(scan: Volume, views: int) -> list[list[float]]:
    """(PSNR, MAE of soft tissue) for each weight."""
    device, geometry, grid = torch.device("cpu"), fan(views), plane_grid(scan.shape, scan.affine_ras)
    sinogram = measure.project(scan, grid, geometry, measure.Noise(), device)
    truth_hu = np.maximum(inplane.onto(scan, grid, slice(0, 1)), -1000)
    soft = (truth_hu >= SOFT_HU[0]) & (truth_hu <= SOFT_HU[1])
    operator = Acquisition(geometry, ImageGrid(size=grid.size, pixel_mm=grid.pixel_mm)).operator(device)
    figures: list[list[float]] = []
    for per_view in PER_VIEW:
        image_hu = mu_to_hu(total_variation(operator, sinogram, per_view / views, methods.TV_STEPS)).numpy()
        figures.append([psnr(truth_hu, image_hu)[0], float(np.abs(image_hu - truth_hu)[soft].mean())])
    return figures


if __name__ == "__main__":
    main()
