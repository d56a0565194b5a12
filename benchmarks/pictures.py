"""Pictures for the docs: what each method of the comparison makes of the same patches, and curves of a training's log.

    python -m benchmarks.pictures methods --work WORK --out docs/images/compare.png
    python -m benchmarks.pictures methods --problem sparse --work WORK --out docs/images/compare-sparse.png
    python -m benchmarks.pictures curves --log runs/head/log.csv --names train/l1,validation/t1_mae_hu --out docs/images/curves.png

Needs matplotlib (`pip install -e ".[bench]"`).
"""

import argparse
import csv
from pathlib import Path

import matplotlib as mpl
import numpy as np

from benchmarks.compare.methods import TITLES
from benchmarks.compare.problem import Pairs
from benchmarks.compare.problems import PROBLEMS
from medsynth.core.windows import parse

mpl.use("Agg")
from matplotlib import pyplot as plt

# HU, width and level; that of heads is narrow, so that texture shows.
WINDOWS = {"head": parse("100,40"), "sparse": parse("400,40")}
OF = {"head": "drawn heads", "sparse": "18 views"}
SHOWN = (("l1", 1), ("l1_msssim", 1), ("gan", 1), ("flow", 4), ("diffusion", 20), ("drift_global", 1), ("drift_sum", 1), ("drift", 1))


def main() -> None:
    """One of the two pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    methods = commands.add_parser("methods")
    methods.add_argument("--problem", choices=PROBLEMS, default="head")
    methods.add_argument("--work", type=Path, required=True)
    methods.add_argument("--seed", type=int, default=0)
    methods.add_argument("--patches", default="0,1,2")
    curves = commands.add_parser("curves")
    curves.add_argument("--log", type=Path, required=True)
    curves.add_argument("--names", required=True)
    for command in (methods, curves):
        command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "methods":
        draw_methods(
            arguments.work / "small", arguments.problem, arguments.seed, [int(k) for k in arguments.patches.split(",")], arguments.out
        )
    else:
        draw_curves(arguments.log, arguments.names.split(","), arguments.out)


def draw_methods(work: Path, problem: str, seed: int, patches: list[int], out: Path) -> None:
    """A row a patch, a column a method; the middle axial slice, with the target and what needs no training first."""
    with np.load(next((work / "pairs" / problem).glob("test-*.npz"))) as file:
        pairs = Pairs(**{key: file[key] for key in Pairs._fields})
    anchor, given = list(PROBLEMS[problem].anchors.items())[-1]
    columns = {"target": pairs.textured, TITLES[anchor]: given(pairs)}
    window = WINDOWS[problem]
    for name, evaluations in SHOWN:
        path = work / f"{problem}-{name}-{seed}" / f"examples-{evaluations}.npz"
        if path.exists():
            columns[TITLES[name] + (f", {evaluations}" if evaluations > 1 else "")] = np.load(path)["predicted_hu"]
    figure, axes = plt.subplots(len(patches), len(columns), figsize=(1.6 * len(columns), 1.75 * len(patches)), squeeze=False)
    for row, patch in enumerate(patches):
        for column, (title, images) in enumerate(columns.items()):
            shown = axes[row, column]
            middle = images[patch][:, :, images.shape[-1] // 2]
            shown.imshow(middle.T[::-1], cmap="gray", vmin=window.low, vmax=window.high, interpolation="nearest")
            shown.set_axis_off()
            if row == 0:
                shown.set_title(title.replace(" (", "\n(").replace(", ", ",\n").replace(" without ", "\nwithout "), fontsize=7)
    figure.suptitle(f"{OF[problem]}, axial, window {window.high - window.low:.0f} / {(window.high + window.low) / 2:.0f} HU", fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def draw_curves(log: Path, names: list[str], out: Path) -> None:
    """A panel for each name of a log.csv, by step."""
    with log.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(1, len(names), figsize=(2.7 * len(names), 2.2), squeeze=False)
    for shown, name in zip(axes[0], names, strict=True):
        own = [(int(row["step"]), float(row["value"])) for row in rows if row["name"] == name]
        shown.plot(*zip(*own, strict=True), linewidth=1)
        shown.set_title(name, fontsize=8)
        shown.set_xlabel("step", fontsize=7)
        shown.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
