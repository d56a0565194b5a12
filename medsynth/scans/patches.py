"""One evaluation of a generator per patch, blended into a volume (MONAI's sliding window with Gaussian weights).

Windows have the size that the generator was trained with: normalisation statistics move with the share of air, so that one pass over a
larger volume is worse. Only the box around the region is visited.
"""

import math
from collections.abc import Callable

import numpy as np
import psutil
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from medsynth.core.errors import OutOfMemoryError

Predict = Callable[[Tensor], Tensor]
OVERLAP = 0.5
MARGIN = 4  # voxels kept around the region
# By benchmarks/memory.py: 105 bytes a voxel of the patches in bfloat16, so 210 in float32; 19 bytes a voxel of a scan and .8 GB besides.
# Two scans are held at once.
NETWORK_BYTES_PER_VOXEL = 210
RUN_BYTES_PER_VOXEL = 40
RUN_BYTES = 1_000_000_000


def blend(
    predict: Predict, image: np.ndarray, region: np.ndarray, *, patch: tuple[int, int, int], batch: int, device: torch.device
) -> np.ndarray:
    """float32 [x y z] from an image [c x y z]; zero outside the region's box.

    When memory runs out, the batch is halved, then the patch made smaller by a quarter. Raises OutOfMemoryError E-MEM below 32 voxels.
    """
    box = _box(region)
    cropped = torch.from_numpy(np.ascontiguousarray(image[(slice(None), *box)]))[None]
    size = patch
    while True:
        try:
            result = np.zeros(region.shape, dtype=np.float32)
            result[box] = _windows(predict, cropped, size, batch, device)
            return result
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
        batch, size = (batch // 2, size) if batch > 1 else (1, _smaller(size))


def required_bytes(scan_voxels: int, patch: tuple[int, int, int], batch: int) -> int:
    """An estimate of the memory that a run needs for one scan with these patches."""
    return RUN_BYTES + RUN_BYTES_PER_VOXEL * scan_voxels + NETWORK_BYTES_PER_VOXEL * batch * math.prod(patch)


def affordable_batch(scan_voxels: int, patch: tuple[int, int, int], device: torch.device) -> int:
    """How many patches to compute at once. Raises OutOfMemoryError E-MEM if not even one fits, before any work is done."""
    free = psutil.virtual_memory().available
    needed = required_bytes(scan_voxels, patch, 1)
    if needed > free:
        raise OutOfMemoryError(
            "E-MEM",
            f"this scan needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            remedy="close other programs, or resample the scan to a coarser grid",
        )
    if device.type != "cuda":
        return 1
    free_on_device, _ = torch.cuda.mem_get_info(device)
    return max(1, min(8, int(0.7 * free_on_device / (NETWORK_BYTES_PER_VOXEL * math.prod(patch)))))


def _windows(predict: Predict, image: Tensor, patch: tuple[int, int, int], batch: int, device: torch.device) -> np.ndarray:
    blended = sliding_window_inference(
        image,
        roi_size=patch,
        sw_batch_size=batch,
        predictor=predict,
        overlap=OVERLAP,
        mode="gaussian",
        sw_device=device,
        device=torch.device("cpu"),
    )
    assert isinstance(blended, Tensor)
    return blended[0, 0].numpy()


def _box(region: np.ndarray) -> tuple[slice, slice, slice]:
    spans = []
    for axis in range(3):
        filled = np.flatnonzero(region.any(tuple(a for a in range(3) if a != axis)))
        spans.append(slice(max(0, int(filled[0]) - MARGIN), int(filled[-1]) + 1 + MARGIN))
    return spans[0], spans[1], spans[2]


def _smaller(patch: tuple[int, int, int]) -> tuple[int, int, int]:
    x, y, z = (int(side * 0.75) // 16 * 16 for side in patch)
    if min(x, y, z) < 32:
        raise OutOfMemoryError("E-MEM", "memory ran out even with the smallest tiles", remedy="--device cpu, or a machine with more memory")
    return x, y, z


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. Only CUDA's allocator has an exception of its own; the others are known by their words."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED"))
