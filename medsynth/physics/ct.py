"""CT in a plane: attenuation and line integrals. All slices of a volume are columns of one product with one sparse matrix.

Units: mu in 1/mm, lengths in mm, so that a sinogram has none. HU and mu are two scales of one line, at an effective energy of about 70 keV
that stands for the whole spectrum. Images are [s y x] in LPS (x to the left, y to the back), as `geometry` says; the caller turns volumes.

What the operator returns lies in memory with the slices innermost, as the products need it: passed on, it is copied by none of them.
"""

from collections import OrderedDict
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from medsynth.core.errors import OutOfMemoryError, UsageError
from medsynth.physics.filtered import Window, backprojection, backprojection_bytes, filtered
from medsynth.physics.geometry import Geometry, ImageGrid, insist_fits, insist_source_outside
from medsynth.physics.joseph import BYTES_PER_ENTRY, most_bytes, system_matrix, transposed

MU_WATER_PER_MM = 0.0192
MATRIX_LIMIT_BYTES = 2.5e9
SUBSETS = 6  # more make the extrapolated steps on them diverge (docs/log.md)
BACKPROJECTION_KEPT_BYTES = 512e6
BACKPROJECTION_BLOCK_BYTES = 128e6
KEPT_BYTES = 1.5e9  # of all projectors, unless `keep_projectors` says otherwise: with those of the scan at work a machine of 8 GB does


