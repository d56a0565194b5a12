"""Drifting of generated CTs towards real ones in an encoder's features: the realism objective of GDM-style training."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch import distributed as dist

from medsynth.core.drift import drift_loss
from medsynth.core.errors import UsageError
from medsynth.core.generator import PLACES
from medsynth.core.recipe import DriftTable
from medsynth.objectives.bank import feature_maps, tiles
from medsynth.objectives.queue import FeatureQueue, Maps

FEWEST = 4  # generated samples to a problem: with fewer the field is nearly blind to how they are spread
# Added to the distance of a sample to itself and to its own target, in mean distances: both are then left out. See `DriftTable.masked`.
MASKED_DISTANCE = 100.0
SPREAD_FLOOR = 1e-4
Encoder = Callable[[Float[Tensor, "b 1 x y z"]], Sequence[Float[Tensor, "b _ _ _ _"]]]


class Drifting:
    """Compares a batch of generated images with real ones: the batch's own targets and those of earlier steps at the same places.

    All processes of a distributed run share their samples. `state` and `load` carry the units and the queues through a checkpoint.
    Raises UsageError E-DRIFT if the run generates fewer than four samples a step and no generated ones are kept.
    """

    def __init__(self, encoder: Encoder, table: DriftTable, *, batch: int) -> None:
        insist_enough(table, batch)
        self.table = table
        self._encoder = encoder
        self._units: dict[str, tuple[Tensor, Tensor]] = {}
        self._real = FeatureQueue(PLACES, table.queue)
        self._generated = FeatureQueue(PLACES, table.generated_queue)

    def __call__(
        self, image_hu: Float[Tensor, "b 1 x y z"], target_hu: Float[Tensor, "b 1 x y z"], place: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss, mean over problems and maps, with gradients into `image_hu` alone; and figures: means over the maps.

        In a distributed run the loss is that of all samples, the gradient that of this process's own.
        "rms_<temperature>" is the field's root mean square before it is normalised, which falls as generated and real features come
        together; the loss itself does not.
        """
        with torch.no_grad():
            real = self._maps(self._samples(target_hu))
        samples = self._samples(image_hu)
        generated = self._maps(samples)
        place = place.repeat_interleave(len(samples) // len(image_hu))
        shared_real, places = {name: _shared(value) for name, value in real.items()}, _shared(place)
        losses: list[Tensor] = []
        figures: dict[str, list[Tensor]] = {}
        kept: Maps = {}
        masked = MASKED_DISTANCE if self.table.masked else 0.0
        for name, own in generated.items():
            everyone = _shared_with_gradient(own)
            kept[name] = everyone.detach()
            positives = _joined(shared_real[name], self._real.newest(name, places, self.table.drawn))
            negatives = self._generated.newest(name, places, self.table.generated_queue)
            loss, of_map = drift_loss(
                everyone.transpose(0, 1),
                positives.transpose(0, 1),
                None if negatives is None else negatives.transpose(0, 1),
                temperatures=self.table.temperatures,
                self_distance=masked,
                pair_distance=masked,
            )
            losses.append(loss.mean())
            for key, value in of_map.items():
                figures.setdefault(key, []).append(value)
        self._real.push(shared_real, places)
        self._generated.push(kept, places)
        return torch.stack(losses).mean(), {key: torch.stack(values).mean() for key, values in figures.items()}

    @torch.no_grad()
    def calibrate(self, targets_hu: Sequence[Float[Tensor, "b 1 x y z"]]) -> None:
        """Sets each channel's zero and unit to the mean and deviation of real features: channels then count alike in a distance."""
        self._units = {}
        per_batch = [self._maps(self._samples(target_hu)) for target_hu in targets_hu]
        for name in per_batch[0]:
            vectors = torch.cat([_shared(maps[name]) for maps in per_batch]).flatten(0, 1)
            self._units[name] = (vectors.mean(0), vectors.std(0, correction=0).clamp(min=SPREAD_FLOOR))

    @property
    def calibrated(self) -> bool:
        """Whether the channels' units are known."""
        return bool(self._units)

    def describe(self) -> str:
        """Size and memory of the bank, for the log; complete after the first step."""
        numbers = sum(centre.numel() for centre, _ in self._units.values())
        megabytes = (self._real.nbytes + self._generated.nbytes) / 1e6
        return f"feature bank: {len(self._units)} maps, {numbers} channels, {megabytes:.0f} MB of samples kept"

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"units": self._units, "real": self._real.state(), "generated": self._generated.state()}

    def load(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._units = dict(state["units"])
        self._real.load(state["real"])
        self._generated.load(state["generated"])

    def _samples(self, ct_hu: Float[Tensor, "b 1 x y z"]) -> Float[Tensor, "t 1 i j k"]:
        """The patches themselves, or their tiles."""
        return ct_hu if self.table.tile is None else tiles(ct_hu, self.table.tile).contiguous()

    def _maps(self, ct_hu: Float[Tensor, "b 1 x y z"]) -> Maps:
        stages = self._encoder(ct_hu)
        chosen = [stages[i] for i in self.table.stages or range(len(stages))]
        maps = feature_maps(chosen, self.table.levels, locations=self.table.locations)
        return {name: self._in_units(name, value) for name, value in maps.items()}

    def _in_units(self, name: str, value: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        if name not in self._units:
            return value
        centre, spread = self._units[name]
        return (value - centre) / spread


def insist_enough(table: DriftTable, batch: int) -> None:
    """Raises UsageError E-DRIFT if a step generates fewer than four samples, over all processes, and no generated ones are kept.

    Tiles of a patch are samples too; how many there are, the first step shows.
    """
    if table.tile is None and batch < FEWEST and table.generated_queue < FEWEST - batch:
        raise UsageError(
            "E-DRIFT",
            f"drifting compares generated samples with each other, and a batch of {batch} is too few: {FEWEST} are needed",
            remedy=f"set batch to {FEWEST} or more in [train], or generated_queue to {FEWEST} or more in [train.drift]",
        )


def _joined(own: Tensor, kept: Tensor | None) -> Tensor:
    return own if kept is None else torch.cat([own, kept])


def _world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _shared(own: Float[Tensor, "b *rest"] | Int[Tensor, " b"]) -> Tensor:
    """The tensors of all processes, in the order of their ranks."""
    if _world() == 1:
        return own
    everyone = [torch.empty_like(own) for _ in range(_world())]
    dist.all_gather(everyone, own.detach().contiguous())
    return torch.cat(everyone)


def _shared_with_gradient(own: Float[Tensor, "b l d"]) -> Float[Tensor, "n l d"]:
    """As `_shared`; gradients flow to this process's part."""
    if _world() == 1:
        return own
    others = list(_shared(own).split(len(own)))
    others[dist.get_rank()] = own
    return torch.cat(others)
