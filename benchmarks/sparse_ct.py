"""How good CT from few views is on patients set aside: classical methods, one pass, the default, and what the map of errors is worth.

    python -m benchmarks.sparse_ct --ct CT_FOLDER --dicom DICOM_SERIES [--models sparse-ct,runs/l1/model] [--out results.json]

Eight neighbouring slices from the middle of each scan (one of each region where there is one), projected as `medsynth project` does
(I0 1e6, from a grid twice as fine) and reconstructed as `medsynth sparse-ct` does, on its grid. PSNR and SSIM over a span of 4096 HU from
-1024, means over slices; MAE where the reference lies in [-160, 240] HU. One thread; seconds are of one run and only good as ratios.
"""

import argparse
import datetime
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.metrics.regression import SSIMMetric

from benchmarks.compare.cells import machine
from medsynth import zoo
from medsynth.core.volume import Volume
from medsynth.physics.acquisition import Acquisition
from medsynth.physics.geometry import ImageGrid, fan
from medsynth.scans import folder, inplane, planes
from medsynth.tasks.sparse_ct import plane_grid
from medsynth.verbs import measure, methods

# The model has seen none of them; the encoder that it drifts with, without labels, the shoulders.
ASIDE = {
    "chest": "chest_Lung-Dx-A0002_native_slab16",
    "abdomen and pelvis": "abdomenpelvis_TCGA-BC-A10W_1p5mm",
    "pelvis": "pelvis_TCGA-BC-A10W_native_slab16",
    "shoulders": "shoulders_LIDC-IDRI-0003_native_slab16",
    "head": "head_jnifti_headct_approxHU_1mm",
}
SERIES = "abdomen"
VIEWS = (18, 36, 72)
SLICES = 8
LOW_HU, SPAN_HU = -1024.0, 4096.0
SOFT_HU = (-160.0, 240.0)
BINS_HU = (0, 2, 5, 10, 20, 35, 50, 75, 100, 150, 200, 300, 500, 1000, 3000)
RESULTS = Path(__file__).parent / "results" / "sparse_ct.json"


class Case(NamedTuple):
    """Slices of a scan on the grid of their reconstruction: what was measured, and the truth, HU [s y x]."""

    region: str
    acquisition: Acquisition
    sinogram: torch.Tensor
    truth_hu: np.ndarray


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path, required=True)
    parser.add_argument("--dicom", type=Path, help="a series of the abdomen")
    parser.add_argument("--models", default="sparse-ct")
    parser.add_argument("--views", default=",".join(map(str, VIEWS)))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[Any]] = {}
    for views in map(int, arguments.views.split(",")):
        for case in cases(arguments.ct, arguments.dicom, views):
            rows += measured(case, [name for name in arguments.models.split(",") if name], curves)
    for line in table(rows):
        print(line)
    calibration = {name: curve(np.concatenate(parts, axis=1)) for name, parts in curves.items()}
    content = {"date": str(datetime.date.today()), "machine": machine(), "slices": SLICES, "rows": rows, "calibration": calibration}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def cases(ct: Path, dicom: Path | None, views: int) -> Iterator[Case]:
    """The scans set aside, projected."""
    choices = folder.Choices()
    found = [(region, item) for region, name in ASIDE.items() for item in folder.find(ct, choices=choices) if item.case == name]
    found += [] if dicom is None else [(SERIES, folder.find(dicom, choices=choices)[0])]
    for region, item in found:
        scan = middle(planes.nearest_ras(folder.read(item, choices=choices)))
        grid, geometry = plane_grid(scan.shape, scan.affine_ras), fan(views)
        sinogram = measure.project(scan, grid, geometry, measure.Noise(), torch.device("cpu"))
        truth_hu = np.maximum(inplane.onto(scan, grid, slice(0, scan.shape[2])), -1000)
        yield Case(region, Acquisition(geometry, ImageGrid(size=grid.size, pixel_mm=grid.pixel_mm)), sinogram, truth_hu)


