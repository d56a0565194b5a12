"""Gradients of fidelity and drift, brought together at the generator's output, so that one backward pass through it serves both.

By default fidelity wins where the drift contradicts it (coordination in the output space is what the abstract of GDM, arXiv 2604.19736,
names; the rule is ours). The others are torchjd's aggregators: a plain sum, PCGrad (Yu 2020), MGDA (Desideri 2012), ConFIG (Liu 2024),
UPGrad (Quinton and Rey 2024).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torchjd.aggregation import MGDA, Aggregator, ConFIG, PCGrad, Sum, UPGrad
from torchjd.linalg import DualConeProjector

from medsynth.core.recipe import Coordination

TINY = 1e-30


def coordinate(
    fidelity: Float[Tensor, "b ..."], drift: Float[Tensor, "b ..."], *, method: Coordination, rho: float
) -> tuple[Float[Tensor, "b ..."], dict[str, Tensor]]:
    """One gradient for each sample's output from those of fidelity and drift; every sample is coordinated by itself, in float32.

    The drift's gradient is first cut to the fidelity's length, since the two have units of their own; it is never made longer. Then the two
    are combined by `method`, and rho, from 0 to 1, leads from fidelity alone to that combination. "fidelity-first" takes out of the drift
    what points against fidelity and adds the rest.

    The figures, means over the samples: "cosine" between the two, "norm_ratio" of drift to fidelity before the cut, "conflicts", the share
    of samples whose cosine is negative.
    """
    f, d = fidelity.detach().float().flatten(1), drift.detach().float().flatten(1)
    ff, dd, fd = (torch.einsum("bn,bn->b", x, y) for x, y in ((f, f), (d, d), (f, d)))
    ff, dd = ff.clamp(min=TINY), dd.clamp(min=TINY)
    cosine = fd / ff.sqrt() / dd.sqrt()  # the product of the two underflows
    figures = {"cosine": cosine.mean(), "norm_ratio": (dd / ff).sqrt().mean(), "conflicts": (cosine < 0).float().mean()}
    cut = (ff / dd).sqrt().clamp(max=1)
    if method == "fidelity-first":
        along = (cut * fd / ff).clamp(max=0)
        joint = (1 - rho * along)[:, None] * f + (rho * cut)[:, None] * d
    else:
        aggregator = _aggregator(method, f.device)
        combined = torch.stack([aggregator(torch.stack([a, c * b])) for a, b, c in zip(f, d, cut, strict=True)])
        joint = f + rho * (combined - f)
    return joint.reshape(fidelity.shape), figures


def _aggregator(method: Coordination, device: torch.device) -> Aggregator:
    match method:
        case "pcgrad":
            return PCGrad()
        case "mgda":
            return MGDA()
        case "config":
            return ConFIG()
        case "upgrad":
            return UPGrad(pref_vector=torch.ones(2, device=device), projector=PairProjector())
        case _:
            return Sum()


class PairProjector(DualConeProjector):
    """Projection of combinations of two gradients onto their dual cone, in closed form: torchjd's own solver needs quadprog (GPL)."""

    def __call__(self, U: Float[Tensor, "... 2"], G: Float[Tensor, "2 2"]) -> Float[Tensor, "... 2"]:  # noqa: N803
        """For each row u >= 0 of U the weights v >= u whose v' G v is least (Quinton and Rey 2024, Prop. 1). G: the gradients' Gramian.

        At most one weight rises above its bound: both would need G12^2 > G11 G22.
        """
        first, second = U.unbind(-1)
        return torch.stack(
            [
                torch.maximum(first, -G[0, 1] * second / G[0, 0].clamp(min=TINY)),
                torch.maximum(second, -G[0, 1] * first / G[1, 1].clamp(min=TINY)),
            ],
            dim=-1,
        )
