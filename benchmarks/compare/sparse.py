"""Problem "sparse": CT from 18 views of a fan beam, at 2 mm: what is consistent with the data -> CT, in patches of slabs.

Real CTs, projected slice by slice from a grid twice as fine, with noise. The condition is the package's own start; no method
sees the sinogram, so that the network and its time are those of the other problem.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from medsynth.core.anatomy import region_of
from medsynth.core.generator import place_of
from medsynth.physics.acquisition import Acquisition, first_image
from medsynth.physics.ct import attenuation, mu_to_hu
from medsynth.physics.geometry import FINER, ImageGrid, fan
from medsynth.physics.noise import photon_noise
from medsynth.sources.unlabelled import BODY_HU, read_packed
from medsynth.verbs.packct import pack

from .method import CT_SCALE
from .network import Image
from .problem import SPLITS, Pairs
from .sizes import Size

# Scans of ../shared/data/ct by patient: no patient is in two splits. Those of less than a patch's height are left out.
NAMES = {
    "validation": ("abdomen_TCGA-BC-A10X_native_slab16", "totalseg_thorax_cta_1p5mm"),
    "test": ("abdomenpelvis_TCGA-BC-A10W_1p5mm", "pelvis_TCGA-BC-A10W_native_slab16", "chest_Lung-Dx-A0002_native_slab16"),
}
ELSEWHERE = ("head_jnifti_*", "*_seg", "shoulders_LIDC-IDRI-0003_*")  # not for training, and set aside for the product's own test
VIEWS, PHOTONS = 18, 1e6
SLICES_AT_ONCE = 32
CONDITION_AIR_HU, CONDITION_UNIT_HU = -1024.0, 2000.0  # the network's input is cut off at 0 and 2
SMOOTH_VOXELS = 1.5
CLOSING = 2  # voxels
SEED = 20261128


class Volume(NamedTuple):
    """A packed scan and its start, HU [x y z]."""

    target_hu: np.ndarray
    start_hu: np.ndarray


def draw(data: Path, work: Path, size: Size, split: str, count: int) -> Pairs:
    """`count` pairs of a split: patches around a voxel of the body; flipped left to right by chance in training."""
    volumes = _volumes(data, work, size, split)
    rng = np.random.default_rng((SEED, SPLITS.index(split)))
    weight = np.sqrt([volume.target_hu.size for volume in volumes])
    rows = [
        pair(volumes[int(rng.choice(len(volumes), p=weight / weight.sum()))], rng, size.patch, size.spacing_mm, flips=split == "training")
        for _ in range(count)
    ]
    return Pairs(*(np.stack(column) for column in zip(*rows, strict=True)))


def pair(volume: Volume, rng: np.random.Generator, side: int, pixel_mm: float, *, flips: bool) -> tuple[np.ndarray, ...]:
    """The fields of `Pairs` for one patch. `clean`, which tells where tissue is flat, is the target smoothed; `again` is the target."""
    shape = volume.target_hu.shape
    while volume.target_hu[voxel := tuple(rng.integers(shape))] <= BODY_HU:
        pass
    corner = [int(np.clip(v - side // 2, 0, n - side)) for v, n in zip(voxel, shape, strict=True)]
    at = tuple(slice(start, start + side) for start in corner)
    target, start = volume.target_hu[at], volume.start_hu[at]
    if flips and rng.random() < 0.5:
        target, start = target[::-1], start[::-1]
    clean = ndimage.gaussian_filter(target.astype(np.float32), SMOOTH_VOXELS)
    return (
        ((start - CONDITION_AIR_HU) / CONDITION_UNIT_HU).astype(np.float16),
        target.copy(),
        target.copy(),
        clean.round().astype(np.int16),
        _closed(clean > BODY_HU),
        place_of(region_of(volume.target_hu[:, :, corner[2] + side // 2], pixel_mm), corner[2] + side / 2, shape[2]).numpy()[0],
        np.zeros(3, dtype=np.float32),
        np.array(f"views{VIEWS}"),
    )


def _closed(body: np.ndarray) -> np.ndarray:
    """The body with its airways; what lies beyond the patch is taken to go on."""
    return ndimage.binary_closing(np.pad(body, CLOSING, mode="edge"), iterations=CLOSING)[(slice(CLOSING, -CLOSING),) * 3]


def start_of(pairs: Pairs) -> np.ndarray:
    """What the methods begin with, HU."""
    return pairs.condition.astype(np.float32) * CONDITION_UNIT_HU + CONDITION_AIR_HU


def base(condition: Image) -> Image:
    """What the methods begin with, in network units of CT."""
    return CT_SCALE.encode(condition * CONDITION_UNIT_HU + CONDITION_AIR_HU)


def _volumes(data: Path, work: Path, size: Size, split: str) -> list[Volume]:
    aside = [name for names in NAMES.values() for name in names]
    items = pack([data], size.spacing_mm, work / "packed-ct", exclude=ELSEWHERE, say=lambda _: None)
    chosen = [item for item in items if (item.name not in aside if split == "training" else item.name in NAMES[split])]
    scans = [read_packed(item.path) for item in chosen]
    return [Volume(scan, start(scan, size.spacing_mm, number)) for number, scan in enumerate(scans) if min(scan.shape) >= size.patch]


def start(scan_hu: np.ndarray, pixel_mm: float, seed: int) -> np.ndarray:
    """What the package would begin with: int16 HU [x y z]."""
    side = 16 * -(-max(scan_hu.shape[:2]) // 16)
    low = [(side - n) // 2 for n in scan_hu.shape[:2]]
    padding = [(a, side - n - a) for a, n in zip(low, scan_hu.shape[:2], strict=True)]
    square = np.pad(scan_hu, [*padding, (0, 0)], constant_values=-1000).transpose(2, 1, 0)  # the network knows no left and right
    rng = torch.Generator().manual_seed(SEED + seed)
    device, geometry = torch.device("cpu"), fan(VIEWS)
    fine = Acquisition(geometry, ImageGrid(size=FINER * side, pixel_mm=pixel_mm / FINER)).operator(device)
    own = Acquisition(geometry, ImageGrid(size=side, pixel_mm=pixel_mm)).operator(device)
    parts: list[torch.Tensor] = []
    for slices in torch.from_numpy(square.astype(np.float32)).split(SLICES_AT_ONCE):
        truth = F.interpolate(slices[None], scale_factor=FINER, mode="bilinear")[0]
        parts.append(mu_to_hu(first_image(own, photon_noise(fine.forward(attenuation(truth)), PHOTONS, rng))))
    result = torch.cat(parts).permute(2, 1, 0).numpy()
    crop = tuple(slice(a, a + n) for a, n in zip(low, scan_hu.shape[:2], strict=True))
    return result[crop].round().clip(-1024, 4000).astype(np.int16)
