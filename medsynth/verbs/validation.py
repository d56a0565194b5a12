"""How good a generator is on what a source sets aside, while it is trained."""

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from medsynth.core.generator import Generator, Target
from medsynth.core.quantity import CT
from medsynth.core.volume import Origin, Volume
from medsynth.core.windows import parse
from medsynth.sources import Source
from medsynth.verbs import picture

BONE_HU = 250.0
WINDOWS = (parse("head-soft"), parse("bone"))
Spacing = tuple[float, float, float]


@torch.no_grad()
def validate(fabric: Fabric, generator: Generator, source: Source, count: int) -> dict[str, float]:
    """By kind of pair: MAE in HU and Dice of bone inside the body, and sharpness, over `count` repeatable pairs.

    Sharpness is the energy of differences between neighbouring voxels inside the body, prediction over target: below 1 is blurred.
    """
    rows: dict[str, list[tuple[float, ...]]] = {}
    for index in range(count):
        condition, target, kind = source.validation_pair(index, fabric.device)
        with fabric.autocast():
            predicted = generator.sample(condition)
        rows.setdefault(kind, []).append(_scores(predicted.float(), target))
    return {
        f"{kind}_{name}": sum(row[i] for row in values) / len(values)
        for kind, values in rows.items()
        for i, name in enumerate(("mae_hu", "bone_dice", "sharpness"))
    }


def score(figures: dict[str, float]) -> float:
    """What chooses the best checkpoint and stops a run early: the mean of all kinds' MAE, in HU; lower is better."""
    errors = [value for name, value in figures.items() if name.endswith("mae_hu")]
    return sum(errors) / len(errors)


@torch.no_grad()
def draw_sample(fabric: Fabric, generator: Generator, source: Source, spacing_mm: Spacing, step: int) -> picture.Image.Image:
    """The first validation pair's target beside what the generator makes of it, and their difference."""
    condition, target, kind = source.validation_pair(0, fabric.device)
    with fabric.autocast():
        predicted = generator.sample(condition)
    wanted, got = _volume(target.image, spacing_mm, kind), _volume(predicted.float(), spacing_mm, f"step {step}")
    return picture.draw_comparison(wanted, got, WINDOWS, badge=picture.SYNTHETIC)


def _volume(image: Tensor, spacing_mm: Spacing, case: str) -> Volume:
    affine = np.diag([*spacing_mm, 1.0])
    ct_hu = CT().fit().decode(image[0, 0].cpu().numpy()).astype("float32")
    return Volume(array=ct_hu, affine_ras=affine, origin=Origin(kind="nifti", case=case, files=(), modality="CT"))


def _scores(predicted: Tensor, target: Target) -> tuple[float, ...]:
    head = target.weight == 1
    got_hu, wanted_hu = (CT().fit().decode(x) for x in (predicted, target.image))
    got, wanted = got_hu[head], wanted_hu[head]
    bone_got, bone_wanted = got > BONE_HU, wanted > BONE_HU
    dice = 2 * (bone_got & bone_wanted).sum() / (bone_got.sum() + bone_wanted.sum()).clamp(min=1)
    sharpness = _edge_energy(got_hu, head) / _edge_energy(wanted_hu, head).clamp(min=1e-6)
    return (got - wanted).abs().mean().item(), dice.item(), sharpness.item()


def _edge_energy(ct_hu: Tensor, inside: Tensor) -> Tensor:
    return torch.stack([(ct_hu.diff(dim=axis).square() * inside.narrow(axis, 1, inside.shape[axis] - 1)).sum() for axis in (2, 3, 4)]).sum()
