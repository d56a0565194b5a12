"""Reconstruction without a network, batched over slices; images are mu in 1/mm, sinograms line integrals. TV is the one to beat.

All of them descend on ||A x - b||^2 in the metric of SIRT: residuals are divided by each ray's length, corrections by each pixel's sum of
lengths (Gregor and Benson 2008, IEEE TMI 27(7), 918-924). That step needs no line search and converges for any geometry.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medsynth.physics.ct import MU_WATER_PER_MM, Projector

# Of mu / mu_water, by views: tuned by benchmarks/tune_tv.py for PSNR and MAE over 8 slices of training scans;
# fan beam, i0 1e6, 256 x 256 and the like; about 0.0108 / views.
TV_WEIGHT = {18: 0.0006, 36: 0.0003, 72: 0.00015}
DUAL_STEP = 1.9 / 8  # below 2 / ||gradient||^2, which is 8 in two dimensions
ORDERED_STEP = 0.7  # with whole steps, three views to a subset diverge on some grids after 8 times through the data (docs/log.md)
LEAST_RAY, LEAST_PIXEL = 5.0, 0.25  # with extrapolation: pixels along a ray, and of all views, below which steps are no longer


def sirt(
    operator: Projector, sinogram: Float[Tensor, "s v d"], iterations: int = 100, start: Float[Tensor, "s y x"] | None = None
) -> Float[Tensor, "s y x"]:
    """Simultaneous iterative reconstruction with x >= 0, from `start` or from 0."""
    per_ray, per_pixel = _metric(operator, least_ray=1e-3, least_pixel=1e-3)
    measured = per_ray * _slices_innermost(sinogram)
    image = _started(operator, sinogram, start)
    for _ in range(iterations):
        image = _stepped(operator, image, measured, per_ray, per_pixel).clamp_(min=0)
    return image


def accelerated_sirt(
    operator: Projector, sinogram: Float[Tensor, "s v d"], iterations: int = 30, start: Float[Tensor, "s y x"] | None = None
) -> Float[Tensor, "s y x"]:
    """SIRT with Nesterov's extrapolation and x >= 0 (FISTA; Beck and Teboulle 2009): 30 iterations do what 200 of SIRT do at 18 views."""
    per_ray, per_pixel = _damped_metric(operator)
    measured = per_ray * _slices_innermost(sinogram)
    image = ahead = _started(operator, sinogram, start)
    momentum = 1.0
    for _ in range(iterations):
        new = _stepped(operator, ahead, measured, per_ray, per_pixel).clamp_(min=0)
        ahead, momentum = _extrapolated(image, new, momentum)
        image = new
    return image


def total_variation(
    operator: Projector,
    sinogram: Float[Tensor, "s v d"],
    weight: float,
    iterations: int = 150,
    *,
    inner: int = 3,
    start: Float[Tensor, "s y x"] | None = None,
) -> Float[Tensor, "s y x"]:
    """Least squares with isotropic total variation and x >= 0: FISTA in the SIRT metric (Beck and Teboulle 2009, IEEE TIP 18(11), 2419).

    weight: of mu / mu_water, see `tv_weight`. inner: dual steps on the proximal problem in each iteration, which go on where those of the
    iteration before stopped.
    """
    per_ray, per_pixel = _damped_metric(operator)
    measured = per_ray * _slices_innermost(sinogram) / MU_WATER_PER_MM
    image = ahead = _started(operator, sinogram, start) / MU_WATER_PER_MM
    proximal = _TotalVariationProximal(image, weight)
    momentum = 1.0
    for _ in range(iterations):
        new = proximal(_stepped(operator, ahead, measured, per_ray, per_pixel), inner)
        ahead, momentum = _extrapolated(image, new, momentum)
        image = new
    return image * MU_WATER_PER_MM


def ordered_total_variation(
    operator: Projector, sinogram: Float[Tensor, "s v d"], weight: float, epochs: int, *, start: Float[Tensor, "s y x"]
) -> Float[Tensor, "s y x"]:
    """The same with steps on a subset of the views after the other (Hudson and Larkin 1994; with momentum, Kim, Ramani and Fessler 2015,
    IEEE TMI 34(1), 167): 16 times through the data come near to 150 iterations, for an eighth of the time.

    Steps on subsets do not converge: this is for a start, and for a few steps from an image that is good already. epochs: below 20.
    """
    lengths = torch.stack([part.pixel_lengths_mm for _, part in operator.subsets]).sum(0)
    per_pixel = (
        ORDERED_STEP * len(operator.subsets) * _damped_inverse(lengths, LEAST_PIXEL * operator.geometry.views * operator.grid.pixel_mm)
    )
    steps: list[tuple[Projector, Tensor, Tensor]] = []
    for views, part in operator.subsets:
        per_ray = _damped_inverse(part.ray_lengths_mm, LEAST_RAY * operator.grid.pixel_mm)
        steps.append((part, per_ray * _slices_innermost(sinogram[:, views]) / MU_WATER_PER_MM, per_ray))
    image = ahead = _started(operator, sinogram, start) / MU_WATER_PER_MM
    proximal = _TotalVariationProximal(image, ORDERED_STEP * weight)
    momentum = 1.0
    for _ in range(epochs):
        for part, measured, per_ray in steps:
            new = proximal(_stepped(part, ahead, measured, per_ray, per_pixel), 1)
            ahead, momentum = _extrapolated(image, new, momentum)
            image = new
    return image * MU_WATER_PER_MM


