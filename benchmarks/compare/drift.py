"""GDM-style training on the package's core: L1 with drifting, coordinated in the output space, from a start that L1 alone has trained."""

from typing import Any

import numpy as np
import torch

from medsynth import zoo
from medsynth.core.coordinate import coordinate
from medsynth.core.recipe import Coordination, DriftTable, Level
from medsynth.nets.frozen import FrozenEncoder
from medsynth.objectives.drifting import Drifting
from medsynth.verbs import encoders

from .method import CT_SCALE, Moment, OneEvaluation, Setting, l1
from .network import Network
from .problem import Batch, batch_of

RAMPED = 0.2  # share of the time over which the drift's weight rises


class Drift(OneEvaluation):
    """levels, stages: of the feature bank. coordination: how the drift's gradient joins that of L1.

    The drift counts as much as fidelity, and the coarsest stage, which sees whole patches, stays out: both were chosen on seed 0, before
    the other seeds were run (docs/log.md).
    """

    def __init__(
        self,
        setting: Setting,
        *,
        levels: tuple[Level, ...] = ("global", "local", "spatial"),
        stages: tuple[int, ...] = (0, 1, 2),
        coordination: Coordination = "fidelity-first",
    ) -> None:
        self.table = DriftTable(levels=levels, stages=stages, coordination=coordination, rho=1.0)
        self.drifting = Drifting(load_encoder(setting), self.table, batch=setting.size.batch)
        chosen = np.arange(self.table.calibration).reshape(-1, min(setting.size.batch, self.table.calibration))
        batches = (batch_of(setting.training, indices, setting.device) for indices in chosen)
        self.drifting.calibrate([CT_SCALE.decode(batch.target) for batch in batches])

    def backward(self, network: Network, batch: Batch, moment: Moment) -> dict[str, float]:
        image = self.answer(network, batch.condition, moment.rng)
        leaf = image.detach().requires_grad_()
        fidelity = l1(leaf, batch)
        (gradient,) = torch.autograd.grad(fidelity, leaf)
        figures = {"l1": fidelity}
        rho = self.table.rho * min(1.0, moment.share / RAMPED)
        if rho > 0:
            loss, of_drift = self.drifting(CT_SCALE.decode(leaf), CT_SCALE.decode(batch.target), batch.place)
            (towards_real,) = torch.autograd.grad(loss, leaf)
            gradient, of_coordination = coordinate(gradient, towards_real, method=self.table.coordination, rho=rho)
            figures |= {"drift": loss, **of_drift, **of_coordination}
        image.backward(gradient)
        return {name: value.item() for name, value in figures.items()}

    def state(self) -> dict[str, Any]:
        return self.drifting.state()

    def load(self, state: dict[str, Any]) -> None:
        self.drifting.load(state)


def load_encoder(setting: Setting) -> FrozenEncoder:
    """The frozen encoder that the run names."""
    return encoders.load_encoder(zoo.find_encoder(str(setting.encoder))).to(setting.device)
