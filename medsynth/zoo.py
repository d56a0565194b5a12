"""Models and encoders by name: reads a card, finds or downloads its weights, checks their hash.

A card is `card.toml` in a model's folder. Models that ship with the package lie in `models/` of the checkout or of the wheel; others are
folders, or `hub:owner/name@revision`. Imports no torch.
"""

import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medsynth.core.errors import LicenceError, UsageError, WeightsError
from medsynth.core.recipe import DriftTable

CARD, WEIGHTS = "card.toml", "weights.safetensors"


Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Grid(_Table):
    """The grid that the generator works on, RAS+. patch: voxels; the window of training and of inference."""

    spacing_mm: tuple[Positive, Positive, Positive]
    patch: tuple[Count, Count, Count]


class Weights(_Table):
    """file: beside the card. sha256: of that file, lower-case hex."""

    file: str = WEIGHTS
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Licence(_Table):
    """SPDX identifiers. gated: terms must be accepted on the hub first."""

    code: str
    weights: str
    gated: bool = False


class Data(_Table):
    """What the model learned from, in words, with the identifiers of what was set aside."""

    training: str
    validation: str
    licence: str


class Metric(_Table):
    """One figure with the command that measured it."""

    name: str
    value: float
    unit: str = ""
    data: str
    command: str
    date: str


class TrainTable(_Table):
    """How the model was, or will be, trained. `source` says where pairs come from; names are label maps, or scans that are projected.

    A source of pairs, and one of projected scans that names none, is split by patient: `validation_share` of them is set aside, at least
    one. views, window: of projected scans, the numbers of views to learn, and the side in voxels of the square that a step learns from,
    0 for all of the slice; the card's patch says how large slices are, and how many a sample has.
    """

    source: Literal["labels", "pairs", "projected"]
    training: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    validation_share: float = Field(default=0.15, gt=0, lt=1)
    texture: bool = False
    views: tuple[Count, ...] = ()
    window: int = Field(default=0, ge=0)
    steps: int = Field(gt=0)
    batch: int = Field(default=1, gt=0)
    accumulate: int = Field(default=1, gt=0)
    learning_rate: float = Field(default=1e-3, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_steps: int = Field(default=30, ge=0)
    decay_share: float = Field(default=0.3, ge=0, le=1)
    clip_norm: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.998, ge=0, lt=1)
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    seed: int = Field(default=0, ge=0)
    validate_every: int = Field(default=250, gt=0)
    validation_pairs: int = Field(default=12, gt=0)
    patience: int = Field(default=0, ge=0)
    keep: Literal["auto", "best", "last"] = "auto"
    pictures_every: int = Field(default=1000, ge=0)
    drift: DriftTable | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "TrainTable":
        named = bool(self.training and self.validation)
        if self.source == "labels" and not named:
            raise ValueError("source labels needs the names of label maps in training and in validation")
        if self.source == "pairs" and (self.training or self.validation or self.texture):
            raise ValueError("source pairs takes its names from the folder, and its texture from the scans: leave them out")
        if self.source == "projected" and (not self.views or bool(self.training) != bool(self.validation)):
            raise ValueError("source projected needs views, and names of scans for both training and validation or for none")
        if self.source != "projected" and (self.views or self.window):
            raise ValueError("views and window are of source projected alone")
        if self.drift is not None and self.drift.warmup_steps >= self.steps:
            raise ValueError("drift.warmup_steps leaves no step for drifting")
        return self

    @property
    def keeps_best(self) -> bool:
        """Whether the model is the best by validation MAE; by default not with drifting, since MAE alone prefers what is blurred."""
        return self.keep == "best" or (self.keep == "auto" and self.drift is None)


class Card(_Table):
    """A model: what it does, how it is built, where its weights are, what it was trained on, how good it is."""

    name: str = Field(pattern="^[a-z0-9][a-z0-9.-]*$")
    version: str
    summary: str
    task: str
    generator: str
    config: dict[str, Any] = {}
    grid: Grid
    weights: Weights | None = None
    licence: Licence
    data: Data
    metrics: tuple[Metric, ...] = ()
    train: TrainTable | None = None


