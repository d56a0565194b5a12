"""What a training run keeps on disk: the checkpoint that it goes on from, and the model that others use."""

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from medsynth.core.errors import UsageError
from medsynth.scans.files import replacing
from medsynth.zoo import CARD, WEIGHTS, Card

CHECKPOINT = "checkpoint.pt"
PROBE = ".medsynth-probe"


def fingerprint(card: Card, data: str) -> str:
    """What a checkpoint must share with the card to be continued: network, data and objective, not the number of steps."""
    parts = card.model_dump_json(include={"generator", "config", "grid"}) + data
    if card.train is not None:
        same = {"source", "training", "validation", "texture", "views", "window", "batch", "accumulate", "seed", "drift"}
        parts += card.train.model_dump_json(include=same)
    return hashlib.sha256(parts.encode()).hexdigest()


def make_folder(out: Path) -> None:
    """Makes the folder of a run and tries to write there. Raises UsageError E-OUTPUT if that is impossible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / PROBE).touch()
        (out / PROBE).unlink(missing_ok=True)
    except OSError as error:
        cause = f"{out.name or out} cannot be the folder of a run: {error.strerror}"
        raise UsageError("E-OUTPUT", cause, remedy="give another --out") from None


def load(out: Path, print_: str) -> dict[str, Any] | None:
    """The last checkpoint of the run in `out`, on the CPU; None if there is none.

    Raises UsageError E-CARD if it is another card's or data's, E-CHECKPOINT if it cannot be read.
    """
    path = out / CHECKPOINT
    if not path.exists():
        return None
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError, RuntimeError, OSError) as error:
        remedy = "give another --out, or delete that file to begin anew"
        raise UsageError("E-CHECKPOINT", f"{path.name} in {out.name} cannot be read: {type(error).__name__}", remedy=remedy) from None
    if not isinstance(stored, dict) or stored.get("card") != print_:
        raise UsageError("E-CARD", f"{out.name} holds a run of another card or of other data", remedy="give another --out, or delete it")
    return stored


def save(out: Path, state: dict[str, Any]) -> None:
    """The checkpoint, in place of the one before. Raises UsageError E-DISK if the disk is full; the one before then stays."""

    def write(part: Path) -> None:
        torch.save(state, part)

    _replace(out / CHECKPOINT, write)


def write_model(card: Card, generator: nn.Module, folder: Path) -> None:
    """Weights in half precision and the card that describes them. Raises UsageError E-DISK."""
    import tomlkit
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    half = {k: v.detach().half().contiguous().cpu() for k, v in generator.state_dict().items()}
    weights = folder / WEIGHTS

    def write_weights(part: Path) -> None:
        save_file(half, part)
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        tables = card.model_dump(mode="json", exclude_none=True, exclude={"metrics"}) | {"weights": {"file": WEIGHTS, "sha256": digest}}
        text = tomlkit.dumps(tables)
        _replace(folder / CARD, lambda card_part: card_part.write_text(text, encoding="utf-8"))

    _replace(weights, write_weights)


def on(device: torch.device, stored: Any) -> Any:
    """A part of a checkpoint with its tensors on the device."""
    if isinstance(stored, torch.Tensor):
        return stored.to(device)
    if isinstance(stored, dict):
        return {name: on(device, value) for name, value in stored.items()}
    return tuple(on(device, value) for value in stored) if isinstance(stored, tuple) else stored


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves the running average of the weights towards the model's."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    try:
        with replacing(path) as part:
            write(part)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its writer.
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or "enforce fail" in str(error):
            raise UsageError(
                "E-DISK",
                f"no space is left for {path.name}",
                remedy="free some and run the same command again: it goes on from the last checkpoint",
            ) from None
        raise
