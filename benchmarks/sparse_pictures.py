"""Pictures for the docs on few views: the worst slice of each region beside its reference, and what the map of expected errors is worth.

    python -m benchmarks.sparse_pictures worst --ct CT_FOLDER [--dicom SERIES] [--model sparse-ct] [--views 18] --out worst.png
    python -m benchmarks.sparse_pictures curve [--results benchmarks/results/sparse_ct.json] --out curve.png

A row a region: reference, TV, the default, the difference of the default, and its map; the slice on which the default is worst. No head:
its face would show. Needs matplotlib (`pip install -e ".[bench]"`).
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

from benchmarks.sparse_ct import RESULTS, cases, psnr
from medsynth import zoo
from medsynth.core.windows import parse
from medsynth.verbs import methods

mpl.use("Agg")
from matplotlib import pyplot as plt

WINDOWS = {"chest": "1500,-500"}  # else soft tissue
SOFT = "400,40"
ERROR_HU, MAP_HU = 200.0, 200.0
FACELESS = "head"


def main() -> None:
    """One of the two pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    worst, curve = (commands.add_parser(name) for name in ("worst", "curve"))
    worst.add_argument("--ct", type=Path, required=True)
    worst.add_argument("--dicom", type=Path)
    worst.add_argument("--model", default="sparse-ct")
    worst.add_argument("--views", type=int, default=18)
    curve.add_argument("--results", type=Path, default=RESULTS)
    for command in (worst, curve):
        command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "worst":
        draw_worst(arguments)
    else:
        draw_curve(arguments.results, arguments.out)


def draw_worst(arguments: argparse.Namespace) -> None:
    """For each region the slice with the lowest PSNR."""
    device, model = torch.device("cpu"), zoo.find(arguments.model)
    network = methods.load_network(model, model.weights_file(), device, None)
    found = [case for case in cases(arguments.ct, arguments.dicom, arguments.views) if case.region != FACELESS]
    figure, axes = plt.subplots(len(found), 5, figsize=(11, 2.3 * len(found)), squeeze=False)
    for row, case in zip(axes, found, strict=True):
        result = methods.by_network(network, case.sinogram, case.acquisition)
        tv_hu = methods.by_classical("tv", case.sinogram, case.acquisition, device).image_hu.numpy()
        image_hu = result.image_hu.numpy()
        decibels = psnr(case.truth_hu, image_hu)
        k = int(np.argmin(decibels))
        window = parse(WINDOWS.get(case.region, SOFT))
        for shown, title, pixels in (
            (row[0], f"{case.region}, slice {k}", case.truth_hu[k]),
            (row[1], f"TV, {psnr(case.truth_hu, tv_hu)[k]:.1f} dB", tv_hu[k]),
            (row[2], f"{model.card.name}, {decibels[k]:.1f} dB", image_hu[k]),
        ):
            shown.imshow(pixels, cmap="gray", vmin=window.low, vmax=window.high)
            shown.set_title(title, fontsize=8)
        row[3].imshow(image_hu[k] - case.truth_hu[k], cmap="RdBu_r", vmin=-ERROR_HU, vmax=ERROR_HU)
        row[3].set_title(f"difference, +-{ERROR_HU:.0f} HU", fontsize=8)
        assert result.uncertainty_hu is not None
        row[4].imshow(result.uncertainty_hu[k].numpy(), cmap="magma", vmin=0, vmax=MAP_HU)
        row[4].set_title(f"expected error, 0 to {MAP_HU:.0f} HU", fontsize=8)
        for shown in row:
            shown.set_axis_off()
    figure.tight_layout()
    figure.savefig(arguments.out, dpi=90)


def draw_curve(results: Path, out: Path) -> None:
    """Mean absolute error against what the map says, for each number of views, all passes."""
    curves = json.loads(results.read_text(encoding="utf-8"))["calibration"]
    figure, shown = plt.subplots(figsize=(4.2, 3.6))
    shown.plot([1, 1000], [1, 1000], color="0.7", linewidth=1)
    for name, rows in curves.items():
        if "one pass" not in name:
            shown.plot([row["map_hu"] for row in rows], [row["error_hu"] for row in rows], marker=".", label=name)
    shown.set_xscale("log")
    shown.set_yscale("log")
    shown.set_xlabel("the map says, HU", fontsize=8)
    shown.set_ylabel("mean absolute error, HU", fontsize=8)
    shown.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
