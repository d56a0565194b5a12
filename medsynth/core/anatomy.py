"""Which part of the body an axial slice of CT shows, from its air and its size alone: so that drifting compares like with like.

Crude on purpose: it needs no labels and no network, and a slice that is taken for its neighbour's kind does little harm.
"""

import numpy as np
from jaxtyping import Shaped
from scipy import ndimage

HEAD, CHEST, TRUNK, ACROSS = range(4)  # head, neck or limb; lungs; trunk without lungs; coronal and sagittal slices
REGIONS = 4
TISSUE_HU = -500.0
SMALL_CM2 = 330.0  # heads are below 300 cm2, trunks of adults above 350
LUNG_SHARE = 0.08  # of what lies within the skin
MOST_PIXELS = 96  # on a side, that are looked at


def region_of(slice_hu: Shaped[np.ndarray, "a b"], pixel_mm: float) -> int:
    """HEAD, CHEST or TRUNK, of one axial slice in HU with square pixels. A slice of air alone is a HEAD."""
    step = -(-max(slice_hu.shape) // MOST_PIXELS)
    tissue = np.asarray(ndimage.binary_opening(slice_hu[::step, ::step] > TISSUE_HU), dtype=bool)  # without tables and tubes
    within = np.asarray(ndimage.binary_fill_holes(tissue), dtype=bool)
    if within.sum() * (step * pixel_mm / 10) ** 2 < SMALL_CM2:
        return HEAD
    return CHEST if (within & ~tissue).sum() > LUNG_SHARE * within.sum() else TRUNK
