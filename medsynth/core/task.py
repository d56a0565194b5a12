"""A task: what goes in, what comes out, how the input is prepared and the output finished. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medsynth.core.quantity import Quantity, Scale
from medsynth.core.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a generator is to be given for one scan, on the card's grid.

    image: float32 [c x y z], network units. region: bool [x y z], where the output means something; outside, `finish` fills in.
    scales: of input and output. warnings: for the user and the record.
    """

    image: np.ndarray
    region: np.ndarray
    source_scale: Scale
    target_scale: Scale
    warnings: tuple[str, ...] = ()


def _by_its_own_verb(*_: Any) -> Any:
    raise TypeError("this task is no map from one volume to another: it has a verb of its own")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A frozen description; a new task is one file that makes one of these.

    outside: the target's value where there is no patient. range: what the target's unit may hold in a file. learns_from: what training
    draws from: pairs of scans, or scans of the target and their own projections.
    prepare: (scan on the card's grid, mask on the same grid or None, force) -> Prepared; raises ScanError E-MODALITY for input that the
    task cannot use, unless force. finish: (prediction [x y z] in network units, Prepared) -> [x y z] in the target's unit. Both are of
    tasks that map a volume to a volume; one that reconstructs from measurements has its own verb and leaves them out.
    """

    name: str
    summary: str
    source: Quantity
    target: Quantity
    suffix: str
    model: str
    outside: float
    range: tuple[float, float]
    learns_from: Literal["pairs", "projections"] = "pairs"
    prepare: Callable[[Volume, np.ndarray | None, bool], Prepared] = _by_its_own_verb
    finish: Callable[[np.ndarray, Prepared], np.ndarray] = _by_its_own_verb
