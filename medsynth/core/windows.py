"""How voxel values become grey levels: HU windows for CT, percentiles for MR, which has no unit.

Sources disagree on windows that share a name (bone is 1800/400 or 2500/480), so a picture always carries name, width and level.
Imports no torch.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from medsynth.core.errors import UsageError

PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True, kw_only=True)
class Window:
    """An HU window. width: HU from black to white. level: HU in the middle between them."""

    name: str
    width: float
    level: float

    @property
    def low(self) -> float:
        """HU that is shown black."""
        return self.level - self.width / 2

    @property
    def high(self) -> float:
        """HU that is shown white."""
        return self.level + self.width / 2

    @property
    def caption(self) -> str:
        """What a picture prints: `brain window: W 80 L 40 HU`."""
        return f"{self.name} window: W {self.width:g} L {self.level:g} HU"


@dataclass(frozen=True, kw_only=True)
class Range:
    """A display scale without unit. low, high: values shown black and white. caption: what a picture prints."""

    low: float
    high: float
    caption: str


DisplayScale = Window | Range

WINDOWS: dict[str, Window] = {
    name: Window(name=name, width=width, level=level)
    for name, width, level in (
        ("brain", 80.0, 40.0),
        ("subdural", 215.0, 75.0),
        ("stroke", 40.0, 40.0),
        ("temporal-bone", 2800.0, 600.0),
        ("head-soft", 350.0, 40.0),
        ("lung", 1500.0, -600.0),
        ("mediastinum", 350.0, 50.0),
        ("abdomen", 400.0, 50.0),
        ("liver", 150.0, 30.0),
        ("spine", 250.0, 50.0),
        ("bone", 1800.0, 400.0),
        ("angio", 600.0, 300.0),
        ("full", 4095.0, 1024.0),
        ("error", 400.0, 0.0),
    )
}


def parse(text: str) -> Window:
    """A window by its name, or as `width,level` in HU (`400,40`). Raises UsageError E-WINDOW for anything else."""
    name = text.strip().lower()
    if name in WINDOWS:
        return WINDOWS[name]
    width, level = _numbers(name)
    if math.isfinite(width) and math.isfinite(level) and width > 0:
        return Window(name="custom", width=width, level=level)
    known = ", ".join(f"{w.name} {w.width:g}/{w.level:g}" for w in WINDOWS.values())
    raise UsageError(
        "E-WINDOW", f"{text!r} is no HU window", remedy=f"a name, or width,level with a width above 0 (400,40). Names: {known}"
    )


def percentiles(values: np.ndarray) -> Range:
    """The display scale of a scan without unit, from its values (any shape; a sample of the scan will do)."""
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return Range(low=low, high=high, caption=f"percentiles {PERCENTILES[0]:g} to {PERCENTILES[1]:g}: {low:.4g} to {high:.4g}, no HU")


def plausible_hu(values: np.ndarray) -> bool:
    """Whether values look like HU: some air near -1000, or at least some fat. MR has no such values, even when it is standardised.

    values: any shape; a sample of the scan will do. Padding below -1024 counts for nothing.
    """
    air = np.mean((values > -1100) & (values < -900))
    fat = np.mean((values > -200) & (values < -20))
    return bool(air > 0.01 or fat > 0.05)


def apply(scale: DisplayScale, values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Grey levels 0 to 255, linear between `low` and `high`, clipped outside (LINEAR_EXACT of DICOM PS3.3, C.11.2.1.3.2)."""
    span = max(scale.high - scale.low, np.finfo(np.float32).tiny)
    share = (values - scale.low) / span
    return (np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)


def _numbers(text: str) -> tuple[float, float]:
    """Width and level, or NaN for both where the text holds no two numbers."""
    parts = text.split(",")
    if len(parts) != 2:
        return math.nan, math.nan
    try:
        return float(parts[0]), float(parts[1])
    except ValueError:
        return math.nan, math.nan
