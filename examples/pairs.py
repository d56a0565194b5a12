"""Makes pairs of an MR and a CT from label maps, so that training on pairs can be tried without a patient's data.

    python examples/pairs.py --labels LABELS --out pairs/ --count 8
    medsynth train --data pairs/ --task mri2ct --out run/

LABELS is a folder of SynthSeg's training label maps (github.com/BBillot/SynthSeg, data/training_label_maps, Apache-2.0). Each patient is
one map in turn, seen by another scanner; from the second round on its shape and pose are changed, so that it is another head.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import platformdirs
import torch

from medsynth.core.generator import Condition, Target
from medsynth.core.quantity import CT
from medsynth.core.volume import Volume
from medsynth.scans import nifti
from medsynth.sources.deform import draw_deformation, place
from medsynth.sources.labels import draw_plain, render
from medsynth.sources.packed import Head, load_heads

LAYOUTS = {
    "folders": "{kind}/{name}.nii.gz",
    "patients": "{name}/{kind}.nii.gz",
    "bids": "sub-{name}/{folder}/sub-{name}_{suffix}.nii.gz",
    "csv": "{kind}-of-{name}.nii.gz",
}
BIDS = {"mr": ("anat", "{weighting}"), "ct": ("ct", "ct"), "mask": ("ct", "mask")}
WEIGHTINGS = {"t1": "T1w", "t2": "T2w", "flair": "FLAIR"}
MARGIN_MM = np.array([16, 16, 0])  # of air; none below, where the neck is cut
MR_UNITS = 500.0  # a scanner's value for 1 in network units


def main() -> None:
    """Write `--count` pairs in the layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--layout", choices=LAYOUTS, default="folders")
    parser.add_argument("--spacing", type=float, default=1.5, help="mm")
    arguments = parser.parse_args()
    maps = sorted(path.name.split(".")[0] for path in arguments.labels.glob("*.nii.gz"))
    if not maps:
        parser.error(f"no label map (*.nii.gz) in {arguments.labels}")
    cache = Path(platformdirs.user_cache_dir("medsynth")) / "packed"
    for number in range(arguments.count):
        (head,) = load_heads(arguments.labels, (maps[number % len(maps)],), cache=cache)
        weighting = list(WEIGHTINGS)[number % len(WEIGHTINGS)]
        pair = draw(head, weighting, number, arguments.spacing, changed=number >= len(maps))
        write(pair, f"{number + 1:03d}", weighting, arguments)
        print(f"[{number + 1}/{arguments.count}] {weighting}")
    if arguments.layout == "csv":
        write_table(arguments.out, arguments.count)


def draw(head: Head, weighting: str, seed: int, spacing_mm: float, *, changed: bool) -> tuple[Condition, Target]:
    """The whole head in one patch. changed: with another shape and pose than the map's."""
    rng = np.random.default_rng((20261121, seed))
    size_mm = np.array(head.tissue.shape) + MARGIN_MM
    x, y, z = (int(side / spacing_mm) for side in size_mm)
    middle_mm = np.array(head.tissue.shape) / 2
    pose = (
        draw_deformation(rng, head.tissue.shape, (x, y, z), spacing_mm)._replace(centre=middle_mm)
        if changed
        else place(middle_mm, spacing_mm)
    )
    recipe = draw_plain(rng, 0, weighting, pose, (x, y, z), spacing_mm)
    return render(recipe, head, (x, y, z), torch.device("cpu"))


def write(pair: tuple[Condition, Target], name: str, weighting: str, arguments: argparse.Namespace) -> None:
    """Three files: MR and CT as int16, mask as uint8."""
    condition, target = pair
    ct_hu = CT().fit().decode(target.image[0, 0].numpy().astype(np.float64))
    images = {"mr": condition.image[0, 0].numpy() * MR_UNITS, "ct": ct_hu, "mask": target.weight[0, 0].numpy() == 1}
    affine_ras = np.diag([arguments.spacing] * 3 + [1.0])
    for kind, array in images.items():
        place_in, suffix = BIDS[kind]
        pattern = LAYOUTS[arguments.layout]
        suffix = suffix.format(weighting=WEIGHTINGS[weighting])
        path = arguments.out / pattern.format(kind=kind, name=name, folder=place_in, suffix=suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        volume = Volume(array=array.astype(np.float32), affine_ras=affine_ras)
        nifti.write(volume, path, dtype="uint8" if kind == "mask" else "int16")


def write_table(out: Path, count: int) -> None:
    """pairs.csv; which patients are for validation is left to `medsynth train`."""
    with (out / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("patient", "mr", "ct", "mask"))
        for number in range(1, count + 1):
            name = f"{number:03d}"
            writer.writerow((name, *(LAYOUTS["csv"].format(kind=kind, name=name) for kind in ("mr", "ct", "mask"))))


if __name__ == "__main__":
    main()
