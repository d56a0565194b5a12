"""Models by name: reads a card, finds or downloads its weights, checks their hash.

A card is `card.toml` in a model's folder. Models that ship with the package lie in `models/` of the checkout or of the wheel; others are
folders, or `hub:owner/name@revision`. Imports no torch.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medsynth.core.errors import LicenceError, UsageError, WeightsError

CARD, WEIGHTS = "card.toml", "weights.safetensors"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Grid(_Table):
    """The grid that the generator works on, RAS+. patch: voxels; the window of training and of inference."""

    spacing_mm: tuple[float, float, float]
    patch: tuple[int, int, int]


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
    """How the model was, or will be, trained. `source` names the module of `sources/`; names are label maps or cases."""

    source: Literal["labels"]
    training: tuple[str, ...]
    validation: tuple[str, ...]
    steps: int = Field(gt=0)
    batch: int = Field(default=1, gt=0)
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 30
    decay_share: float = Field(default=0.3, ge=0, le=1)
    clip_norm: float = 1.0
    ema: float = Field(default=0.998, ge=0, lt=1)
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    seed: int = 0
    validate_every: int = Field(default=250, gt=0)
    validation_pairs: int = Field(default=12, gt=0)


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


class Model(_Table):
    """A card with the folder that it was read from. revision: the hub's commit, or "local"."""

    card: Card
    folder: Path
    revision: str = "local"

    def weights_file(self) -> Path:
        """The weights, checked against the card's hash. Raises WeightsError E-WEIGHTS."""
        if self.card.weights is None:
            raise WeightsError("E-WEIGHTS", f"model {self.card.name} has no trained weights", remedy="train it: medsynth train --card ...")
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


def read_card(path: Path) -> Card:
    """The card at `path` (a card.toml). Raises UsageError E-CARD if it is not TOML or does not fit the format."""
    try:
        return Card.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UsageError(
            "E-CARD", f"there is no {path.name} in {path.parent.name or path.parent}", remedy="give a model's folder or its card.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError("E-CARD", f"{path.name} is not TOML: {error}", remedy="mend the line that it names") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError("E-CARD", f"{path.name}: {where}: {first['msg']}", remedy="see docs/cards.md for the format") from None


def bundled_folder() -> Path:
    """Where the models that ship with the package are: in the wheel, or in the checkout."""
    package = Path(__file__).parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def bundled() -> list[Model]:
    """All models that ship with the package, by name."""
    return [Model(card=read_card(card), folder=card.parent) for card in sorted(bundled_folder().glob(f"*/{CARD}"))]


def find(reference: str) -> Model:
    """The model that `--model` names: a bundled name, a folder (or its card), or hub:owner/name@revision.

    Raises WeightsError E-WEIGHTS, LicenceError E-GATED, UsageError E-CARD or E-MODEL.
    """
    if reference.startswith("hub:"):
        return _from_hub(reference.removeprefix("hub:"))
    path = Path(reference)
    if path.is_dir() or path.name == CARD:
        folder = path if path.is_dir() else path.parent
        trained = folder / "model"  # what `medsynth train --out folder` leaves
        folder = trained if not (folder / CARD).is_file() and trained.is_dir() else folder
        return Model(card=read_card(folder / CARD), folder=folder)
    card = bundled_folder() / reference / CARD
    if "/" not in reference and card.is_file():
        return Model(card=read_card(card), folder=card.parent)
    known = ", ".join(model.card.name for model in bundled())
    raise UsageError(
        "E-MODEL", f"no model named {reference!r}", remedy=f"one of: {known}; a folder with a card.toml; or hub:owner/name@revision"
    )


def _from_hub(reference: str) -> Model:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    name, _, revision = reference.partition("@")
    if not revision:
        raise UsageError(
            "E-MODEL", f"hub:{name} names no revision", remedy=f"pin one: hub:{name}@<commit or tag>, so that a result can be made again"
        )
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[CARD, "*.safetensors", "README.md"]))
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
    return Model(card=read_card(folder / CARD), folder=folder, revision=folder.name)
