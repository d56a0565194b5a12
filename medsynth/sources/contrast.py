"""MR contrasts by tissue: T1-, T2-, FLAIR- and PD-like, or none that a scanner makes.

Training on contrasts drawn at random makes a network that does not depend on the sequence (SynthSeg, Billot 2023). White matter
in T1 is about 1; ranges follow what spoiled-gradient-echo, spin-echo and FLAIR heads show.
"""

from typing import NamedTuple

import numpy as np

from medsynth.sources.tissues import COUNT, INDEX

Range = tuple[float, float]

# Probability of each kind in training.
KINDS = {"t1": 0.36, "t1c": 0.10, "t2": 0.16, "flair": 0.14, "pd": 0.06, "random": 0.18}

# Ranges of the mean signal; tissues not named derive from these (see `_weighted`).
MEANS: dict[str, dict[str, Range]] = {
    "t1": {
        "air": (0, 0.03), "cortical": (0.03, 0.22), "cancellous": (0.25, 0.95), "csf": (0.1, 0.32), "grey": (0.5, 0.78),
        "white": (0.85, 1.0), "fat": (0.85, 1.7), "muscle": (0.35, 0.65), "skin": (0.35, 0.95), "eye": (0.1, 0.3),
        "mucosa": (0.35, 0.9), "vein": (0.15, 0.6), "artery": (0.1, 1.3),
    },
    "t1c": {
        "air": (0, 0.03), "cortical": (0.03, 0.22), "cancellous": (0.25, 0.95), "csf": (0.1, 0.32), "grey": (0.5, 0.78),
        "white": (0.8, 0.95), "fat": (0.8, 1.6), "muscle": (0.4, 0.75), "skin": (0.4, 1.0), "eye": (0.1, 0.3),
        "mucosa": (0.9, 1.6), "vein": (0.9, 1.7), "artery": (0.5, 1.7),
    },
    "t2": {
        "air": (0, 0.03), "cortical": (0.02, 0.2), "cancellous": (0.15, 0.65), "csf": (0.85, 1.4), "grey": (0.5, 0.75),
        "white": (0.3, 0.5), "fat": (0.45, 1.1), "muscle": (0.12, 0.35), "skin": (0.15, 0.6), "eye": (0.85, 1.4),
        "mucosa": (0.5, 1.3), "vein": (0.05, 0.4), "artery": (0.02, 0.3),
    },
    "flair": {
        "air": (0, 0.03), "cortical": (0.03, 0.2), "cancellous": (0.15, 0.7), "csf": (0.05, 0.28), "grey": (0.6, 0.85),
        "white": (0.42, 0.65), "fat": (0.2, 1.1), "muscle": (0.2, 0.5), "skin": (0.2, 0.7), "eye": (0.05, 0.3),
        "mucosa": (0.5, 1.2), "vein": (0.1, 0.6), "artery": (0.05, 0.5),
    },
    "pd": {
        "air": (0, 0.03), "cortical": (0.05, 0.3), "cancellous": (0.3, 0.8), "csf": (0.6, 1.1), "grey": (0.75, 0.95),
        "white": (0.55, 0.8), "fat": (0.6, 1.1), "muscle": (0.4, 0.7), "skin": (0.4, 0.8), "eye": (0.6, 1.1),
        "mucosa": (0.6, 1.0), "vein": (0.1, 0.7), "artery": (0.1, 0.8),
    },
}  # fmt: skip

# Spread of the signal inside a tissue, relative to its mean, where it is more than noise.
TEXTURE: dict[str, Range] = {
    "muscle": (0.05, 0.3), "fat": (0.05, 0.3), "cancellous": (0.05, 0.4), "mucosa": (0.05, 0.35), "skin": (0.05, 0.3),
    "cortical": (0.05, 0.6), "csf": (0.02, 0.2),
}  # fmt: skip


class Contrast(NamedTuple):
    """mean, sd: float32 [tissue], signal in arbitrary units."""

    kind: str
    mean: np.ndarray
    sd: np.ndarray


def draw_contrast(rng: np.random.Generator, kind: str | None = None) -> Contrast:
    """A contrast of the given kind, or of a kind drawn by `KINDS`."""
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    mean = _random(rng) if kind == "random" else _weighted(rng, MEANS[kind])
    mean[INDEX["lesion"]] = rng.uniform(0.05, 1.4)
    sd = rng.uniform(0, 0.1, COUNT) * mean + rng.uniform(0, 0.02, COUNT)
    for tissue, spread in TEXTURE.items():
        sd[INDEX[tissue]] = rng.uniform(*spread) * mean[INDEX[tissue]]
    sd[[INDEX["air"], INDEX["inner_air"]]] = rng.uniform(0, 0.02, 2)
    return Contrast(kind, mean.astype(np.float32), sd.astype(np.float32))


def _random(rng: np.random.Generator) -> np.ndarray:
    """Any signal in any tissue, but none in air and little in compact bone: that holds for every sequence."""
    mean = rng.uniform(0, 1.2, COUNT)
    mean[[INDEX["air"], INDEX["inner_air"]]] = rng.uniform(0, 0.05)
    mean[INDEX["cortical"]] = rng.uniform(0, 0.3)
    for part, whole in (("cerebellar_grey", "grey"), ("cerebellar_white", "white"), ("ventricle", "csf")):
        mean[INDEX[part]] = max(0.0, mean[INDEX[whole]] + rng.uniform(-0.05, 0.05))
    return mean


def _weighted(rng: np.random.Generator, ranges: dict[str, Range]) -> np.ndarray:
    base = {tissue: rng.uniform(*span) for tissue, span in ranges.items()}
    grey, white = base["grey"], base["white"]

    def between(low: float, high: float) -> float:
        share = rng.uniform(low, high)
        return grey * (1 - share) + white * share

    base["inner_air"] = base["air"]
    base["ventricle"] = base["csf"] * rng.uniform(0.9, 1.1)
    base["cerebellar_grey"] = grey * rng.uniform(0.92, 1.05)
    base["cerebellar_white"] = white * rng.uniform(0.92, 1.02)
    base["deep"] = between(0.3, 0.8)
    base["stem"] = between(0.5, 1.0)
    base["cord"] = between(0.4, 1.0)
    base["optic"] = between(0.2, 1.0)
    base["choroid"] = between(0, 0.5) * rng.uniform(0.8, 1.5)
    base["eye_muscle"] = base["muscle"] * rng.uniform(0.9, 1.4)
    mean = np.zeros(COUNT)
    for tissue, value in base.items():
        mean[INDEX[tissue]] = value
    return mean
