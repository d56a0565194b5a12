"""The judge of realism: a small plain network, trained on real crops alone, that no method sees; its features give the KID.

It learns to tell from a crop of CT how much of it lies in which range of HU, and how strong each texture is. Unlike the encoder of drifting
it has no normalisation, sees no masked input, and is of another shape and seed.
"""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.scans.files import replacing

from .locks import held
from .problem import Pairs
from .sizes import Size

CROP = 24  # voxels
WINDOWS_HU = ((-1024.0, 2048.0), (-160.0, 240.0))
FINE_HU = 60.0  # reach of a third channel, the difference from the mean of 3^3 voxels: edges saturate in it, texture does not
WIDTHS = (16, 32, 64)
BANDS_HU = (-400.0, -30.0, 20.0, 40.0, 100.0, 700.0)  # limits of the ranges
SEED = 4711
BATCH = 16
LEARNING_RATE = 1e-3
SUBSETS, SUBSET = 100, 100
LEAST_INSIDE = 0.5  # share of a crop that lies in the body


class Kid(NamedTuple):
    """Kernel inception distance and its standard error over subsets."""

    value: float
    error: float


class Judge(nn.Module):
    """Crops of CT -> features and answers."""

    def __init__(self, answers: int = len(BANDS_HU) + 1 + 3) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_stage(len(WINDOWS_HU) + 1 if i == 0 else WIDTHS[i - 1], width, i) for i, width in enumerate(WIDTHS))
        self.answer = nn.Sequential(nn.Linear(2 * sum(WIDTHS), 64), nn.LeakyReLU(0.1), nn.Linear(64, answers))

    def features(self, ct_hu: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "b f"]:
        """Mean and deviation of each channel of each stage."""
        windows = [(ct_hu.clamp(low, high) - low) / (high - low) * 2 - 1 for low, high in WINDOWS_HU]
        fine = ((ct_hu - F.avg_pool3d(ct_hu, 3, stride=1, padding=1, count_include_pad=False)) / FINE_HU).clamp(-1, 1)
        x = torch.cat([*windows, fine], dim=1).contiguous(memory_format=torch.channels_last_3d)
        parts: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            parts += [x.mean(dim=(2, 3, 4)), x.var(dim=(2, 3, 4), correction=0).add(1e-6).sqrt()]
        return torch.cat(parts, dim=1)

    def forward(self, ct_hu: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "b a"]:
        return self.answer(self.features(ct_hu))


def trained(pairs: Pairs, folder: Path, size: Size, device: torch.device) -> Judge:
    """The judge of these training pairs, from the folder; trained first, by one process only, if it is not there."""
    judge = Judge().to(device)
    path = folder / f"judge-{size.judge_seconds:g}.pt"
    with held(folder / "lock", wait=True):
        if not path.exists():
            with torch.random.fork_rng():
                torch.manual_seed(SEED)
                judge = Judge().to(device)
                _train(judge, pairs, size.judge_seconds, device)
            with replacing(path) as part:
                torch.save(judge.state_dict(), part)
        judge.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    return judge.requires_grad_(False).eval()


@torch.no_grad()
def features(judge: Judge, ct_hu: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features [n f] of all crops in steps of CROP of patches [p x y z] that lie in the body for the most part; the patch of each, [n]."""
    device = next(judge.parameters()).device
    rows: list[np.ndarray] = []
    owners: list[int] = []
    for number, (patch, body) in enumerate(zip(ct_hu, inside, strict=True)):
        crops = [patch[at] for at in _corners(patch.shape) if body[at].mean() > LEAST_INSIDE]
        if crops:
            rows.append(judge.features(torch.from_numpy(np.stack(crops).astype(np.float32))[:, None].to(device)).cpu().numpy())
            owners += [number] * len(crops)
    return np.concatenate(rows).astype(np.float64), np.array(owners)


def kid(real: np.ndarray, generated: np.ndarray, owners: np.ndarray) -> Kid:
    """KID (Binkowski 2018): squared MMD with the cubic kernel, over random subsets; features in units of the real ones' spread.

    Row i of both is of the same crop, and a patch has several: pairs of crops of one patch are left out, which keeps the estimate unbiased.
    """
    centre, spread = real.mean(0), real.std(0) + 1e-6
    rng = np.random.default_rng(SEED)
    a, b = ((x - centre) / spread for x in (real, generated))
    chosen = [rng.choice(len(a), min(SUBSET, len(a)), replace=False) for _ in range(SUBSETS)]
    values = [mmd(a[rows], b[rows], owners[rows]) for rows in chosen]
    return Kid(float(np.mean(values)), float(np.std(values) / SUBSETS**0.5))


def mmd(a: np.ndarray, b: np.ndarray, owners: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of samples [n d] with kernel (x.y / d + 1)^3 (Gretton 2012, Lemma 6)."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    apart = owners[:, None] != owners
    return float((kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))[apart].mean())


def targets(clean_hu: np.ndarray, spreads: np.ndarray) -> np.ndarray:
    """What the judge is asked about a crop: share of its voxels in each range of HU, and the texture's three spreads."""
    ranges = np.searchsorted(BANDS_HU, clean_hu.ravel())
    return np.concatenate([np.bincount(ranges, minlength=len(BANDS_HU) + 1) / clean_hu.size, spreads]).astype(np.float32)


def _train(judge: Judge, pairs: Pairs, seconds: float, device: torch.device) -> None:
    rng = np.random.default_rng(SEED)
    sample = np.stack([_crop(pairs, rng)[1] for _ in range(500)])
    centre, spread = sample.mean(0), sample.std(0) + 1e-6
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LEARNING_RATE)
    started = time.process_time()
    while time.process_time() - started < seconds:
        crops, wanted = zip(*(_crop(pairs, rng) for _ in range(BATCH)), strict=True)
        answer = judge(torch.from_numpy(np.stack(crops))[:, None].to(device))
        loss = (answer - torch.from_numpy((np.stack(wanted) - centre) / spread).to(device)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _crop(pairs: Pairs, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random crop of a random pair and what is asked about it."""
    index = int(rng.integers(len(pairs.textured)))
    corner = [int(rng.integers(side - CROP + 1)) for side in pairs.textured.shape[1:]]
    at = tuple(slice(start, start + CROP) for start in corner)
    return pairs.textured[index][at].astype(np.float32), targets(pairs.clean[index][at], pairs.spreads[index])


def _corners(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    x, y, z = ([slice(start, start + CROP) for start in range(0, side - CROP + 1, CROP)] for side in shape)
    return [(i, j, k) for i in x for j in y for k in z]


def _stage(inputs: int, width: int, number: int) -> nn.Sequential:
    """Two convolutions; all stages but the first halve the grid."""
    first = nn.Conv3d(inputs, width, 3, stride=1 if number == 0 else 2, padding=1)
    return nn.Sequential(first, nn.LeakyReLU(0.1), nn.Conv3d(width, width, 3, padding=1), nn.LeakyReLU(0.1))
