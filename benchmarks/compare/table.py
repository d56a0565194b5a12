"""The table of a comparison in markdown, from the files of its cells: mean and standard deviation over seeds."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .methods import METHODS, TITLES
from .sizes import SIZES

# Heading, figure, decimals.
COLUMNS = (
    ("MAE, HU", "mae_hu", 1),
    ("MAE to the clean CT, HU", "mae_clean_hu", 1),
    ("PSNR, dB", "psnr_db", 2),
    ("SSIM", "ssim", 3),
    ("sharpness", "sharpness", 2),
    ("soft-tissue texture", "soft_texture", 2),
    ("soft-tissue histogram, HU", "soft_wasserstein_hu", 2),
    ("KID x 1000", "kid", 1),
    ("s a volume", "seconds_a_volume", 2),
    ("times L1's", "times_one_evaluation", 1),
)
# What is also told of each seed by itself, in percent of L1's with the same start: spreads between seeds hide it.
PAIRED = (("MAE to L1's, %", "mae_hu"), ("KID to L1's, %", "kid"))
ORDER = (*METHODS, "start", "again", "clean")


def table(folder: Path, size: str) -> str:
    """Markdown for each problem that has cells of this size."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / size).glob("*.json"))]
    problems = sorted({cell["problem"] for cell in cells})
    return "\n\n".join(_of_problem(problem, [cell for cell in cells if cell["problem"] == problem], size) for problem in problems)


def _of_problem(problem: str, cells: list[dict[str, Any]], size: str) -> str:
    rows = [(row, cell) for cell in cells for row in cell["rows"]]
    keys = sorted({(ORDER.index(row["method"]), row["evaluations"]) for row, _ in rows})
    lines = [
        "| method | evaluations | seeds | steps | " + " | ".join(heading for heading, *_ in (*COLUMNS, *PAIRED)) + " |",
        "|" + "---|" * (4 + len(COLUMNS) + len(PAIRED)),
    ]
    for position, evaluations in keys:
        own = [(row, cell) for row, cell in rows if row["method"] == ORDER[position] and row["evaluations"] == evaluations]
        lines.append(
            _line(ORDER[position], evaluations, own, {cell["seed"]: row["figures"] for row, cell in rows if row["method"] == "l1"})
        )
    return "\n".join([_heading(problem, cells, size), "", *lines])


def _heading(problem: str, cells: list[dict[str, Any]], size: str) -> str:
    trained = [cell for cell in cells if "seconds" in cell]
    shape = SIZES[size]
    pairs = f"{shape.training} training and {shape.test} test patches of {shape.patch}^3 at {shape.spacing_mm:g} mm"
    told = [f"Problem {problem}, size {size}: {pairs}"]
    for key, text in (
        ("warm_seconds", "all start from {} s of L1"),
        ("seconds", "{} s of training a cell"),
        ("parameters", "{} parameters"),
        ("machine", "{}"),
        ("date", "{}"),
    ):
        told.append(text.format(", ".join(sorted({str(cell[key]) for cell in trained}))))
    return "; ".join(told) + "."


def _line(method: str, evaluations: int, own: list[tuple[dict[str, Any], dict[str, Any]]], of_l1: dict[int, dict[str, float]]) -> str:
    steps = [cell["steps"] for _, cell in own if "steps" in cell]
    parts = [TITLES[method], str(evaluations), str(len(own)), f"{np.mean(steps):.0f}" if steps else ""]
    parts += [spread((row["figures"][name] for row, _ in own if name in row["figures"]), decimals) for _, name, decimals in COLUMNS]
    trained = [(cell["seed"], row["figures"]) for row, cell in own if "steps" in cell and method != "l1"]
    parts += [by_seed(trained, of_l1, name) for _, name in PAIRED]
    return "| " + " | ".join(parts) + " |"


def by_seed(own: Iterable[tuple[int, dict[str, float]]], of_l1: dict[int, dict[str, float]], name: str) -> str:
    """How far a figure is from L1's of the same seed, in percent, seed by seed; only where both have it."""
    both = [(figures[name], of_l1[seed][name]) for seed, figures in sorted(own, key=lambda pair: pair[0]) if name in of_l1.get(seed, {})]
    return ", ".join(f"{100 * (value / reference - 1):+.1f}" for value, reference in both)


def spread(values: Iterable[float], decimals: int) -> str:
    """Mean, and standard deviation (of a sample) where there are several values; empty for none."""
    numbers = list(values)
    if not numbers:
        return ""
    mean = f"{np.mean(numbers):.{decimals}f}"
    return f"{mean} ± {np.std(numbers, ddof=1):.{decimals}f}" if len(numbers) > 1 else mean
