"""Line integrals through a pixel image by Joseph's method, as a sparse matrix (Joseph 1982, IEEE TMI 1(3), 192-196).

A ray is followed along the axis that it is closer to. In each row (or column) of pixels that it crosses, the image is interpolated linearly
between the two pixels beside it, and weighted with the ray's length between two rows. Geometry and axes are those of `geometry`.
"""

import math
import warnings

import torch
from jaxtyping import Float, Float32, Int32
from scipy import sparse
from torch import Tensor

from medsynth.physics.geometry import Geometry, ImageGrid

BYTES_PER_ENTRY = 8  # float32 weight, int32 column
LEAST_WEIGHT = 1e-6  # of a pixel: what lies on a pixel's middle needs no second one


@torch.inference_mode(False)
def system_matrix(geometry: Geometry, grid: ImageGrid) -> Tensor:
    """A, float32 CSR on the CPU: rows [view, cell], columns [y, x], weights in mm. One product is all rays of one image."""
    views = [_view(geometry, grid, angle) for angle in geometry.angles_rad]
    entries = torch.cat([per_ray for _, _, per_ray in views])
    row_start = torch.cat([entries.new_zeros(1), entries.cumsum(0)])
    columns, weights = torch.cat([column for column, _, _ in views]), torch.cat([weight for _, weight, _ in views])
    return csr(row_start, columns, weights, (len(entries), grid.size**2))


@torch.inference_mode(False)
def transposed(matrix: Tensor) -> Tensor:
    """The transposed matrix in rows of its own, float32 CSR: a product with it is as fast as with the matrix."""
    parts = (matrix.values().numpy(), matrix.col_indices().numpy(), matrix.crow_indices().numpy())
    turned = sparse.csr_matrix(parts, shape=tuple(matrix.shape)).T.tocsr()
    row_start, columns, weights = (torch.from_numpy(part) for part in (turned.indptr, turned.indices, turned.data))
    return csr(row_start, columns, weights, (matrix.shape[1], matrix.shape[0]))


def most_bytes(geometry: Geometry, grid: ImageGrid) -> int:
    """Upper bound of the memory that the matrix and its transposed take: each ray crosses all rows, two pixels in each."""
    return 2 * BYTES_PER_ENTRY * geometry.views * geometry.detectors * 2 * grid.size


def csr(row_start: Tensor, columns: Tensor, weights: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix with the indices that the fast kernels take: int32."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        return torch.sparse_csr_tensor(row_start.int(), columns.int(), weights.float(), shape, check_invariants=False)


def _view(geometry: Geometry, grid: ImageGrid, angle_rad: float) -> tuple[Int32[Tensor, " e"], Float32[Tensor, " e"], Tensor]:
    """The matrix's entries of one view, ray by ray: columns, weights in mm, and how many each ray has."""
    point, direction = _rays(geometry, angle_rad)
    point = point / grid.pixel_mm + (grid.size - 1) / 2  # indices from here on
    along_x = direction[:, 0].abs() >= direction[:, 1].abs()
    main, other = torch.where(along_x[:, None], direction, direction.flip(1)).unbind(1)
    main_point, other_point = torch.where(along_x[:, None], point, point.flip(1)).unbind(1)
    slope = other / main
    row = torch.arange(grid.size, dtype=torch.int32)
    crossing = torch.addcmul((other_point - main_point * slope).float()[:, None], slope.float()[:, None], row.float())
    below = crossing.floor()
    upper_share = crossing - below
    pixel = below.int()[..., None] + torch.tensor([0, 1], dtype=torch.int32)
    share = torch.stack([1 - upper_share, upper_share], dim=2)
    inside = (pixel >= 0) & (pixel < grid.size) & (share > LEAST_WEIGHT)
    step = torch.where(along_x[:, None], 1, grid.size).int()  # of the memory, along the main axis; along the other one the rest
    columns = pixel * (grid.size + 1 - step)[..., None] + (row * step)[..., None]
    weights = share * (grid.pixel_mm / main.abs()).float()[:, None, None]
    return columns[inside], weights[inside], inside.flatten(1).sum(1)


def _rays(geometry: Geometry, angle_rad: float) -> tuple[Float[Tensor, "d 2"], Float[Tensor, "d 2"]]:
    """A point in mm on the ray of each cell, and its direction of length 1, in x and y."""
    outward = torch.tensor([math.cos(angle_rad), math.sin(angle_rad)], dtype=torch.float64)
    along = torch.tensor([-math.sin(angle_rad), math.cos(angle_rad)], dtype=torch.float64)
    on_detector = cell_positions_mm(geometry)[:, None] * along
    if geometry.beam == "parallel":
        return on_detector, (-outward).expand_as(on_detector)
    source = geometry.source_to_isocentre_mm * outward
    direction = on_detector - geometry.source_to_detector_mm * outward
    return source.expand_as(direction), direction / direction.norm(dim=1, keepdim=True)


def cell_positions_mm(geometry: Geometry) -> Float[Tensor, " d"]:
    """u of each cell's middle: on the detector for a fan, at the isocentre for parallel rays; float64."""
    cells = torch.arange(geometry.detectors, dtype=torch.float64)
    return (cells - (geometry.detectors - 1) / 2) * geometry.pitch_mm + geometry.detector_offset_mm
