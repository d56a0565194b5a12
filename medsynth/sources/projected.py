"""Slabs of CT with their own sinograms: what a generator for few views learns from.

A slab is cut out of a packed scan in a random pose, changed as another patient or scanner would change it, projected from a grid twice as
fine as the reconstruction's (who simulates and reconstructs with one matrix commits the inverse crime), and given noise. Slabs are
simulated in groups that share geometry and dose, since all their slices are columns of one product; each is used three times.

Everything random about a group is drawn first, into records; `simulate` is then a function of them and the packed scans.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from medsynth.core.anatomy import ACROSS, region_of
from medsynth.core.generator import Condition, Target, place_of
from medsynth.core.quantity import CT
from medsynth.generators.sparse import shown_of
from medsynth.physics.acquisition import Acquisition, first_image, from_slices
from medsynth.physics.ct import attenuation, keep_projectors, mu_to_hu
from medsynth.physics.geometry import FINER, ImageGrid, fan
from medsynth.physics.noise import photon_noise

SIZE = 256  # pixels on a side of the reconstruction
PIXELS_MM = (0.95, 1.4, 1.75)  # a head, a slim and a wide body in the fan's field of view
LOG10_PHOTONS = (5.5, 6.5)
BATCHES_A_GROUP, USES = 3, 3
AIR_HU, TOP_HU = -1000.0, 3095.0
EXACT_SHARE, MOST_VOXELS = 0.5, 352  # of axial slabs; voxels on a side beyond which the task bins them
NEARLY = 0.01  # of a voxel: pixels on the edge between two must not take now this and now that one
CROPPED_SHARE = 0.2
DEEP_MM, DEEP_SHARE = 150.0, 0.3  # scans this long are also cut across: coronal and sagittal slices are other anatomy
PASSES_FROM = 150  # batches before the first with several passes: a network that knows nothing teaches nothing to its second pass
PASSES = {1: 0.6, 2: 0.25, 3: 0.15}
WINDOW_REACH = 0.3  # of the slice's side, along each: how far from its middle a window's own is sought; windows that end outside move in
MARGIN = 8
VALIDATION_PIXEL_MM, VALIDATION_PHOTONS = 1.4, 1e6
VALIDATION_OFFSET = 10**9
PROJECTORS_BYTES = 6e9  # three pixel sizes, three numbers of views, and the finer grids to project from


class Stack(NamedTuple):
    """A packed scan. ct_hu: int16 [z y x] in LPS, slices from feet to head. spacing_mm: along z, y, x. digest: identifies its bytes."""

    name: str
    ct_hu: np.ndarray
    spacing_mm: tuple[float, float, float]
    digest: str


class Bump(NamedTuple):
    """Change of HU around one value: contrast agent, other fat or muscle."""

    centre: float
    amount: float
    width: float


class Ellipse(NamedTuple):
    """An inserted lesion: centre and radii in units of half the field of view, change in HU."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    amount: float


class Box(NamedTuple):
    """What a scan that was cropped in its plane still shows: low and high ends along x and y, in units of half the field of view."""

    low: tuple[float, float]
    high: tuple[float, float]


class Recipe(NamedTuple):
    """Everything random about one slab, but for white noise.

    axis: of the scan, along which the slab's slices lie. first: the first of them; apart: steps between two. matrix, shift: from the slab's
    plane, in units of half its side, to mm from the middle of the scan's. warp: nodes [1 2 n n] in mm, or None. exact: voxels as they are,
    since what is interpolated is smoother than any scan.
    """

    stack: int
    axis: int
    first: int
    apart: int
    matrix: np.ndarray
    shift: np.ndarray
    warp: np.ndarray | None
    exact: bool
    gain: float
    bump: Bump | None
    ellipses: tuple[Ellipse, ...]
    box: Box | None = None


class Group(NamedTuple):
    """What the slabs of a group share, and the slabs. pixel_mm: of the reconstruction."""

    views: int
    pixel_mm: float
    photons: float
    noise_seed: int
    recipes: tuple[Recipe, ...]