def tv_weight(views: int) -> float:
    """The tuned weight for a number of views: between the tabulated ones a power law, beyond them inversely as the views."""
    known = sorted(TV_WEIGHT)
    for low, high in pairwise(known):
        if low <= views <= high:
            share = math.log(views / low) / math.log(high / low)
            return TV_WEIGHT[low] ** (1 - share) * TV_WEIGHT[high] ** share
    nearest = known[0] if views < known[0] else known[-1]
    return TV_WEIGHT[nearest] * nearest / views


class _TotalVariationProximal:
    """u = argmin 1/2 ||u - y||^2 + weight TV(u), u >= 0, by projected gradient steps on the dual field (Beck and Teboulle 2009).

    The field, in units of the weight, is kept from call to call. It and the buffers are written in place: allocation would cost more than
    the arithmetic.
    """

    def __init__(self, like: Float[Tensor, "s y x"], weight: float) -> None:
        self.weight = weight
        self.down, self.right, self.buffer = (torch.zeros_like(like) for _ in range(3))  # the last row and column of the field stay 0

    def __call__(self, noisy: Float[Tensor, "s y x"], steps: int) -> Float[Tensor, "s y x"]:
        if self.weight == 0:
            return noisy.clamp_(min=0)
        u = torch.empty_like(noisy)
        step = DUAL_STEP / self.weight
        for _ in range(steps):
            self._primal(noisy, u)
            self.down[:, :-1].add_(u[:, 1:], alpha=step).sub_(u[:, :-1], alpha=step)
            self.right[:, :, :-1].add_(u[:, :, 1:], alpha=step).sub_(u[:, :, :-1], alpha=step)
            torch.mul(self.down, self.down, out=self.buffer)
            shrink = self.buffer.addcmul_(self.right, self.right).clamp_(min=1).rsqrt_()  # to length 1 where it is longer
            self.down *= shrink
            self.right *= shrink
        return self._primal(noisy, u)

    def _primal(self, noisy: Tensor, u: Tensor) -> Tensor:
        """u for the field as it is: noisy + weight div(field), at least 0."""
        torch.add(noisy, self.down, alpha=self.weight, out=u)
        u[:, 1:].sub_(self.down[:, :-1], alpha=self.weight)
        u.add_(self.right, alpha=self.weight)
        u[:, :, 1:].sub_(self.right[:, :, :-1], alpha=self.weight)
        return u.clamp_(min=0)


def _stepped(operator: Projector, image: Tensor, measured: Tensor, per_ray: Tensor, per_pixel: Tensor) -> Tensor:
    """image + per_pixel A'(measured - per_ray A image): one step of SIRT, `measured` being per_ray b."""
    residual = torch.addcmul(measured, operator.forward(image), per_ray, value=-1)
    return torch.addcmul(image, operator.adjoint(residual), per_pixel)


def _extrapolated(old: Tensor, new: Tensor, momentum: float) -> tuple[Tensor, float]:
    next_momentum = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
    return torch.lerp(old, new, 1 + (momentum - 1) / next_momentum), next_momentum


def _damped_metric(operator: Projector) -> tuple[Any, Any]:
    """Rays that graze the image and pixels that few rays cross must not take long steps where they are extrapolated."""
    return _metric(operator, least_ray=LEAST_RAY, least_pixel=LEAST_PIXEL * operator.geometry.views)


def _metric(operator: Projector, *, least_ray: float, least_pixel: float) -> tuple[Float[Tensor, "v d"], Float[Tensor, "y x"]]:
    """Inverse lengths per ray and per pixel in 1/mm, lengths below so many pixels taken as that."""
    pixel_mm = operator.grid.pixel_mm
    ray, pixel = operator.ray_lengths_mm, operator.pixel_lengths_mm
    return _damped_inverse(ray, least_ray * pixel_mm), _damped_inverse(pixel, least_pixel * pixel_mm)


def _damped_inverse(lengths_mm: Float[Tensor, "a b"], least_mm: float) -> Float[Tensor, "a b"]:
    return lengths_mm.clamp(min=least_mm).reciprocal()


def _started(operator: Projector, sinogram: Tensor, start: Tensor | None) -> Float[Tensor, "s y x"]:
    size = operator.grid.size
    return _slices_innermost(sinogram.new_zeros(len(sinogram), size, size, dtype=torch.float32) if start is None else start.float())


def _slices_innermost(images: Float[Tensor, "s a b"]) -> Float[Tensor, "s a b"]:
    """The same in the order of memory that the operator works in: all that is computed from it stays so, and nothing is copied."""
    return images.permute(1, 2, 0).contiguous().permute(2, 0, 1)
