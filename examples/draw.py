"""Draws the two example MRs and their CT from a label map that training never saw: the files in examples/mr and examples/ct.

    python examples/draw.py --labels LABELS --map 15

LABELS is a folder of SynthSeg's training label maps (github.com/BBillot/SynthSeg, data/training_label_maps, Apache-2.0).
"""

import argparse
from pathlib import Path

import numpy as np
import platformdirs
import torch

from medsynth.core.quantity import CT
from medsynth.core.volume import Volume
from medsynth.scans import nifti
from medsynth.sources.deform import place
from medsynth.sources.labels import draw_plain, render
from medsynth.sources.packed import load_heads

HERE = Path(__file__).parent
SEEDS = {"t1": 3, "t2": 5}
MR_TOP = 250  # uint8 keeps the files small; a scanner's 12 bits would hold noise only
BRIGHT = 2.0  # network units that map to MR_TOP


def main() -> None:
    """Write examples/mr/head_{t1,t2}.nii.gz and examples/ct/head_{t1,t2}.nii.gz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--map", default="15")
    arguments = parser.parse_args()
    head = load_heads(arguments.labels, (arguments.map,), cache=Path(platformdirs.user_cache_dir("medsynth")) / "packed")[0]
    shape = tuple(int(n) // 2 * 2 for n in head.tissue.shape)
    middle_mm = np.array(head.tissue.shape) / 2
    affine_ras = np.eye(4)
    affine_ras[:3, 3] = -(np.array(shape) - 1) / 2
    for kind, seed in SEEDS.items():
        recipe = draw_plain(np.random.default_rng(seed), 0, kind, place(middle_mm, 1.0), shape, 1.0)
        scanner = recipe.degradation._replace(slice_voxels=1.0, blur_sigma=0.6, noise=0.012, air_below=0.04)
        condition, target = render(recipe._replace(degradation=scanner), head, shape, torch.device("cpu"))
        mr = np.clip(condition.image[0, 0].numpy() * (MR_TOP / BRIGHT), 0, 255)
        ct_hu = CT().fit().decode(target.image[0, 0].numpy().astype(np.float64))
        nifti.write(Volume(array=mr.astype(np.float32), affine_ras=affine_ras), HERE / "mr" / f"head_{kind}.nii.gz", dtype="uint8")
        nifti.write(Volume(array=ct_hu.astype(np.float32), affine_ras=affine_ras), HERE / "ct" / f"head_{kind}.nii.gz", dtype="int16")


if __name__ == "__main__":
    main()
