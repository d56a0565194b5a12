"""Encoders between disk and memory: what `pretrain` writes is what training with an encoder reads."""

import hashlib
from pathlib import Path

import tomlkit
import torch
from safetensors.torch import save_file
from torch import nn

from medsynth.nets.frozen import FrozenEncoder, build_network, load_weights
from medsynth.scans.files import replacing
from medsynth.zoo import CARD, WEIGHTS, EncoderCard, EncoderModel


def load_encoder(model: EncoderModel, *, checkpoint: bool = False) -> FrozenEncoder:
    """The encoder of a card with its weights, frozen, on the CPU. checkpoint: see `FrozenEncoder`.

    Raises WeightsError E-WEIGHTS if the weights are missing, exchanged or another network's, UsageError E-CARD if the card's network or
    taps do not exist.
    """
    card = model.card
    network = build_network(card.network, card.config)
    load_weights(network, model.weights_file())
    network = network.to(memory_format=torch.channels_last_3d)  # pyright: ignore[reportCallIssue]
    return FrozenEncoder(
        network, taps=card.taps, windows_hu=card.windows_hu, span=card.span, orientation=card.orientation, checkpoint=checkpoint
    )


def write_encoder(card: EncoderCard, network: nn.Module, folder: Path) -> None:
    """Weights in half precision and the card that describes them: a folder that `load_encoder` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {k: v.detach().half().contiguous().cpu() for k, v in network.state_dict().items()}
    with replacing(folder / WEIGHTS) as weights, replacing(folder / CARD) as text:
        save_file(half, weights)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        tables = card.model_dump(mode="json", exclude_none=True, exclude={"metrics"}) | {"weights": {"file": WEIGHTS, "sha256": digest}}
        text.write_text(tomlkit.dumps(tables), encoding="utf-8")
