"""MR of a head -> CT in HU on the same grid.

Works inside the head, which is found by thresholding (or given as a mask); outside it the CT is air. Input that is no MR of a head with its
skull is refused, since the generator would draw a false skull around it.
"""

import numpy as np

from medsynth.core.errors import ScanError
from medsynth.core.quantity import CT, HU_MAX, HU_MIN, MR, Scale
from medsynth.core.task import Prepared, Task
from medsynth.core.volume import Volume
from medsynth.core.windows import plausible_hu
from medsynth.scans.head import is_stripped, outline

AIR_HU = -1000.0
RANGE_HU = (HU_MIN, HU_MAX)
HEAD_ML = (600.0, 9000.0)  # an adult head with neck has 3500 to 6500 ml


def prepare(scan: Volume, mask: np.ndarray | None, force: bool) -> Prepared:
    """Network input and the head's region for an MR on the card's grid.

    Raises ScanError E-MODALITY for a CT, an empty image, something far from a head's size, or a skull-stripped head; with `force` these
    become warnings (an empty image stays an error).
    """
    if float(scan.array.max()) <= float(scan.array.min()):
        raise ScanError("E-MODALITY", "the image is constant", remedy="check the export of this scan")
    region = outline(scan.array, scan.spacing_mm) if mask is None else mask
    if not region.any():
        cause = "no head was found in the image" if mask is None else "the mask is empty on this scan"
        raise ScanError("E-MODALITY", cause, remedy="give the head's mask with --mask")
    positive = np.maximum(scan.array, 0)
    scale = MR().fit(positive)
    problem = _problem(scan, region, scale)
    if problem and not force:
        cause, remedy = problem
        raise ScanError("E-MODALITY", cause, remedy=f"{remedy}; or --force to go on regardless")
    return Prepared(
        image=scale.encode(positive).astype(np.float32)[None],
        region=region,
        source_scale=scale,
        target_scale=CT().fit(),
        warnings=(problem[0],) if problem else (),
    )


def finish(prediction: np.ndarray, prepared: Prepared) -> np.ndarray:
    """HU inside the head, air outside."""
    ct_hu = prepared.target_scale.decode(prediction)
    return np.where(prepared.region, np.clip(ct_hu, *RANGE_HU), AIR_HU).astype(np.float32)


def _problem(scan: Volume, region: np.ndarray, scale: Scale) -> tuple[str, str] | None:
    """(cause, remedy) of the worst thing that makes this input unfit."""
    if scan.origin.modality == "CT" or _looks_like_ct(scan.array):
        return "this is a CT, and the model takes MR", "give the MR of the patient"
    volume_ml = float(region.sum() * np.prod(scan.spacing_mm) / 1000)
    if volume_ml < HEAD_ML[0]:
        return f"the body in the image has {volume_ml:.0f} ml, too little for a head", "give a scan that shows the head, or its --mask"
    if volume_ml > HEAD_ML[1]:
        return (
            f"the body in the image has {volume_ml:.0f} ml, more than a head",
            "give a scan of the head; other regions need another model",
        )
    if is_stripped(scan.array, region, scan.spacing_mm, scale.half_width):
        return "the skull was removed from this MR: any skull in its CT would be invented", "give the MR as it was scanned"
    return None


def _looks_like_ct(array: np.ndarray) -> bool:
    """Values as HU have them and a minimum that no magnitude image has, whatever the header says."""
    sample = array[::3, ::3, ::3]
    return bool(sample.min() < -500) and plausible_hu(sample)


TASK = Task(
    name="mri2ct",
    summary="Synthetic CT of the head from one MR, in one step.",
    source=MR(),
    target=CT(),
    suffix="ct",
    model="mri2ct-head",
    outside=AIR_HU,
    range=RANGE_HU,
    prepare=prepare,
    finish=finish,
)
