"""Samples kept from earlier steps, so that drifting sees many although a batch holds few."""

from collections import Counter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

Maps = dict[str, Float[Tensor, "b _ _"]]


class FeatureQueue:
    """First in, first out, for each place of the body. Kept in half precision; a place takes memory when it is first seen."""

    def __init__(self, places: int, size: int) -> None:
        self.size = size
        self._maps: dict[str, dict[int, Tensor]] = {}  # by name and place, each [slot l d]
        self._pushed = torch.zeros(places, dtype=torch.long)

    def push(self, maps: Maps, places: Int[Tensor, " b"]) -> None:
        """Keeps a batch of samples, one after the other; the oldest of their place go."""
        if self.size == 0:
            return
        for sample, place in enumerate(places.tolist()):
            slot = int(self._pushed[place]) % self.size
            for name, value in maps.items():
                kept = self._maps.setdefault(name, {})
                if place not in kept:
                    kept[place] = torch.zeros(self.size, *value.shape[1:], dtype=torch.float16, device=value.device)
                kept[place][slot] = value[sample]
            self._pushed[place] += 1

    def newest(self, name: str, places: Int[Tensor, " b"], count: int) -> Float[Tensor, "n l d"] | None:
        """The newest samples of the places given, about `count` in all, in their proportions; None if there are none.

        Were the proportions others than those of the samples that they are compared with, equal distributions would not look equal.
        """
        wanted = Counter(places.tolist())
        found: list[Tensor] = []
        for place, times in sorted(wanted.items()):
            pushed = int(self._pushed[place])
            share = round(count * times / len(places))
            slots = [s % self.size for s in range(max(0, pushed - min(self.size, share)), pushed)]
            if slots:
                found.append(self._maps[name][place][slots])
        return torch.cat(found).float() if found else None

    @property
    def nbytes(self) -> int:
        """Memory of the samples."""
        return sum(value.nbytes for kept in self._maps.values() for value in kept.values())

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"maps": self._maps, "pushed": self._pushed}

    def load(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._maps, self._pushed = {name: dict(kept) for name, kept in state["maps"].items()}, state["pushed"].cpu()
