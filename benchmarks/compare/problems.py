"""The problems on which methods are compared: one file and one line each."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import head, sparse
from .network import Image
from .problem import Draw, Pairs


class Problem(NamedTuple):
    """anchors: "predictions" that need no training, by the name of their row: HU [n x y z]. base: see `Network`."""

    draw: Draw
    anchors: dict[str, Callable[[Pairs], np.ndarray]]
    base: Callable[[Image], Image] | None = None


PROBLEMS = {
    "head": Problem(head.draw, {"again": lambda pairs: pairs.again, "clean": lambda pairs: pairs.clean}),
    "sparse": Problem(sparse.draw, {"start": sparse.start_of}, base=sparse.base),
}
