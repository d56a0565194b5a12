"""Where the head is in an MR, and whether it still has its skull."""

import numpy as np
from scipy import ndimage

CLOSING_MM = 12.0  # bridges nostrils, ear canals and the skull, dark in MR
SKIN_MM = 3.0  # kept around the outline: blurred skin lies below the threshold
# With these at most 13 HU of a drawn head's MAE are lost to the outline in 48 contrasts, .4 HU on average in T1; half of Otsu's
# threshold, as before, lost up to 195 HU.
NOISE_FACTOR, DIM_SHARE = 4.0, 0.2
COARSE = 2  # the outline is found on every second voxel's mean: an eighth of the work for a border that has a margin anyway
SMALL_SHARE = 0.02  # of the largest component: what is smaller is no part of the head

# Measured on the scans and label maps named in docs/log.md: stripped brains have 1590 to 2080 ml and few dark voxels in this layer,
# whole heads 3100 to 5430 ml and more of them; a view that ends inside the head touches the border of the image.
LAYER_MM = (9.0, 24.0)
STRIPPED_ML = 2500.0
STRIPPED_DARK_SHARE = 0.05
DARK = 0.25  # of the foreground's 95th percentile
STRIPPED_BORDER_SHARE = 0.19  # of six faces: a brain cut out to its bounding box has up to 0.18, as little of a whole head 0.22 and more


def outline(array: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """bool [x y z]: the head with its cavities; empty if nothing is bright.

    The bright components but for small ones (a view above the orbits shows scalp and brain apart), closed by CLOSING_MM, filled in the
    volume and in each axial slice, with SKIN_MM of margin.
    """
    coarse = _mean_of_blocks(array)
    step_mm = [s * COARSE for s in spacing_mm]
    parts = np.asarray(ndimage.label(ndimage.binary_opening(_foreground(coarse)))[0])  # pyright: ignore[reportIndexIssue]
    if not parts.any():
        return np.zeros(array.shape, dtype=bool)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    bright = (sizes >= SMALL_SHARE * sizes.max())[parts]
    pad = [int(np.ceil(CLOSING_MM / s)) + 1 for s in step_mm]
    padded = np.pad(bright, [(p, p) for p in pad], mode="edge")  # where the view cuts the head, the head goes on
    grown = _filled(_depth(~padded, step_mm) <= CLOSING_MM)
    shrunk = _depth(grown, step_mm) > CLOSING_MM - SKIN_MM
    inner = tuple(slice(p, p + n) for p, n in zip(pad, coarse.shape, strict=True))
    return _enlarged(shrunk[inner] | bright, array.shape)


def is_stripped(array: np.ndarray, head: np.ndarray, spacing_mm: tuple[float, float, float], bright: float) -> bool:
    """Whether the skull was removed: small, apart from the image's border, and without the dark layer of skull under the scalp.

    bright: the scan's scale, the 95th percentile of its foreground.
    """
    volume_ml = float(head.sum() * np.prod(spacing_mm) / 1000)
    border = [np.take(head, i, axis).sum() for axis in range(3) for i in (0, -1)]
    if volume_ml > STRIPPED_ML or sum(border) > STRIPPED_BORDER_SHARE * head.sum() ** (2 / 3) * 6:
        return False
    small, inside = _mean_of_blocks(array), head[::COARSE, ::COARSE, ::COARSE]
    depth_mm = _depth(inside, [s * COARSE for s in spacing_mm])
    layer = small[(depth_mm > LAYER_MM[0]) & (depth_mm <= LAYER_MM[1])]
    return bool(layer.size and np.mean(layer < DARK * bright) < STRIPPED_DARK_SHARE)


def _depth(mask: np.ndarray, spacing_mm: list[float]) -> np.ndarray:
    """Distance to the nearest voxel outside the mask, in mm."""
    return np.asarray(ndimage.distance_transform_edt(mask, sampling=spacing_mm))


def _foreground(array: np.ndarray) -> np.ndarray:
    """Brighter than the background: a fifth of the way to Otsu's threshold (1979), and above the noise; scalp and neck may be dim."""
    low, top = float(array.min()), float(np.percentile(array, 99))
    counts, edges = np.histogram(np.clip(array, low, top), bins=256)
    weights = np.cumsum(counts) / counts.sum()
    means = np.cumsum(counts * edges[:-1]) / counts.sum()
    between = (means[-1] * weights - means) ** 2 / np.maximum(weights * (1 - weights), 1e-9)
    threshold = max(low, float(edges[int(between.argmax())]))  # a constant image's bins begin below its value
    dark = array[array <= low + 0.5 * (threshold - low)]
    background = float(np.median(dark))
    noise = 1.4826 * float(np.median(np.abs(dark - background)))  # the standard deviation, were it Gaussian
    return array > background + max(NOISE_FACTOR * noise, DIM_SHARE * (threshold - background))


def _filled(mask: np.ndarray) -> np.ndarray:
    """Holes of the volume, then of each axial slice: the neck and the nose are open in 3-D where the view ends."""
    filled = np.asarray(ndimage.binary_fill_holes(mask))
    for z in range(mask.shape[2]):
        filled[:, :, z] = ndimage.binary_fill_holes(filled[:, :, z])
    return filled


def _mean_of_blocks(array: np.ndarray) -> np.ndarray:
    even = np.pad(array, [(0, n % COARSE) for n in array.shape], mode="edge")
    x, y, z = (n // COARSE for n in even.shape)
    return even.reshape(x, COARSE, y, COARSE, z, COARSE).mean((1, 3, 5))


def _enlarged(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    for axis in range(3):
        mask = np.repeat(mask, COARSE, axis)
    return mask[tuple(slice(n) for n in shape)]