def hu_to_mu(hu: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Attenuation in 1/mm; below 0 where HU are below -1000, so that `mu_to_hu` leads back."""
    return MU_WATER_PER_MM * (1 + hu / 1000)


def mu_to_hu(mu: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """HU, the inverse of `hu_to_mu`."""
    return 1000 * (mu / MU_WATER_PER_MM - 1)


def attenuation(hu: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Attenuation in 1/mm of what is to be projected: nothing is below air's 0."""
    return hu_to_mu(hu).clamp(min=0)


class Projector:
    """Line integrals of images on one grid in one geometry, their adjoint, and filtered backprojection; all float32, differentiable.

    Each matrix is built when it is first needed, within a second for 18 views of 512 x 512, and kept. Raises UsageError E-GEOMETRY if the
    source would turn within the image.
    """

    def __init__(self, geometry: Geometry, grid: ImageGrid, device: torch.device = torch.device("cpu")) -> None:  # noqa: B008
        insist_source_outside(geometry, grid)
        self.geometry = geometry
        self.grid = grid
        self.device = device

    def forward(self, mu: Float[Tensor, "s y x"]) -> Float[Tensor, "s v d"]:
        """Line integrals of `mu`, in 1/mm. Raises OutOfMemoryError E-MEM for more views than the matrix can hold."""
        rays = _product(mu, self, backwards=False)
        return rays.unflatten(1, (self.geometry.views, self.geometry.detectors))

    def adjoint(self, sinogram: Float[Tensor, "s v d"]) -> Float[Tensor, "s y x"]:
        """The transposed of `forward`, exactly: each pixel's sum over rays, weighted with their lengths in it. Raises as `forward` does."""
        return _product(sinogram, self, backwards=True).unflatten(1, (self.grid.size, self.grid.size))

    def fbp(self, sinogram: Float[Tensor, "s v d"], window: Window = "ram-lak") -> Float[Tensor, "s y x"]:
        """Filtered backprojection, mu in 1/mm, of any number of equally spaced views. window: see `filtered._response`.

        Pixels outside the field of view lack a part of their views. Raises UsageError E-VIEWS if the views do not divide a full turn (or
        half a turn of parallel rays) evenly, ScanError E-SINOGRAM if the sinogram has another shape than the geometry.
        """
        insist_fits(self.geometry, sinogram.shape)
        if not self.geometry.is_complete:
            turn = "360 degrees, or 180 of parallel rays"
            cause = f"filtered backprojection needs views equally spaced over {turn}; these {self.geometry.views} are not"
            raise UsageError("E-VIEWS", cause, remedy="use SIRT or TV, which take any views")
        sharpened = filtered(sinogram.float(), self.geometry, self.grid.pixel_mm, window)
        if backprojection_bytes(self.grid, self.geometry.views) <= BACKPROJECTION_KEPT_BYTES:
            image = _multiply(self._backprojection, _columns(sharpened))
        else:
            image = self._backprojected_in_blocks(sharpened)
        return image.T.unflatten(1, (self.grid.size, self.grid.size))

    @cached_property
    def ray_lengths_mm(self) -> Float[Tensor, "v d"]:
        """Length of each ray within the image: A applied to ones."""
        return self.forward(torch.ones(1, self.grid.size, self.grid.size, device=self.device))[0].contiguous()

    @cached_property
    def pixel_lengths_mm(self) -> Float[Tensor, "y x"]:
        """Sum of the lengths of all rays in each pixel: the adjoint applied to ones."""
        return self.adjoint(torch.ones(1, self.geometry.views, self.geometry.detectors, device=self.device))[0].contiguous()

    @cached_property
    def subsets(self) -> list[tuple[slice, "Projector"]]:
        """The views dealt out into SUBSETS, fewer where each would get less than three: which views, and their projector.

        Neighbours in the list lie far apart in angle, so that each tells what the one before could not.
        """
        count = min(SUBSETS, max(1, self.geometry.views // 3))
        firsts = [first for pair in zip(range(0, count), range((count + 1) // 2, count), strict=False) for first in pair]
        firsts += [first for first in range(count) if first not in firsts]
        angles = self.geometry.angles_deg
        parts = [slice(first, None, count) for first in firsts]
        return [(part, Projector(self.geometry.model_copy(update={"angles_deg": angles[part]}), self.grid, self.device)) for part in parts]

    @property
    def held_bytes(self) -> int:
        """Memory of the matrices built so far."""
        built = (self.__dict__.get(name) for name in ("matrix", "transposed_matrix", "_backprojection"))
        own = sum(BYTES_PER_ENTRY * matrix.values().numel() for matrix in built if matrix is not None)
        return own + sum(part.held_bytes for _, part in self.__dict__.get("subsets", ()))

    @cached_property
    def matrix(self) -> Tensor:
        """A, as `joseph.system_matrix` makes it. Raises OutOfMemoryError E-MEM if memory would not hold it."""
        needed = most_bytes(self.geometry, self.grid)
        if needed > MATRIX_LIMIT_BYTES:
            cause = f"the rays of {self.geometry.views} views through {self.grid.size} x {self.grid.size} pixels take {needed / 1e9:.1f} GB"
            raise OutOfMemoryError("E-MEM", cause, remedy="use fewer views or a smaller image; filtered backprojection takes any number")
        return system_matrix(self.geometry, self.grid).to(self.device)

    @cached_property
    def transposed_matrix(self) -> Tensor:
        """A's transposed, by rows of its own."""
        return transposed(self.matrix.cpu()).to(self.device)

    @cached_property
    def _backprojection(self) -> Tensor:
        return backprojection(self.geometry, self.grid, range(self.geometry.views)).to(self.device)

    def _backprojected_in_blocks(self, sharpened: Float[Tensor, "s v d"]) -> Float[Tensor, "p s"]:
        """A block of views at a time, each with a matrix that is then forgotten."""
        block = max(1, int(BACKPROJECTION_BLOCK_BYTES / backprojection_bytes(self.grid, 1)))
        image = sharpened.new_zeros(self.grid.size**2, len(sharpened))
        for start in range(0, self.geometry.views, block):
            views = range(start, min(start + block, self.geometry.views))
            matrix = backprojection(self.geometry, self.grid, views).to(self.device)
            image = image + _multiply(matrix, _columns(sharpened[:, start : views.stop]))
        return image


def projector(geometry: Geometry, grid: ImageGrid, device: torch.device = torch.device("cpu")) -> Projector:  # noqa: B008
    """The projector of a geometry and grid, kept with its matrices; those used longest ago are given up beyond `keep_projectors`' limit."""
    return _kept.projector(geometry, grid, device)


def keep_projectors(limit_bytes: float = KEPT_BYTES) -> None:
    """How much the matrices of all kept projectors may take together; beyond it, those used longest ago are given up, now and later.

    The projector that is asked for is kept whatever it takes. Training with three pixel sizes, three numbers of views and two grids uses
    them in turn and needs 4e9: below that, matrices are built again and again.
    """
    _kept.limit(limit_bytes)


class _Kept:
    """Projectors in the order of their last use. Threads share them."""

    def __init__(self) -> None:
        self._limit_bytes = KEPT_BYTES
        self._projectors: OrderedDict[tuple[Geometry, ImageGrid, torch.device], Projector] = OrderedDict()
        self._lock = Lock()

    def projector(self, geometry: Geometry, grid: ImageGrid, device: torch.device) -> Projector:
        key = (geometry, grid, device)
        with self._lock:
            found = self._projectors.pop(key, None) or Projector(geometry, grid, device)
            self._projectors[key] = found
            self._give_up()
        return found

    def limit(self, limit_bytes: float) -> None:
        with self._lock:
            self._limit_bytes = limit_bytes
            self._give_up()

    def _give_up(self) -> None:
        while len(self._projectors) > 1 and sum(each.held_bytes for each in self._projectors.values()) > self._limit_bytes:
            self._projectors.popitem(last=False)


_kept = _Kept()


def relative_residual(operator: Projector, mu: Float[Tensor, "s y x"], sinogram: Float[Tensor, "s v d"]) -> Float[Tensor, " s"]:
    """||A mu - b|| / ||b|| of each slice: how far an image is from what was measured. Small means consistent, not true."""
    difference = (operator.forward(mu) - sinogram).flatten(1).norm(dim=1)
    return difference / sinogram.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)


class _Product(torch.autograd.Function):
    """A or its transposed times columns; the gradient is a product with the other one, which is faster than autograd's own."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, operator: Projector, backwards: bool) -> Tensor:
        ctx.operator, ctx.backwards = operator, backwards
        return _multiply(operator.transposed_matrix if backwards else operator.matrix, columns)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradients[0].contiguous(), ctx.operator, not ctx.backwards), None, None  # pyright: ignore[reportReturnType]


def _product(images: Float[Tensor, "s a b"], operator: Projector, *, backwards: bool) -> Float[Tensor, "s r"]:
    columns: Any = _Product.apply(_columns(images), operator, backwards)
    return columns.T


def _multiply(matrix: Tensor, columns: Float[Tensor, "c s"]) -> Float[Tensor, "r s"]:
    with torch.autocast(columns.device.type, enabled=False):  # there is no sparse product in half precision
        return matrix @ columns


def _columns(images: Float[Tensor, "s a b"]) -> Float[Tensor, "c s"]:
    """Each slice as a column; a view where the slices lie innermost in memory."""
    return images.float().flatten(1).T.contiguous()
