"""A random pose and shape of a head: where in the label map each voxel of the drawn patch lies."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

COARSE_MM, FINE_MM = 48, 16  # distance of the nodes of the two displacement fields
OVERHANG_MM = np.array([14.0, 16.0, 10.0])  # how far the patch may look past the head on each axis


class Deformation(NamedTuple):
    """matrix [3 3]: patch voxels -> mm of the map. centre [3]: the patch's middle in the map, mm. coarse, fine: nodes [3 i j k], mm."""

    matrix: np.ndarray
    centre: np.ndarray
    coarse: np.ndarray
    fine: np.ndarray


def draw_deformation(rng: np.random.Generator, map_shape: tuple[int, ...], patch: tuple[int, ...], spacing_mm: float) -> Deformation:
    """Rotation to 15 degrees, scale .87 to 1.13, shear, mirror, place, and a smooth displacement of a few mm."""
    rotation = _rotation(np.deg2rad(rng.uniform(-15, 15, 3)))
    shear = np.eye(3)
    shear[~np.eye(3, dtype=bool)] = rng.uniform(-0.08, 0.08, 6)
    scale = rng.uniform(0.87, 1.13) * rng.uniform(0.93, 1.07, 3)
    matrix = rotation @ shear @ np.diag(scale * spacing_mm)
    if rng.random() < 0.5:
        matrix[:, 0] *= -1
    size_mm = np.array(patch) * spacing_mm
    slack_mm = np.maximum(0, np.array(map_shape) - size_mm) / 2 + OVERHANG_MM
    centre = np.array(map_shape) / 2 + rng.uniform(-1, 1, 3) * slack_mm
    coarse = rng.standard_normal((3, *_nodes(size_mm, COARSE_MM))) * rng.uniform(0, 4)
    fine = rng.standard_normal((3, *_nodes(size_mm, FINE_MM))) * rng.uniform(0, 1.3)
    return Deformation(matrix, centre, coarse.astype(np.float32), fine.astype(np.float32))


def place(centre_mm: np.ndarray, spacing_mm: float) -> Deformation:
    """The head as it is, seen through a patch around `centre_mm`."""
    none = np.zeros((3, 2, 2, 2), dtype=np.float32)
    return Deformation(np.eye(3) * spacing_mm, centre_mm, none, none)


def coordinates(deformation: Deformation, patch: tuple[int, int, int], device: torch.device) -> Float[Tensor, "3 x y z"]:
    """Position of each voxel of the patch in the label map, in its voxels (1 mm)."""
    matrix = torch.tensor(deformation.matrix, dtype=torch.float32, device=device)
    centre = torch.tensor(deformation.centre, dtype=torch.float32, device=device)
    axes = [torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2 for n in patch]
    x, y, z = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
    straight = torch.stack([m[0] * x + m[1] * y + m[2] * z + c for m, c in zip(matrix, centre, strict=True)])
    nodes = torch.from_numpy(deformation.fine)[None].to(device)
    nodes = nodes + _upsample(torch.from_numpy(deformation.coarse)[None].to(device), nodes.shape[2:])
    return straight + _upsample(nodes, patch)[0]


def _upsample(nodes: Float[Tensor, "1 3 i j k"], size: tuple[int, ...]) -> Float[Tensor, "1 3 x y z"]:
    return F.interpolate(nodes, size=size, mode="trilinear", align_corners=True)


def _nodes(size_mm: np.ndarray, distance_mm: int) -> list[int]:
    return [max(2, round(side / distance_mm) + 1) for side in size_mm]


def _rotation(angles: np.ndarray) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