class ProjectedSlabs:
    """Pairs by number. views: numbers of views to learn. slices: of a slab. batch: pairs that must share a geometry.

    window: side of the square, near the middle of the plane, that training learns from, since air needs little learning; 0: whole slices.
    """

    def __init__(
        self, stacks: Sequence[Stack], *, views: Sequence[int], slices: int, batch: int, seed: int, size: int = SIZE, window: int = 0
    ) -> None:
        self.stacks = list(stacks)
        self.views = tuple(views)
        self.slices = slices
        self.batch = batch
        self.seed = seed
        self.size = size
        self.window = window
        keep_projectors(PROJECTORS_BYTES)
        self._last: tuple[int, list[tuple[Condition, Target]]] | None = None

    def training_pair(self, step: int, device: torch.device) -> tuple[Condition, Target]:
        """The pair of a number, batch of one. Consecutive numbers of one group cost little: the last group is kept."""
        own = self.batch * BATCHES_A_GROUP
        number, place = divmod(step, own * USES)
        if self._last is None or self._last[0] != number:
            self._last = (number, self._simulated(number, own, device))
        order = np.concatenate([np.random.default_rng((self.seed, number, use)).permutation(own) for use in range(USES)])
        condition, target = self._last[1][order[place]]
        return self._used(condition, target, step)

    def validation_pair(self, index: int, device: torch.device) -> tuple[Condition, Target, str]:
        """A repeatable pair, one pass, with its kind, such as "views18": views in turn, then scans, then places."""
        rng = np.random.default_rng((self.seed, VALIDATION_OFFSET + index))
        turn, which = divmod(index, len(self.views))
        stack = turn % len(self.stacks)
        recipe = draw_plain(rng, stack, self.stacks[stack], self.slices, self.size)
        group = Group(self.views[which], VALIDATION_PIXEL_MM, VALIDATION_PHOTONS, index, (recipe,))
        return *simulate(group, self.stacks, self.slices, self.size, device)[0], f"views{self.views[which]}"

    def _simulated(self, number: int, count: int, device: torch.device) -> list[tuple[Condition, Target]]:
        rng = np.random.default_rng((self.seed, number))
        return simulate(
            draw_group(rng, self.stacks, self.views, self.slices, self.size, count), self.stacks, self.slices, self.size, device
        )

    def _used(self, condition: Condition, target: Target, step: int) -> tuple[Condition, Target]:
        """The pair with its passes and window, which are those of its batch: it goes through the network as one."""
        rng = np.random.default_rng((self.seed, 1, step // self.batch))
        passes = int(rng.choice(list(PASSES), p=list(PASSES.values())))
        condition = replace(condition, passes=passes if step >= PASSES_FROM * self.batch else 1)
        if not self.window:
            return condition, target
        middle = self.size * (0.5 + rng.uniform(-WINDOW_REACH, WINDOW_REACH, 2))
        x, y = (int(np.clip(round(c - self.window / 2), 0, self.size - self.window)) for c in middle)
        image = target.image[:, :, x : x + self.window, y : y + self.window]
        weight = torch.zeros_like(image)
        weight[:, :, self._counted(x), self._counted(y)] = 1
        return replace(condition, window=(x, y, self.window)), Target(image=image, weight=weight, place=target.place)

    def _counted(self, start: int) -> slice:
        """Along one side of a window, what counts: at its border the network lacks what lies beyond, but not where the slice ends too."""
        return slice(MARGIN if start else 0, self.window - (MARGIN if start + self.window < self.size else 0))


def draw_group(rng: np.random.Generator, stacks: Sequence[Stack], views: Sequence[int], slices: int, size: int, count: int) -> Group:
    """A group for training; scans count by the root of their slices, so that neither long nor many short ones prevail."""
    weight = np.sqrt([len(stack.ct_hu) for stack in stacks])
    chosen = rng.choice(len(stacks), count, p=weight / weight.sum())
    return Group(
        views=int(rng.choice(views)),
        pixel_mm=float(rng.choice(PIXELS_MM)),
        photons=float(10 ** rng.uniform(*LOG10_PHOTONS)),
        noise_seed=int(rng.integers(2**62)),
        recipes=tuple(draw_slab(rng, int(i), stacks[i], slices, size) for i in chosen),
    )


def draw_slab(rng: np.random.Generator, index: int, stack: Stack, slices: int, size: int = SIZE) -> Recipe:
    """A slab for training: any place, pose, zoom and shape, or the scan's own voxels on a grid of size x size."""
    deep = len(stack.ct_hu) * stack.spacing_mm[0] > DEEP_MM
    axis = int(rng.integers(1, 3)) if deep and rng.random() < DEEP_SHARE else 0
    count = stack.ct_hu.shape[axis]
    low, high = (0.1, 0.9) if axis else (0.0, 1.0)  # the outer coronal and sagittal slices show skin only
    apart = max(1, int(rng.integers(1, 3)) if count >= 2 * slices else 1)
    last = max(int(low * count), int(high * count) - (slices - 1) * apart - 1)
    exact = axis == 0 and rng.random() < EXACT_SHARE
    half_mm = _exact_half_mm(stack, size) if exact else max(_plane_mm(stack, axis)) / 2 / rng.uniform(0.65, 1.05)
    angle = rng.integers(4) * np.pi / 2 if exact or rng.random() < 0.4 else rng.uniform(-np.pi, np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.diag([1.0 if exact else rng.uniform(0.88, 1.14), 1.0])
    mirror = np.diag([rng.choice((-1.0, 1.0)), 1.0])
    shift = rng.uniform(-0.08, 0.08, 2) * half_mm
    voxels_mm = np.array(stack.spacing_mm[:0:-1])
    bump = Bump(rng.uniform(-150, 300), rng.uniform(-60, 60), rng.uniform(60, 250)) if rng.random() < 0.5 else None
    return Recipe(
        stack=index,
        axis=axis,
        first=int(rng.integers(int(low * count), last + 1)),
        apart=apart,
        matrix=mirror @ turn @ stretch * half_mm,
        shift=(np.round(shift / voxels_mm) + NEARLY) * voxels_mm if exact else shift,
        warp=(rng.standard_normal((1, 2, 5, 5)) * 0.02 * half_mm).astype(np.float32) if not exact and rng.random() < 0.3 else None,
        exact=exact,
        gain=rng.uniform(0.92, 1.08),
        bump=bump,
        ellipses=tuple(_draw_ellipse(rng) for _ in range(rng.integers(1, 5))) if rng.random() < 0.25 else (),
        box=_draw_box(rng) if rng.random() < CROPPED_SHARE else None,
    )


def draw_plain(rng: np.random.Generator, index: int, stack: Stack, slices: int, size: int = SIZE) -> Recipe:
    """A slab for validation: axial slices of the scan as it is, around the middle of its plane."""
    return Recipe(
        stack=index,
        axis=0,
        first=int(rng.integers(max(1, len(stack.ct_hu) - slices + 1))),
        apart=1,
        matrix=np.eye(2) * _exact_half_mm(stack, size),
        shift=NEARLY * np.array(stack.spacing_mm[:0:-1]),
        warp=None,
        exact=True,
        gain=1.0,
        bump=None,
        ellipses=(),
    )


def simulate(group: Group, stacks: Sequence[Stack], slices: int, size: int, device: torch.device) -> list[tuple[Condition, Target]]:
    """The pairs of a group, batches of one, one pass each."""
    fine_hu = torch.cat([render(recipe, stacks[recipe.stack], slices, FINER * size) for recipe in group.recipes]).to(device)
    geometry = fan(group.views)
    truth = Acquisition(geometry, ImageGrid(size=FINER * size, pixel_mm=group.pixel_mm / FINER))
    rng = torch.Generator(device=device).manual_seed(group.noise_seed)
    sinogram = photon_noise(truth.operator(device).forward(attenuation(fine_hu)), group.photons, rng)
    acquisition = Acquisition(geometry, ImageGrid(size=size, pixel_mm=group.pixel_mm))
    operator = acquisition.operator(device)
    shown = shown_of(operator, sinogram, mu_to_hu(first_image(operator, sinogram)))
    target_hu = F.avg_pool2d(fine_hu[:, None], FINER)[:, 0]
    count, scale = len(group.recipes), CT().fit()
    inputs = torch.stack([from_slices(slices_hu, count) for slices_hu in shown], dim=1)
    targets = from_slices(target_hu, count)[:, None]
    pairs: list[tuple[Condition, Target]] = []
    for i, recipe in enumerate(group.recipes):
        place = _place(recipe, stacks[recipe.stack], target_hu[i * slices : (i + 1) * slices], group.pixel_mm)
        own = sinogram[i * slices : (i + 1) * slices]
        condition = Condition(image=scale.encode(inputs[i : i + 1]), sinogram=own[None].contiguous(), acquisition=acquisition)
        image = scale.encode(targets[i : i + 1])
        pairs.append((condition, Target(image=image, weight=torch.ones_like(image), place=place.to(device))))
    return pairs


def render(recipe: Recipe, stack: Stack, slices: int, size: int) -> Float[Tensor, "s y x"]:
    """The slab in HU on size x size pixels, air beyond the scan and outside the circle that every view sees."""
    count = stack.ct_hu.shape[recipe.axis]
    chosen = np.minimum(recipe.first + recipe.apart * np.arange(slices), count - 1)
    planes = np.moveaxis(np.take(stack.ct_hu, chosen, axis=recipe.axis), recipe.axis, 0)
    above_air = torch.from_numpy(planes.astype(np.float32)) - AIR_HU
    middle = (torch.arange(size) + 0.5) * 2 / size - 1
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    at_mm = torch.einsum("dk,kij->dij", torch.from_numpy(recipe.matrix).float(), torch.stack([x, y]))
    at_mm += torch.from_numpy(recipe.shift).float()[:, None, None]
    if recipe.warp is not None:
        at_mm += F.interpolate(torch.from_numpy(recipe.warp), (size, size), mode="bicubic", align_corners=True)[0]
    high_mm, wide_mm = _plane_mm(stack, recipe.axis)
    grid = torch.stack([at_mm[0] / (wide_mm / 2), at_mm[1] / (high_mm / 2)], dim=-1)[None]
    mode = "nearest" if recipe.exact else "bicubic"
    image = F.grid_sample(above_air[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0].clamp_(min=0)
    image *= recipe.gain
    if recipe.bump is not None:
        image += recipe.bump.amount * torch.exp(-(((image + AIR_HU - recipe.bump.centre) / recipe.bump.width) ** 2))
    for ellipse in recipe.ellipses:
        inside = ((x - ellipse.centre[0]) / ellipse.radii[0]) ** 2 + ((y - ellipse.centre[1]) / ellipse.radii[1]) ** 2 < 1
        image += ellipse.amount * inside * (image > -300 - AIR_HU)
    shown = x**2 + y**2 < 0.995
    if recipe.box is not None:
        (left, front), (right, back) = recipe.box
        shown &= (x > left) & (x < right) & (y > front) & (y < back)
    return image.clamp_(0, TOP_HU - AIR_HU) * shown + AIR_HU


def read_stack(path: Path, name: str) -> Stack:
    """A packed file as `verbs.packslices` writes it."""
    with np.load(path) as file:
        z, y, x = (float(step) for step in file["spacing_mm"])
        return Stack(name, file["ct_hu"], (z, y, x), path.stem)


def _place(recipe: Recipe, stack: Stack, slab_hu: Float[Tensor, "s y x"], pixel_mm: float) -> Int[Tensor, " 1"]:
    """Axial slabs by what they show in the middle, others by themselves; and how far along the scan."""
    slices = len(slab_hu)
    region = ACROSS if recipe.axis else region_of(slab_hu[slices // 2].cpu().numpy(), pixel_mm)
    return place_of(region, recipe.first + slices * recipe.apart / 2, stack.ct_hu.shape[recipe.axis])


def _plane_mm(stack: Stack, axis: int) -> tuple[float, float]:
    """Height and width of the planes across an axis."""
    sides = [n * step for n, step in zip(stack.ct_hu.shape, stack.spacing_mm, strict=True)]
    high, wide = (side for i, side in enumerate(sides) if i != axis)
    return high, wide


def _exact_half_mm(stack: Stack, size: int) -> float:
    """Half the side of a grid whose pixels are the scan's, or two by two of them, as the task chooses."""
    _, rows, columns = stack.ct_hu.shape
    return size / 2 * stack.spacing_mm[2] * (FINER if max(rows, columns) > MOST_VOXELS else 1)


def _draw_box(rng: np.random.Generator) -> Box:
    low, high = -rng.uniform(0.3, 1.0, 2), rng.uniform(0.3, 1.0, 2)
    return Box((low[0], low[1]), (high[0], high[1]))


def _draw_ellipse(rng: np.random.Generator) -> Ellipse:
    x, y = rng.uniform(-0.5, 0.5, 2)
    a, b = rng.uniform(0.01, 0.12, 2)
    return Ellipse((x, y), (a, b), float(rng.choice((-1, 1)) * rng.uniform(20, 300)))
