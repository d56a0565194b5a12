"""How well a model for mri2ct recovers CTs: on label maps set aside, and on a real head with a segmentation of its brain.

    python benchmarks/quality.py --labels LABELS [--real T1.mgz --brain aparc+aseg.mgz] [--model NAME] [--card card.toml]

Fresh contrasts are drawn at 2 mm from the label maps that the card names for validation, written as NIfTI, and go through the whole of
`medsynth mri2ct`; the comparison is at 2 mm inside the head. Prints a table, writes benchmarks/results/quality.json, and with --card
the figures into the card's [[metrics]].
"""

import argparse
import datetime
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tomlkit
import torch

from medsynth import zoo
from medsynth.core.quantity import CT
from medsynth.core.volume import Volume
from medsynth.core.windows import parse
from medsynth.scans import nifti
from medsynth.sources.deform import place
from medsynth.sources.labels import draw_plain, render
from medsynth.sources.packed import load_heads
from medsynth.verbs.console import RunPrinter
from medsynth.verbs.synthesize import Settings, synthesize

SPACING_MM = 2.0
PATCH = (96, 112, 96)  # 192 x 224 x 192 mm, the upper part of the head: as in the spike whose figures are the bar
DRAWS = 12
SEED = 20261121
BONE_HU = 250
RESULTS = Path(__file__).parent / "results" / "quality.json"
# T1, T2, FLAIR: MAE in HU at most, bone Dice at least.
BARS = {"t1": (92, 0.79), "t2": (106, 0.75), "flair": (96, 0.775)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--model", default="mri2ct-head")
    parser.add_argument("--real", type=Path)
    parser.add_argument("--brain", type=Path, help="labels on the real MR's grid: every label above 0 counts as brain")
    parser.add_argument("--card", type=Path)
    arguments = parser.parse_args()
    model = zoo.find(arguments.model)
    with tempfile.TemporaryDirectory() as folder:
        rows = drawn_heads(model, arguments.model, arguments.labels, Path(folder))
        figures: list[dict[str, Any]] = summary(rows, model)
        if arguments.real and arguments.brain:
            figures.append(bone_in_brain(arguments.model, arguments.real, arguments.brain, Path(folder)))
    for figure in figures:
        print(f"{figure['name']:<22} {figure['value']:8.3f} {figure['unit']:<3} {figure['data']}")
    RESULTS.parent.mkdir(exist_ok=True)
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    RESULTS.write_text(
        json.dumps(
            {"date": str(datetime.date.today()), "machine": machine, "model": model.card.name, "rows": rows, "figures": figures}, indent=1
        )
    )
    if arguments.card:
        into_card(arguments.card, figures)


def drawn_heads(model: zoo.Model, reference: str, labels: Path, folder: Path) -> list[dict[str, Any]]:
    """One row per map, kind and draw: MAE in HU and bone Dice inside the head, and the MAE of 40 HU everywhere."""
    assert model.card.train is not None
    names = model.card.train.validation
    heads = load_heads(labels, names, cache=folder / "packed")
    truth: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    (folder / "mr").mkdir()
    for number, (name, head) in enumerate(zip(names, heads, strict=True)):
        size_mm = np.array(head.tissue.shape)
        centre_mm = size_mm / 2 + [0, 0, max(0.0, size_mm[2] - PATCH[2] * SPACING_MM) / 2]
        for k, kind in enumerate((*BARS, "t1c", "pd", "random")):
            for draw in range(DRAWS):
                rng = np.random.default_rng((SEED, number, k, draw))
                recipe = draw_plain(rng, 0, kind, place(centre_mm, SPACING_MM), PATCH, SPACING_MM)
                condition, target = render(recipe, head, PATCH, torch.device("cpu"))
                case = f"{name}_{kind}_{draw}"
                volume = Volume(array=condition.image[0, 0].numpy() * 500, affine_ras=np.diag([SPACING_MM] * 3 + [1.0]))
                nifti.write(volume, folder / "mr" / f"{case}.nii.gz", dtype="float32")
                truth[case] = (CT().fit().decode(target.image[0, 0].numpy().astype(np.float64)), target.weight[0, 0].numpy() == 1)
    run(reference, folder / "mr", folder / "out")
    return [scored(case, folder / "out", *truth[case]) for case in truth]


def scored(case: str, out: Path, ct_hu: np.ndarray, head: np.ndarray) -> dict[str, Any]:
    """The row of one case; a scan that failed counts as 40 HU everywhere would, and is named."""
    name, kind, draw = case.split("_")
    path = out / f"{case}_ct.nii.gz"
    got = np.asarray(nib.load(path).dataobj)[head] if path.exists() else np.full(int(head.sum()), 40.0)
    wanted = ct_hu[head]
    bone_got, bone_wanted = got > BONE_HU, wanted > BONE_HU
    dice = 2 * (bone_got & bone_wanted).sum() / (bone_got.sum() + bone_wanted.sum())
    errors = {"mae_hu": float(np.abs(got - wanted).mean()), "bone_dice": float(dice), "mae_of_40_hu": float(np.abs(40 - wanted).mean())}
    return {"map": name, "kind": kind, "draw": int(draw), "failed": not path.exists(), **errors}


def summary(rows: list[dict[str, Any]], model: zoo.Model) -> list[dict[str, Any]]:
    """Means over maps and draws, per kind, with the spread."""
    assert model.card.train is not None
    figures: list[dict[str, Any]] = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        failed = sum(row["failed"] for row in own)
        for name, unit in (("mae_hu", "HU"), ("bone_dice", "")):
            values = [row[name] for row in own]
            data = f"{len(own)} draws of maps {', '.join(model.card.train.validation)}, 2 mm, inside the head, sd {np.std(values):.3g}"
            bar = f", bar {BARS[kind][name == 'bone_dice']}" if kind in BARS else ""
            figures.append(
                {
                    "name": f"{kind}_{name}",
                    "value": float(np.mean(values)),
                    "unit": unit,
                    "data": data + bar + (f", {failed} failed" if failed else ""),
                }
            )
    return figures


def bone_in_brain(reference: str, scan: Path, labels: Path, folder: Path) -> dict[str, Any]:
    """Share of the real head's brain voxels above 250 HU, in per cent."""
    run(reference, scan, folder / "real")
    ct_hu = np.asarray(nib.load(next((folder / "real").glob("*_ct.nii.gz"))).dataobj)
    brain = np.asarray(nib.load(labels).dataobj) > 0
    return {
        "name": "bone_in_brain",
        "value": float(100 * (ct_hu[brain] > BONE_HU).mean()),
        "unit": "%",
        "data": "one real T1 head (mne-misc-data ecog), brain by FreeSurfer, bar 0.5",
    }


def run(reference: str, source: Path, out: Path) -> None:
    """`medsynth mri2ct source out --model reference`, in this process."""
    settings = Settings(task="mri2ct", model=reference, source=source, out=out, windows=(parse("bone"),))
    record = synthesize(settings, RunPrinter(quiet=True))
    for case in record.failures:
        print(f"{case.case}: {case.code} {case.cause}")


def into_card(path: Path, figures: list[dict[str, Any]]) -> None:
    """Replace the card's metrics by these."""
    card = tomlkit.parse(path.read_text(encoding="utf-8"))
    metrics = tomlkit.aot()
    for figure in figures:
        row = {**figure, "value": round(figure["value"], 4), "command": "python benchmarks/quality.py", "date": str(datetime.date.today())}
        metrics.append(tomlkit.item(row))
    card["metrics"] = metrics
    path.write_text(tomlkit.dumps(card), encoding="utf-8")


if __name__ == "__main__":
    main()
