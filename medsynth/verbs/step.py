"""One training step: every objective gives its gradient at the generator's answer, and one backward pass carries their combination."""

import math
import time
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medsynth.core.coordinate import coordinate
from medsynth.core.errors import UsageError
from medsynth.core.generator import Condition, Target
from medsynth.core.quantity import CT
from medsynth.objectives.drifting import Drifting


class Answering(nn.Module):
    """A generator's answer as a forward call on a plain dictionary: Fabric's wrappers convert what they can see into."""

    generator: Any

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, condition: dict[str, Any]) -> Tensor:
        return self.generator.answer(Condition(**condition))


def backward(
    fabric: Fabric, model: Any, batch: tuple[Condition, Target], drifting: Drifting | None, rho: float, *, share: float = 1.0
) -> dict[str, Tensor]:
    """Adds the batch's gradients, times `share`, to the model's parameters; returns its losses and figures.

    model: an `Answering` set up by Fabric. drifting: takes part where rho, its weight, is above 0.
    Raises UsageError E-DIVERGED if a loss is not finite.
    """
    condition, target = batch
    generator = model.module.generator
    answer = model(vars(condition))
    leaf = answer.detach().requires_grad_()
    figures = dict(generator.fidelity(leaf, target))
    (gradient,) = torch.autograd.grad(torch.stack(list(figures.values())).sum(), leaf)
    if drifting is not None and rho > 0:
        started = _now(fabric)
        seen = trusted(drifting, target)
        loss, of_drift = drifting(_in_hu(generator.image(leaf))[seen], _in_hu(target.image)[seen], _place(target))
        (toward_real,) = torch.autograd.grad(loss, leaf)
        toward_real = toward_real * fabric.world_size  # gradients are averaged over the processes; these samples are this one's alone
        gradient, of_both = coordinate(gradient, toward_real, method=drifting.table.coordination, rho=rho)
        of_both |= {"seconds": torch.tensor(_now(fabric) - started, device=fabric.device)}
        figures |= {f"drift_{name}": value for name, value in ({"loss": loss} | of_drift | of_both).items()}
    figures = {name: value.detach() for name, value in figures.items()}
    insist_finite({name: value.item() for name, value in figures.items()})
    fabric.backward(answer, gradient=gradient * share)
    return figures


def trusted(drifting: Drifting, target: Target) -> tuple[slice, ...]:
    """What of the images drifting compares: all, or, cut into tiles, the box outside of which no voxel counts."""
    if drifting.table.tile is None:
        return (slice(None),) * 5
    counts = target.weight.amax(dim=(0, 1)) > 0
    box: list[slice] = []
    for axis in range(3):
        places = counts.any(dim=tuple(other for other in range(3) if other != axis)).nonzero()[:, 0]
        box.append(slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(None))
    return (slice(None), slice(None), *box)


def insist_finite(figures: dict[str, float]) -> None:
    """Raises UsageError E-DIVERGED if one of the figures is not finite."""
    broken = [name for name, value in figures.items() if not math.isfinite(value)]
    if broken:
        raise UsageError(
            "E-DIVERGED",
            f"training went astray, this is not finite any more: {', '.join(broken)}",
            remedy="lower learning_rate or clip_norm in the card and run the command again: it goes on from the last checkpoint",
        )


def _now(fabric: Fabric) -> float:
    """Seconds, when what was asked of a GPU is done."""
    if fabric.device.type == "cuda":
        torch.cuda.synchronize(fabric.device)
    return time.perf_counter()


def _in_hu(image: Tensor) -> Tensor:
    return CT().fit().decode(image)


def _place(target: Target) -> Tensor:
    """Sources that know no place put everything in one."""
    return torch.zeros(len(target.image), dtype=torch.long, device=target.image.device) if target.place is None else target.place
