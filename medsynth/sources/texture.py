"""Texture on a CT that was drawn from tissues: quantum noise with the spectrum of real scanners, trabeculae, uneven soft tissue.

A CT of flat tissues cannot tell a blurred prediction from a realistic one. Noise is drawn slice by slice with the power that
`benchmarks/spectrum.py` measured in real CTs; the rest is band-limited noise within its tissues. Fields repeat past the volume's border.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medsynth.core.quantity import HU_MIN
from medsynth.sources.tissues import BRAIN, FAT, INDEX, SOFT, TISSUES

# Power of noise in axial slices by frequency in rings of 0.05 / mm, in mm^2, unit variance over the plane of frequencies.
# Measured on 2026-11-21 in 8 native-resolution CTs (TCIA; sd 6 to 30 HU): python benchmarks/spectrum.py --ct CT_FOLDER
NOISE_DENSITY_MM2 = (1.818, 2.124, 1.803, 1.731, 1.511, 1.379, 1.143, 0.906, 0.660, 0.485, 0.340, 0.216, 0.151, 0.095, 0.038, 0.026)
RING_PER_MM = 0.05
# Spread at the scanner's own pixels; a coarser grid keeps the part of the noise below its own limit: about two thirds at 2 mm.
NOISE_SD_HU = (8.0, 30.0)
# Spread on the grid itself, whatever its spacing, and frequencies from and to, 1 / mm.
TRABECULAR_SD_HU, TRABECULAR_PER_MM = (60.0, 150.0), (0.06, 0.25)
SOFT_SD_HU, SOFT_PER_MM = (5.0, 10.0), (0.015, 0.08)

_SOFT_TISSUES = tuple(i for i, tissue in enumerate(TISSUES) if tissue.network_class in (BRAIN, SOFT, FAT))


class Texture(NamedTuple):
    """Everything random about the texture of one CT, but for white noise, whose seed it holds."""

    noise_sd_hu: float
    trabecular_sd_hu: float
    soft_sd_hu: float
    noise_seed: int


def add_texture(
    ct_hu: Float[Tensor, "x y z"], tissue: Int[Tensor, "x y z"] | None, rng: torch.Generator, spacing_mm: float
) -> Float[Tensor, "x y z"]:
    """The CT with a texture that is drawn from `rng`; not below -1024 HU.

    tissue: index into `tissues.TISSUES` (`labels.tissue_map`); None adds noise alone. spacing_mm: of the isotropic grid.
    """
    return apply_texture(ct_hu, tissue, draw_texture(rng), spacing_mm)


def draw_texture(rng: torch.Generator) -> Texture:
    """The texture of one CT: spreads uniform in their ranges."""
    shares = torch.rand(3, generator=rng, device=rng.device).tolist()
    noise, trabecular, soft = (
        low + share * (high - low) for share, (low, high) in zip(shares, (NOISE_SD_HU, TRABECULAR_SD_HU, SOFT_SD_HU), strict=True)
    )
    seed = int(torch.randint(2**62, (1,), generator=rng, device=rng.device))
    return Texture(noise_sd_hu=noise, trabecular_sd_hu=trabecular, soft_sd_hu=soft, noise_seed=seed)


def apply_texture(
    ct_hu: Float[Tensor, "x y z"], tissue: Int[Tensor, "x y z"] | None, texture: Texture, spacing_mm: float
) -> Float[Tensor, "x y z"]:
    """The CT with this texture; a function of the record alone."""
    rng = torch.Generator(device=ct_hu.device).manual_seed(texture.noise_seed)
    shape = tuple(ct_hu.shape)
    total = ct_hu + texture.noise_sd_hu * _coloured(_noise_gain(shape, spacing_mm, ct_hu.device), shape, rng)
    if tissue is not None:
        trabeculae = _coloured(_band_gain(shape, spacing_mm, TRABECULAR_PER_MM, ct_hu.device), shape, rng)
        uneven = _coloured(_band_gain(shape, spacing_mm, SOFT_PER_MM, ct_hu.device), shape, rng)
        soft = torch.isin(tissue, torch.tensor(_SOFT_TISSUES, device=tissue.device, dtype=tissue.dtype))
        total += texture.trabecular_sd_hu * trabeculae * (tissue == INDEX["cancellous"])
        total += texture.soft_sd_hu * uneven * soft
    return total.clamp_(min=HU_MIN)


def noise_density(per_mm: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The measured power at a frequency, mm^2: linear between the middles of the rings, nothing past the last."""
    table = torch.tensor((*NOISE_DENSITY_MM2, 0.0), device=per_mm.device)
    position = (per_mm / RING_PER_MM - 0.5).clamp(0, len(NOISE_DENSITY_MM2))
    below = position.floor().long().clamp(max=len(NOISE_DENSITY_MM2) - 1)
    return torch.lerp(table[below], table[below + 1], position - below)


def _noise_gain(shape: tuple[int, ...], spacing_mm: float, device: torch.device) -> Float[Tensor, "x y 1"]:
    """Gain on white noise of unit variance a voxel, whose power is spacing^2 at every frequency of a slice; slices are independent."""
    fx, fy, _ = _frequencies(shape, spacing_mm, device)
    return noise_density(torch.hypot(fx, fy)).sqrt() / spacing_mm


def _band_gain(shape: tuple[int, ...], spacing_mm: float, band_per_mm: tuple[float, float], device: torch.device) -> Tensor:
    """Gain [x y z] that passes a band of frequencies alone and keeps unit variance."""
    fx, fy, fz = _frequencies(shape, spacing_mm, device)
    radius = torch.sqrt(fx**2 + fy**2 + fz**2)
    inside = ((radius >= band_per_mm[0]) & (radius <= band_per_mm[1])).float()
    return inside / inside.mean().sqrt().clamp(min=1e-6)  # a volume too small for the band gets nothing


def _frequencies(shape: tuple[int, ...], spacing_mm: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    x, y, z = (torch.fft.fftfreq(n, spacing_mm, device=device) for n in shape)
    return x[:, None, None], y[None, :, None], z[None, None, :]


def _coloured(gain: Tensor, shape: tuple[int, ...], rng: torch.Generator) -> Float[Tensor, "x y z"]:
    """White noise with this gain, which is even in frequency and of size 1 along axes that it does not touch."""
    white = torch.randn(shape, generator=rng, device=rng.device)
    axes = [axis for axis in range(3) if gain.shape[axis] == shape[axis]]
    return torch.fft.ifftn(torch.fft.fftn(white, dim=axes) * gain, dim=axes).real
