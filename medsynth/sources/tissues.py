"""The tissues of a head: which label means which, what each measures in CT, which class of the network it belongs to.

Labels are FreeSurfer's for the brain and CHARM's numbering plus 400 around it (as in SynthSeg's training maps, Billot 2023).
HU ranges: soft tissues and bone as tabulated in textbooks of CT (Hounsfield 1980; Schneider 1996; Kalender 2011).
"""

from typing import NamedTuple

import numpy as np


class Tissue(NamedTuple):
    """hu: range of the mean in HU. network_class: index into the generator's classes, by ascending HU."""

    name: str
    hu: tuple[float, float]
    network_class: int
    labels: tuple[int, ...]


AIR, FAT, FLUID, BRAIN, SOFT, CANCELLOUS, CORTICAL = range(7)

# The order is the index in packed maps. Muscle holds CHARM's "other tissue", from which fat is split when a head is drawn.
TISSUES = (
    Tissue("air", (-1000, -1000), AIR, (0,)),
    Tissue("skin", (-10, 30), SOFT, (511,)),
    Tissue("fat", (-110, -80), FAT, ()),
    Tissue("muscle", (45, 65), SOFT, (507,)),
    Tissue("mucosa", (20, 50), SOFT, (509,)),
    Tissue("cortical", (850, 1150), CORTICAL, (515,)),
    Tissue("cancellous", (380, 580), CANCELLOUS, (516,)),
    Tissue("csf", (5, 15), FLUID, (24, 30, 62)),
    Tissue("grey", (34, 40), BRAIN, (3, 42, 11, 50, 12, 51, 17, 53, 18, 54, 26, 58, 137, 164)),
    Tissue("white", (26, 32), BRAIN, (2, 41, 25, 57)),
    Tissue("cerebellar_grey", (34, 40), BRAIN, (8, 47)),
    Tissue("cerebellar_white", (28, 34), BRAIN, (7, 46)),
    Tissue("deep", (34, 40), BRAIN, (10, 49, 13, 52)),
    Tissue("stem", (28, 34), BRAIN, (16, 28, 60)),
    Tissue("vein", (42, 62), SOFT, (514,)),
    Tissue("artery", (36, 48), SOFT, (502,)),
    Tissue("eye", (8, 16), FLUID, (506,)),
    Tissue("eye_muscle", (38, 52), SOFT, (508,)),
    Tissue("cord", (30, 40), BRAIN, (512,)),
    Tissue("optic", (30, 40), BRAIN, (85, 530)),
    Tissue("ventricle", (4, 12), FLUID, (4, 5, 43, 44, 14, 15, 72)),
    Tissue("choroid", (30, 40), BRAIN, (31, 63, 136, 163)),
    Tissue("inner_air", (-1000, -1000), AIR, ()),
    Tissue("lesion", (15, 75), BRAIN, ()),
)
INDEX = {tissue.name: i for i, tissue in enumerate(TISSUES)}
COUNT = len(TISSUES)
NETWORK_CLASS = np.array([tissue.network_class for tissue in TISSUES], dtype=np.int64)
HU_RANGE = np.array([tissue.hu for tissue in TISSUES], dtype=np.float32)


def label_table() -> np.ndarray:
    """uint8 [1000]: label -> tissue index, 255 where the label is unknown."""
    table = np.full(1000, 255, dtype=np.uint8)
    for index, tissue in enumerate(TISSUES):
        table[list(tissue.labels)] = index
    return table
