"""Photon statistics of a CT detector: Poisson counts and electronic noise. Beam hardening, scatter and motion are not simulated.

counts = Poisson(i0 exp(-line integral)) + N(0, electronic_sd), at least 1. i0: photons that a cell counts without an object, 1e6 by
default and 1e5 for a low dose.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

ELECTRONIC_SD = math.sqrt(10)  # counts
LEAST_COUNTS = 1.0


def photon_noise(
    line_integrals: Float[Tensor, "..."], i0: float, rng: torch.Generator, electronic_sd: float = ELECTRONIC_SD
) -> Float[Tensor, "..."]:
    """Line integrals as they would be measured, float32; `rng` lives on the same device."""
    counts = torch.poisson(i0 * torch.exp(-line_integrals.float()), generator=rng)
    electronic = torch.randn(counts.shape, generator=rng, device=counts.device)
    return counts_to_line_integrals(counts + electronic_sd * electronic, i0)


def counts_to_line_integrals(counts: Float[Tensor, "..."], i0: float) -> Float[Tensor, "..."]:
    """log(i0 / counts), counts below 1 taken as 1. Values below 0, more photons than were sent, stay."""
    return math.log(i0) - counts.clamp(min=LEAST_COUNTS).log()


def expected_relative_noise(sinogram: Float[Tensor, "s v d"], i0: float, electronic_sd: float = ELECTRONIC_SD) -> Float[Tensor, " s"]:
    """||noise|| / ||sinogram|| of each slice that the statistics lead to: what an image as true as can be leaves as relative residual.

    A line integral's variance is 1 / counts + electronic_sd^2 / counts^2, to first order.
    """
    counts = (i0 * torch.exp(-sinogram)).clamp(min=LEAST_COUNTS)
    variance = 1 / counts + (electronic_sd / counts).square()
    signal = sinogram.square().sum((1, 2)).clamp(min=torch.finfo(torch.float32).tiny)
    return (variance.sum((1, 2)) / signal).sqrt()
