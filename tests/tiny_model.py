"""A model folder as training leaves it, so small that a head takes a fraction of a second; its weights are random."""

from pathlib import Path

import tiny
import torch

from medsynth.generators import build
from medsynth.verbs.checkpoint import write_model
from medsynth.zoo import read_card

LINES = {"spacing_mm": "[4.0, 4.0, 4.0]"}


def write_tiny_model(folder: Path, *, seed: int = 0, **lines: str) -> Path:
    """card.toml and weights.safetensors in `folder`, which is returned. lines: of the card, as in `tiny.write_card`."""
    card = read_card(tiny.write_card(folder, **(LINES | lines)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        write_model(card, build(card.generator, card.config), folder)
    return folder
