"""How a network's weights lie in memory."""

from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the rank of a convolution's weight


def channels_last(module: AnyModule) -> AnyModule:
    """The module with its convolutions' weights, 2-D or 3-D, channels innermost, as CPUs and tensor cores want them."""
    for parameter in module.parameters():
        if parameter.dim() in FORMATS:
            parameter.data = parameter.data.to(memory_format=FORMATS[parameter.dim()])
    return module
