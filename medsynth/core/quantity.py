"""What voxels mean, and the invertible map between that unit and the network's.

A quantity is fitted to a scan (`fit`), which gives a `Scale`; the scale maps both ways and goes into the run record.
CT in HU has one fixed scale. MR has no unit, so its scale is read off the scan's foreground.
Works on NumPy arrays and, for `encode` and `decode`, on anything with arithmetic; imports no torch.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

HU_MIN, HU_MAX = -1024.0, 3000.0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Affine map: network value = (x - centre) / half_width."""

    centre: float
    half_width: float

    def encode(self, x: Any) -> Any:
        """Quantity's unit -> network units. NumPy input is computed in float64, so that `decode` inverts it exactly."""
        return (_wide(x) - self.centre) / self.half_width

    def decode(self, y: Any) -> Any:
        """Network units -> quantity's unit."""
        return _wide(y) * self.half_width + self.centre


@runtime_checkable
class Quantity(Protocol):
    """A kind of voxel value, and how its scale is found."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def fit(self, array: np.ndarray) -> Scale:
        """Scale for one scan, array [x y z]."""
        ...


@dataclass(frozen=True)
class CT:
    """Attenuation in Hounsfield units; [-1024, 3000] HU <-> [-1, 1] for every scan."""

    name: str = "ct"
    unit: str = "HU"

    def fit(self, array: np.ndarray | None = None) -> Scale:
        return Scale(centre=(HU_MAX + HU_MIN) / 2, half_width=(HU_MAX - HU_MIN) / 2)


@dataclass(frozen=True)
class MR:
    """MR in arbitrary units; the foreground's 95th percentile <-> 1.

    The foreground is what exceeds a tenth of the 99.5th percentile. Generators are trained with the same rule.
    """

    name: str = "mr"
    unit: str = "a.u."

    def fit(self, array: np.ndarray) -> Scale:
        sample = array.reshape(-1)[:: max(1, array.size // 200_000)]
        bright = float(np.percentile(sample, 99.5))
        foreground = sample[sample > 0.1 * bright]
        top = float(np.percentile(foreground, 95)) if foreground.size > 50 else bright
        return Scale(centre=0.0, half_width=max(top, 1e-6))


def _wide(x: Any) -> Any:
    return x.astype(np.float64) if isinstance(x, np.ndarray) else x
