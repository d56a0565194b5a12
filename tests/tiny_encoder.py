"""An encoder's folder as pretraining leaves it, so small that a patch takes milliseconds; its weights are random."""

from pathlib import Path

import torch

from medsynth.nets.frozen import build_network
from medsynth.verbs.encoders import write_encoder
from medsynth.zoo import Data, EncoderCard, Licence


def write_tiny_encoder(folder: Path, *, seed: int = 0) -> Path:
    """card.toml and weights.safetensors in `folder`, which is returned."""
    card = EncoderCard(
        kind="encoder",
        name="tiny-encoder",
        version="0",
        summary="an encoder for tests",
        network="mae3d",
        config={"in_channels": 2, "channels": [4, 8], "blocks": [1, 1], "groups": 2},
        taps=("stages.0", "stages.1"),
        windows_hu=((-1024, 2048), (-160, 240)),
        licence=Licence(code="Apache-2.0", weights="Apache-2.0"),
        data=Data(training="none", validation="none", licence="none"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        write_encoder(card, build_network(card.network, card.config), folder)
    return folder
