"""How true and how real models for mri2ct are on heads set aside whose CT has a scanner's texture: fidelity beside KID and sharpness.

    python -m benchmarks.realism --labels LABELS --work WORK --models mri2ct-head,runs/head-drift

Each model sees the same drawn MRs of label maps 15 and 16 (2 mm, 192 x 224 x 192 mm) in one evaluation. The judge of realism is the one of
`benchmarks.compare`, from WORK or trained there first; no model has seen it. Writes benchmarks/results/realism.json.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.compare import judge as judges
from benchmarks.compare.figures import measure
from benchmarks.compare.problem import Pairs, load
from benchmarks.compare.problems import PROBLEMS
from benchmarks.compare.sizes import SIZES
from medsynth import zoo
from medsynth.core.generator import Condition
from medsynth.core.quantity import CT
from medsynth.generators import build
from medsynth.sources.deform import place
from medsynth.sources.labels import draw_plain, render, tissue_map
from medsynth.sources.packed import load_heads
from medsynth.sources.texture import apply_texture, draw_texture

SPACING_MM, PATCH = 2.0, (96, 112, 96)
KINDS, DRAWS, SEED = ("t1", "t2", "flair"), 2, 20261122
RESULTS = Path(__file__).parent / "results" / "realism.json"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", default="mri2ct-head")
    arguments = parser.parse_args()
    size, work = SIZES["small"], arguments.work / "small"
    training = load(PROBLEMS["head"].draw, "head", arguments.labels, work, size)["training"]
    judge = judges.trained(training, work / "judge" / "head", size, torch.device("cpu"))
    pairs = heads(arguments.labels, work / "packed")
    figures = {name: measure(predictions(name, pairs), pairs, judge) for name in arguments.models.split(",")}
    figures |= {name: measure(getattr(pairs, name).astype(np.float32), pairs, judge) for name in ("again", "clean")}
    for name, row in figures.items():
        print(f"{name:<24}" + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    where = {"date": str(datetime.date.today()), "draws": len(pairs.kind), "maps": "15, 16"}
    RESULTS.write_text(json.dumps(where | {"figures": figures}, indent=1))


def heads(labels: Path, cache: Path) -> Pairs:
    """Every map, contrast and draw as a pair with two draws of texture."""
    rows: list[tuple[Any, ...]] = []
    for number, head in enumerate(load_heads(labels, ("15", "16"), cache=cache)):
        size_mm = np.array(head.tissue.shape)
        centre_mm = size_mm / 2 + [0, 0, max(0.0, size_mm[2] - PATCH[2] * SPACING_MM) / 2]
        for k, kind in enumerate(KINDS):
            for draw in range(DRAWS):
                rng = np.random.default_rng((SEED, number, k, draw))
                recipe = draw_plain(rng, 0, kind, place(centre_mm, SPACING_MM), PATCH, SPACING_MM)
                condition, target = render(recipe, head, PATCH, torch.device("cpu"))
                clean_hu = CT().fit().decode(target.image[0, 0])
                tissue = tissue_map(recipe, head, PATCH, torch.device("cpu"))
                textures = [draw_texture(torch.Generator().manual_seed(int(rng.integers(2**62)))) for _ in range(2)]
                images_hu = [apply_texture(clean_hu, tissue, texture, SPACING_MM) for texture in textures]
                ct_hu = [image.round().numpy().astype(np.int16) for image in (*images_hu, clean_hu)]
                inside = target.weight[0, 0].numpy() == 1
                rows.append((condition.image[0, 0].numpy(), *ct_hu, inside, 0, np.array(textures[0][:3], dtype=np.float32), kind))
    return Pairs(*(np.stack(column) for column in zip(*rows, strict=True)))


@torch.no_grad()
def predictions(reference: str, pairs: Pairs) -> np.ndarray:
    """float32 [n x y z], HU: what the model makes of each MR."""
    model = zoo.find(reference)
    generator = build(model.card.generator, model.card.config).eval()
    generator.load_state_dict({name: value.float() for name, value in load_file(model.weights_file()).items()}, strict=True)
    images: list[np.ndarray] = []
    for condition in pairs.condition:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image = generator.sample(Condition(image=torch.from_numpy(condition)[None, None].float()))
        images.append(CT().fit().decode(image[0, 0].float()).clamp(-1024, 3000).numpy())
    return np.stack(images)


if __name__ == "__main__":
    main()
