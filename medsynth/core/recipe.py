"""What a card says about drifting: read with the card, used by the objective. Imports no torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Level = Literal["global", "local", "spatial"]
Side = Annotated[int, Field(gt=0)]
Coordination = Literal["fidelity-first", "sum", "pcgrad", "mgda", "config", "upgrad"]


class DriftTable(BaseModel):
    """How realism is learned beside fidelity, by drifting in the features of a frozen encoder.

    encoder: a bundled encoder, a folder, or hub:owner/name@revision. levels: of the feature bank. stages: of the encoder, 0 the finest;
    empty: all. tile: voxels; what is larger is cut into such tiles, each a sample of its own, and what is thinner repeats its voxels; none:
    a patch is one sample. locations: of the spatial level. queue: real samples kept for each place of the body; drawn: how many of them a
    step looks at. generated_queue: generated samples of earlier steps, detached, that serve as further negatives. masked: a sample is
    compared with neither itself nor its own target, which fidelity looks after: a field between distributions. rho: final weight of the
    drift; it is 0 for `warmup_steps` and rises over `ramp_steps`. calibration: targets whose features set the unit of each channel.
    checkpoint: recompute the encoder's activations in the backward pass, to save memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: str = "encoder-mae3d"
    levels: tuple[Level, ...] = Field(default=("global", "local", "spatial"), min_length=1)
    stages: tuple[Annotated[int, Field(ge=0)], ...] = ()
    tile: tuple[Side, Side, Side] | None = None
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(0.02, 0.05, 0.2), min_length=1)
    locations: int = Field(default=256, gt=0)
    queue: int = Field(default=128, ge=0)
    drawn: int = Field(default=64, ge=0)
    generated_queue: int = Field(default=64, ge=0)
    masked: bool = True
    coordination: Coordination = "fidelity-first"
    rho: float = Field(default=0.5, ge=0, le=1)
    warmup_steps: int = Field(default=0, ge=0)
    ramp_steps: int = Field(default=200, ge=0)
    calibration: int = Field(default=16, gt=0)
    checkpoint: bool = False

    def rho_at(self, step: int) -> float:
        """The drift's weight at a step: nothing, then a straight rise, then `rho`."""
        risen = (step + 1 - self.warmup_steps) / max(1, self.ramp_steps)
        return self.rho * min(1.0, max(0.0, risen)) if step >= self.warmup_steps else 0.0