class PretrainTable(_Table):
    """How an encoder was, or will be, pretrained on scans without labels.

    validation, exclude: patterns (`*`, `?`) of names that are set aside, or left out. If no name fits `validation`, one scan in ten is set
    aside. patch: side of a crop, voxels. spacing_mm: crops are drawn at spacings between these two. head_share: of the crops, how many
    are drawn from head label maps, if there are any.
    """

    validation: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    steps: int = Field(gt=0)
    batch: int = Field(default=4, gt=0)
    learning_rate: float = Field(default=1e-3, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    weight_decay: float = Field(default=0.05, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.998, ge=0, lt=1)
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    seed: int = Field(default=0, ge=0)
    patch: int = Field(default=48, gt=0, multiple_of=8)
    spacing_mm: tuple[float, float] = (1.5, 3.0)
    head_share: float = Field(default=0.3, ge=0, le=1)
    validate_every: int = Field(default=500, gt=0)
    validation_crops: int = Field(default=32, gt=0)

    @field_validator("spacing_mm")
    @classmethod
    def _ascending(cls, spacing_mm: tuple[float, float]) -> tuple[float, float]:
        if not 0 < spacing_mm[0] <= spacing_mm[1]:
            raise ValueError("give the finer spacing first, above zero")
        return spacing_mm


class EncoderCard(_Table):
    """A frozen encoder, in whose features images are compared.

    network: "mae3d" (ours), or "monai:NAME" of `monai.networks.nets`. taps: names of the modules whose outputs are the stages, fine to
    coarse. windows_hu: one input channel for each (low, high), mapped onto `span`. orientation: of the network's axes.
    """

    kind: Literal["encoder"]
    name: str = Field(pattern="^[a-z0-9][a-z0-9.-]*$")
    version: str
    summary: str
    network: str = Field(pattern=r"^(mae3d|monai:[A-Za-z_][\w.]*)$")
    config: dict[str, Any] = {}
    taps: tuple[str, ...] = Field(min_length=1)
    windows_hu: tuple[tuple[float, float], ...] = Field(min_length=1)
    span: tuple[float, float] = (-1.0, 1.0)
    orientation: str = "RAS"
    weights: Weights | None = None
    licence: Licence
    data: Data
    metrics: tuple[Metric, ...] = ()
    pretrain: PretrainTable | None = None

    @field_validator("windows_hu")
    @classmethod
    def _not_empty(cls, windows_hu: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        if any(low >= high for low, high in windows_hu):
            raise ValueError("each window needs its lower end first")
        return windows_hu

    @field_validator("orientation")
    @classmethod
    def _three_axes(cls, orientation: str) -> str:
        if sorted("RAS"["LPI".find(end)] if end in "LPI" else end for end in orientation) != sorted("RAS"):
            raise ValueError("give one letter of R/L, A/P and S/I each")
        return orientation


AnyCard = TypeVar("AnyCard", Card, EncoderCard)


class _Located(_Table, Generic[AnyCard]):
    """A card with the folder that it was read from. revision: the hub's commit, or "local"."""

    card: AnyCard
    folder: Path
    revision: str = "local"

    def weights_file(self) -> Path:
        """The weights, checked against the card's hash. Raises WeightsError E-WEIGHTS."""
        if self.card.weights is None:
            verb = "train" if isinstance(self.card, Card) else "pretrain"
            raise WeightsError(
                "E-WEIGHTS", f"model {self.card.name} has no trained weights", remedy=f"train it: medsynth {verb} --card ..."
            )
        path = self.folder / self.card.weights.file
        if not path.is_file():
            raise WeightsError(
                "E-WEIGHTS",
                f"{self.card.weights.file} is missing beside the card of {self.card.name}",
                remedy="reinstall the package, or copy the model's whole folder",
            )
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.card.weights.sha256:
            raise WeightsError(
                "E-WEIGHTS",
                f"{path.name} of {self.card.name} is not the file that its card describes: its sha256 begins with {found[:12]}",
                remedy="the file is damaged or was exchanged: fetch the model again",
            )
        return path


class Model(_Located[Card]):
    """A model that makes images."""


class EncoderModel(_Located[EncoderCard]):
    """An encoder."""


def read_card(path: Path) -> Card:
    """The card of a model at `path` (a card.toml). Raises UsageError E-CARD if it is not TOML, is an encoder's, or does not fit."""
    return _parsed(path, Card, "docs/cards.md")


def read_encoder_card(path: Path) -> EncoderCard:
    """The card of an encoder at `path`. Raises UsageError E-CARD as `read_card` does."""
    return _parsed(path, EncoderCard, "docs/encoders.md")


def _parsed(path: Path, kind: type[AnyCard], documentation: str) -> AnyCard:
    """The checked card; a card of the other kind is named as that, not by the first key that does not fit."""
    values = _toml(path)
    is_encoder = values.get("kind") == "encoder"
    if is_encoder and kind is Card:
        cause = f"{values.get('name')} is an encoder: it compares images and makes none"
        raise UsageError("E-CARD", cause, remedy="name it as `encoder` in a card's [train.drift] table; docs/encoders.md describes it")
    if not is_encoder and kind is EncoderCard and "generator" in values:
        raise UsageError("E-CARD", f"{values.get('name')} is a model that makes images, no encoder", remedy="give an encoder's card")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError("E-CARD", f"{path.name}: {where}: {first['msg']}", remedy=f"see {documentation} for the format") from None


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            "E-CARD", f"there is no {path.name} in {path.parent.name or path.parent}", remedy="give a model's folder or its card.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError("E-CARD", f"{path.name} is not TOML: {error}", remedy="mend the line that it names") from None


def bundled_folder() -> Path:
    """Where the models that ship with the package are: in the wheel, or in the checkout."""
    package = Path(__file__).parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def bundled() -> list[Model]:
    """All models that ship with the package, by name; encoders are none of them."""
    return [Model(card=read_card(card), folder=card.parent) for card in _bundled_cards() if _toml(card).get("kind") != "encoder"]


def bundled_encoders() -> list[EncoderModel]:
    """All encoders that ship with the package, by name."""
    return [
        EncoderModel(card=read_encoder_card(card), folder=card.parent) for card in _bundled_cards() if _toml(card).get("kind") == "encoder"
    ]


def find(reference: str) -> Model:
    """The model that `--model` names: a bundled name, a folder (or its card), or hub:owner/name@revision.

    Raises WeightsError E-WEIGHTS, LicenceError E-GATED, UsageError E-CARD or E-MODEL.
    """
    if place := _place(reference):
        return Model(card=read_card(place[0] / CARD), folder=place[0], revision=place[1])
    raise _unknown("model", reference, bundled())


def find_encoder(reference: str) -> EncoderModel:
    """The encoder that a card names: a bundled name, a folder (or its card), or hub:owner/name@revision. Raises as `find` does."""
    if place := _place(reference):
        return EncoderModel(card=read_encoder_card(place[0] / CARD), folder=place[0], revision=place[1])
    raise _unknown("encoder", reference, bundled_encoders())


def _bundled_cards() -> list[Path]:
    return sorted(bundled_folder().glob(f"*/{CARD}"))


def _place(reference: str) -> tuple[Path, str] | None:
    """The folder that a reference means, and its revision; None if there is none."""
    if reference.startswith("hub:"):
        folder = _from_hub(reference.removeprefix("hub:"))
        return folder, folder.name
    path = Path(reference)
    if path.is_dir() or path.name == CARD:
        folder = path if path.is_dir() else path.parent
        trained = folder / "model"  # what `medsynth train --out folder` leaves
        return (trained if not (folder / CARD).is_file() and trained.is_dir() else folder), "local"
    folder = bundled_folder() / reference
    return (folder, "local") if "/" not in reference and (folder / CARD).is_file() else None


def _unknown(what: str, reference: str, known: Sequence[Model | EncoderModel]) -> UsageError:
    names = ", ".join(model.card.name for model in known)
    remedy = f"one of: {names}; a folder with a card.toml; or hub:owner/name@revision"
    return UsageError("E-MODEL", f"no {what} named {reference!r}", remedy=remedy)


def _from_hub(reference: str) -> Path:
    """The folder of a snapshot, named by its commit."""
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    name, _, revision = reference.partition("@")
    if not revision:
        raise UsageError(
            "E-MODEL", f"hub:{name} names no revision", remedy=f"pin one: hub:{name}@<commit or tag>, so that a result can be made again"
        )
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[CARD, "*.safetensors", "README.md"]))
    except hub.GatedRepoError:
        raise LicenceError(
            "E-GATED", f"the terms of {name} were not accepted", remedy=f"accept them at https://huggingface.co/{name}, then: hf auth login"
        ) from None
    except hub.LocalEntryNotFoundError:
        raise WeightsError(
            "E-WEIGHTS",
            f"hub:{reference} is not in the cache and the hub cannot be reached",
            remedy="go online once, unset HF_HUB_OFFLINE, or copy the model's folder here and give its path",
        ) from None
    except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.HFValidationError) as error:
        raise WeightsError(
            "E-WEIGHTS", f"hub:{reference} was not found ({type(error).__name__})", remedy="check the owner, the name and the revision"
        ) from None
