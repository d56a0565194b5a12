"""The drift of generated samples towards real ones, and the loss that follows it (Deng 2026, "Generative Modeling via Drifting", Alg. 2).

A problem is a set of generated, positive and negative vectors that are compared with each other: one feature at one location, say. Each
generated vector is drawn to the positives and driven off the negatives and its fellows, both with the same kernel, so that the field is
zero where the two distributions are equal. The loss is the squared distance to where the field would carry the sample, held fixed.
"""

import torch
from jaxtyping import Float
from torch import Tensor

TEMPERATURES = (0.02, 0.05, 0.2)
AFFINITY_FLOOR = 1e-6
SCALE_FLOOR = 1e-3
FORCE_FLOOR = 1e-8  # of the mean square
SQUARED_DISTANCE_FLOOR = 1e-8
SELF_DISTANCE = 100.0  # as published: no sample repels itself


def drift_loss(
    gen: Float[Tensor, "b g d"],
    pos: Float[Tensor, "b p d"],
    neg: Float[Tensor, "b n d"] | None = None,
    *,
    weight_gen: Float[Tensor, "b g"] | None = None,
    weight_pos: Float[Tensor, "b p"] | None = None,
    weight_neg: Float[Tensor, "b n"] | None = None,
    temperatures: tuple[float, ...] = TEMPERATURES,
    floor: float = AFFINITY_FLOOR,
    self_distance: float = SELF_DISTANCE,
    pair_distance: float = 0.0,
) -> tuple[Float[Tensor, " b"], dict[str, Tensor]]:
    """Loss of each problem, and figures of the whole batch; gradients go into `gen` alone.

    gen, pos, neg: generated, real and repelling vectors of b problems; weights: how much each counts (default 1). temperatures: of the
    kernel exp(-distance / temperature), distances in units of their mean. floor: least product of the two softmaxes; 0 where the samples
    are tokens of one image, hundreds to a problem, or the floor turns the sharpest field into a difference of means. self_distance: added
    to each sample's distance to itself, in mean distances: a large one masks it. With a sample's own target near it among the positives,
    and itself masked, it would be driven off all others even at an exact match: mask both, or neither. pair_distance: added to each
    sample's distance to the positive of its own place in the list, its target in paired data: a large one, with a large self_distance,
    leaves a field between the two distributions, which knows nothing of pairs.

    The figures: "scale", the mean weighted distance, and "rms_<temperature>", root mean square of the field before it is normalised. The
    loss itself does not fall as the samples converge (the field is normalised), these figures do. Scale and norm of the field are means
    over all b problems. Computes in float32 whatever the precision outside; memory grows as b g (g + n + p).
    """
    with torch.autocast(gen.device.type, enabled=False):
        gen32 = gen.float()
        with torch.no_grad():
            neg32 = gen32.new_zeros(len(gen32), 0, gen32.shape[2]) if neg is None else neg.float()
            others = torch.cat([gen32, neg32, pos.float()], dim=1)
            weights = torch.cat([_or_ones(weight_gen, gen32), _or_ones(weight_neg, neg32), _or_ones(weight_pos, pos)], dim=1)
            positives = slice(gen32.shape[1] + neg32.shape[1], None)
            scale, distance = _normalised_distance(gen32, others, weights)
            distance.diagonal(dim1=1, dim2=2).add_(self_distance)
            distance.diagonal(offset=positives.start, dim1=1, dim2=2).add_(pair_distance)
            unit = (scale / gen32.shape[2] ** 0.5).clamp(min=SCALE_FLOOR)
            apart = (others - others.mean(1, keepdim=True)) / unit  # the field knows differences only; small numbers keep their digits
            total = torch.zeros_like(gen32)
            figures = {"scale": scale}
            for temperature in temperatures:
                force = field(distance, apart, weights, positives, temperature=temperature, floor=floor)
                mean_square = force.square().mean()
                figures[f"rms_{temperature:g}"] = mean_square.sqrt()
                total += force / mean_square.clamp(min=FORCE_FLOOR).sqrt()
        step = (gen32 - gen32.detach()) / unit  # zero: the sample's own way, along which its gradient flows
        return (step - total).square().mean(dim=(1, 2)), figures


def field(
    distance: Float[Tensor, "b g t"],
    others: Float[Tensor, "b t d"],
    weights: Float[Tensor, "b t"],
    positives: slice,
    *,
    temperature: float,
    floor: float = AFFINITY_FLOOR,
) -> Float[Tensor, "b g d"]:
    """Where each generated vector is carried at one temperature: to the positives among `others`, away from the rest.

    Each pull is weighted by the sum of all pushes and the other way round, so that both add up to the same and the vector itself drops
    out. The kernel is normalised over both its sides (two softmaxes, their geometric mean).
    """
    logits = -distance / temperature
    affinity = (logits.softmax(2) * logits.softmax(1)).clamp(min=floor).sqrt() * weights[:, None]
    pull, push = affinity[:, :, positives], affinity[:, :, : positives.start]
    attraction = push.sum(2, keepdim=True) * (pull @ others[:, positives])
    return attraction - pull.sum(2, keepdim=True) * (push @ others[:, : positives.start])


def _normalised_distance(
    gen: Float[Tensor, "b g d"], others: Float[Tensor, "b t d"], weights: Float[Tensor, "b t"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "b g t"]]:
    """The mean weighted distance over the batch, and distances in its units."""
    # Differences first, then squares: |x|^2 + |y|^2 - 2xy loses what near neighbours differ by.
    distance = torch.cdist(gen, others, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=SQUARED_DISTANCE_FLOOR**0.5)
    scale = (distance * weights[:, None]).mean() / weights.mean()
    return scale, distance / scale.clamp(min=SCALE_FLOOR)


def _or_ones(weight: Float[Tensor, "b n"] | None, like: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
    return like.new_ones(like.shape[:2], dtype=torch.float32) if weight is None else weight.detach().float()
