"""What training draws from. A source gives pairs by number, so that a run can be stopped, continued and shared out."""

from typing import Protocol, runtime_checkable

import torch

from medsynth.core.generator import Condition, Target


@runtime_checkable
class Source(Protocol):
    """Pairs by number; the same number gives the same pair, on any process."""

    def training_pair(self, step: int, device: torch.device) -> tuple[Condition, Target]:
        """A pair to learn from, batch of one."""
        ...

    def validation_pair(self, index: int, device: torch.device) -> tuple[Condition, Target, str]:
        """A pair to measure on, and the kind under which its figures are listed."""
        ...