def middle(scan: Volume) -> Volume:
    """SLICES slices around the middle of a scan."""
    first = max(0, (scan.shape[2] - SLICES) // 2)
    affine = scan.affine_ras.copy()
    affine[:3, 3] += first * affine[:3, 2]
    return Volume(array=scan.array[:, :, first : first + SLICES].copy(), affine_ras=affine, origin=scan.origin)


def measured(case: Case, models: list[str], curves: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """A row for each method: the classical ones, and each model with one pass and with all of its passes."""
    device = torch.device("cpu")
    rows: list[dict[str, Any]] = []
    for name in ("fbp", "sirt", "tv"):
        methods.by_classical(name, case.sinogram[:1], case.acquisition, device)  # matrices are built before the clock starts
        started = time.process_time()
        result = methods.by_classical(name, case.sinogram, case.acquisition, device)
        rows.append(_row(case, name, result, time.process_time() - started))
    for reference in models:
        model = zoo.find(reference)
        for passes in (1, None):
            network = methods.load_network(model, model.weights_file(), device, passes)
            methods.by_network(network, case.sinogram[:1], case.acquisition)
            started = time.process_time()
            result = methods.by_network(network, case.sinogram, case.acquisition)
            label = reference if passes is None else f"{reference}, one pass"
            rows.append(_row(case, label, result, time.process_time() - started))
            if result.uncertainty_hu is not None:
                error = np.abs(result.image_hu.numpy() - case.truth_hu)
                both = np.stack([result.uncertainty_hu.numpy().ravel(), error.ravel()])
                curves.setdefault(f"{label}, {case.acquisition.geometry.views} views", []).append(both.astype(np.float32))
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: means over scans for each number of views, and how many slices TV reconstructs better."""
    lines: list[str] = []
    for views in sorted({row["views"] for row in rows}):
        own = [row for row in rows if row["views"] == views]
        best_tv = {row["region"]: row["psnr_db"] for row in own if row["method"] == "tv"}
        lines += [
            f"\n{views} views",
            "",
            "| method | PSNR, dB | SSIM | MAE soft, HU | residual | noise alone | s a slice | evaluations | TV better |",
        ]
        lines.append("|" + "---|" * 9)
        for method in dict.fromkeys(row["method"] for row in own):
            mine = [row for row in own if row["method"] == method]
            better = sum(int((np.array(best_tv[row["region"]]) > np.array(row["psnr_db"])).sum()) for row in mine)
            slices = sum(len(row["psnr_db"]) for row in mine)
            cells = [f"{np.mean([np.mean(row[key]) for row in mine]):.{digits}f}" for key, digits in COLUMNS]
            lines.append(f"| {method} | " + " | ".join(cells) + f" | {mine[0]['evaluations']} | {better} of {slices} |")
    return lines


COLUMNS = (("psnr_db", 2), ("ssim", 4), ("mae_soft_hu", 1), ("residual", 4), ("noise_residual", 4), ("seconds_a_slice", 2))


def curve(both: np.ndarray) -> list[dict[str, float]]:
    """By what the map says: mean of the map, mean absolute error, and share of all pixels, in bins; [2 pixels] -> one row a bin."""
    places = np.digitize(both[0], BINS_HU) - 1
    found = [(k, places == k) for k in range(len(BINS_HU))]
    return [
        {"map_hu": float(both[0][at].mean()), "error_hu": float(both[1][at].mean()), "share": float(at.mean())}
        for _, at in found
        if at.sum() >= 100
    ]


def psnr(truth_hu: np.ndarray, image_hu: np.ndarray) -> list[float]:
    """Of each slice, over SPAN_HU."""
    error = (truth_hu - np.clip(image_hu, LOW_HU, LOW_HU + SPAN_HU)).astype(np.float64)
    return [float(10 * np.log10(SPAN_HU**2 / (one**2).mean())) for one in error]


def _row(case: Case, method: str, result: methods.Reconstruction, seconds: float) -> dict[str, Any]:
    image_hu = result.image_hu.numpy()
    soft = (case.truth_hu >= SOFT_HU[0]) & (case.truth_hu <= SOFT_HU[1])
    pair = [torch.from_numpy(np.clip(x, LOW_HU, LOW_HU + SPAN_HU) - LOW_HU)[:, None] for x in (image_hu, case.truth_hu)]
    return {
        "region": case.region,
        "views": case.acquisition.geometry.views,
        "method": method,
        "psnr_db": psnr(case.truth_hu, image_hu),
        "ssim": SSIMMetric(spatial_dims=2, data_range=SPAN_HU)(*pair)[:, 0].tolist(),
        "mae_soft_hu": float(np.abs(image_hu - case.truth_hu)[soft].mean()),
        "residual": result.residuals["result"],
        "noise_residual": measure.expected_noise(case.sinogram, measure.I0),
        "seconds_a_slice": seconds / len(image_hu),
        "evaluations": result.evaluations,
    }


if __name__ == "__main__":
    main()
