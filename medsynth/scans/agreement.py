"""What can be said of a pair of scans without a person looking: whether values are HU, whether one is turned against the other.

Registration is judged by normalised mutual information (Studholme 1999), which needs no common scale: it is compared with what small shifts
of one scan give. A pair that fits better after a shift is suspicious. It cannot tell a rotation, or a shift below one voxel of the grid.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from medsynth.core.windows import plausible_hu

STEPS_MM = (12.0, 6.0, 3.0)  # tried along each axis, both ways, each from the best so far
REACH_MM = 30.0  # farther than this a shift finds other anatomy that happens to fit
BINS = 32
SPAN_HU = (-1000.0, 1500.0)
ENOUGH = 1000  # voxels that two scans must share for their information to mean something
STAYING = 0.6  # of the shared voxels; the fewer there are, the more they seem to have in common
MR_LOW = -500.0  # no magnitude image has values below; HU have


class Alignment(NamedTuple):
    """nmi: of the pair as it is, from 1 (nothing in common). shift_mm: of the CT along R, A, S that gives most, `shifted_nmi`; 0 if none
    gives more."""

    nmi: float
    shift_mm: tuple[float, float, float]
    shifted_nmi: float

    @property
    def gain(self) -> float:
        """By how much the shift raises what the images have in common, as a share: its (NMI - 1), 0.5 for half as much again."""
        return (self.shifted_nmi - self.nmi) / max(self.nmi - 1, 1e-6)

    @property
    def length_mm(self) -> float:
        """Of the shift."""
        return float(np.linalg.norm(self.shift_mm))


def alignment(
    mr: Float[np.ndarray, "x y z"], ct_hu: Float[np.ndarray, "x y z"], where: Bool[np.ndarray, "x y z"], spacing_mm: float
) -> Alignment:
    """How well two scans on one grid along R, A, S agree, and which shift of the CT would make them agree better.

    where: which voxels of the MR count, best the body with some air around. NaN in the CT: it does not reach there. Scans that share less
    than ENOUGH voxels have nmi 1 and no shift.
    """
    mr_bins, ct_bins = _mr_bins(mr, where), _ct_bins(ct_hu)
    known: dict[tuple[int, int, int], float] = {}
    enough = max(ENOUGH, STAYING * int(((mr_bins >= 0) & (ct_bins >= 0)).sum()))

    def nmi(shift: tuple[int, int, int]) -> float:
        if shift not in known:
            known[shift] = _nmi(*_overlapping(mr_bins, ct_bins, shift), enough)
        return known[shift]

    best = (0, 0, 0)
    for step in dict.fromkeys(max(1, round(step_mm / spacing_mm)) for step_mm in STEPS_MM):
        while (better := max(_neighbours(best, step, spacing_mm), key=nmi)) != best:
            best = better
    x, y, z = (-voxels * spacing_mm for voxels in best)  # the CT's voxel i + shift lies on the MR's voxel i
    return Alignment(nmi((0, 0, 0)), (x, y, z), nmi(best))


def no_mr(values: Float[np.ndarray, "*shape"]) -> str:
    """Why values cannot be an MR, or "". Any shape; a sample of the scan will do."""
    if values.min() == values.max():
        return "the image is constant"
    return "its values are those of a CT" if values.min() < MR_LOW and plausible_hu(values) else ""


def no_ct(values: Float[np.ndarray, "*shape"]) -> str:
    """Why values cannot be a CT in HU, or "". Any shape; a sample of the scan will do."""
    if values.min() == values.max():
        return "the image is constant"
    if plausible_hu(values):
        return ""
    return f"its values, {values.min():.4g} to {values.max():.4g}, are no HU: neither air near -1000 nor fat"


def _neighbours(shift: tuple[int, int, int], step: int, spacing_mm: float) -> list[tuple[int, int, int]]:
    """The shift itself, and those a step away on one axis, not too far from none."""
    moves = [(0, 0, 0), *((a * step, b * step, c * step) for a, b, c in np.vstack([np.eye(3, dtype=int), -np.eye(3, dtype=int)]).tolist())]
    moved = [(shift[0] + a, shift[1] + b, shift[2] + c) for a, b, c in moves]
    return [one for one in moved if one == shift or np.linalg.norm(one) * spacing_mm <= REACH_MM]


def _mr_bins(mr: np.ndarray, where: np.ndarray) -> Int[np.ndarray, "x y z"]:
    """Equally filled bins of the MR, -1 where it does not count: its values have no scale, and few of them are bright."""
    edges = (
        np.unique(np.quantile(mr[where][:: max(1, int(where.sum()) // 100_000)], np.linspace(0, 1, BINS + 1)[1:-1])) if where.any() else [0]
    )
    return np.where(where, np.searchsorted(edges, mr), -1)


def _ct_bins(ct_hu: np.ndarray) -> Int[np.ndarray, "x y z"]:
    low, high = SPAN_HU
    share = (np.clip(ct_hu, low, high) - low) / (high - low)
    return np.where(np.isnan(ct_hu), -1, np.minimum(np.nan_to_num(share) * BINS, BINS - 1)).astype(np.int64)


def _overlapping(a: np.ndarray, b: np.ndarray, shift: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The voxels i of a and i + shift of b that both have."""
    in_a = tuple(slice(max(0, -s), max(0, n - max(0, s))) for s, n in zip(shift, a.shape, strict=True))
    in_b = tuple(slice(max(0, s), max(0, n + min(0, s))) for s, n in zip(shift, a.shape, strict=True))
    return a[in_a], b[in_b]


def _nmi(a: np.ndarray, b: np.ndarray, enough: float) -> float:
    """(H(a) + H(b)) / H(a, b) over the voxels where both are known, 1 if these are not enough."""
    both = (a >= 0) & (b >= 0)
    if both.sum() < enough:
        return 1.0
    joint = np.bincount(a[both] * BINS + b[both], minlength=BINS * BINS).reshape(BINS, BINS) / both.sum()
    entropy = [-float(np.sum(p[p > 0] * np.log(p[p > 0]))) for p in (joint.sum(1), joint.sum(0), joint)]
    return (entropy[0] + entropy[1]) / entropy[2] if entropy[2] > 0 else 1.0
