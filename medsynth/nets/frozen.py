"""Frozen encoders by name: CTs in HU go in, feature maps come out, gradients reach the CT and no weight.

The network is ours (`nets.encoder`) or any of MONAI's; what is taken out of it is named by modules, so that no network needs code here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from medsynth.core.errors import UsageError, WeightsError
from medsynth.nets.encoder import Encoder, EncoderConfig

OURS, MONAI = "mae3d", "monai:"
NAMED = 5  # how many names an error lists
AXES = ("RL", "AP", "SI")
Windows = Sequence[tuple[float, float]]


class FrozenEncoder(nn.Module):
    """Feature maps of CTs; always in eval mode, without gradients to its own weights.

    taps: names of the modules whose outputs are the stages. windows_hu: one input channel for each (low, high), which is mapped onto
    `span`. orientation: directions in which the network's axes run; images and maps outside it are RAS+. checkpoint: what the tapped
    modules compute is computed again in the backward pass instead of kept.
    Raises UsageError E-CARD if the network has no module of a tap's name.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        taps: Sequence[str],
        windows_hu: Windows,
        span: tuple[float, float],
        orientation: str = "RAS",
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.windows_hu = tuple(windows_hu)
        self.span = span
        self.orientation = orientation
        self._taps = [_submodule(network, name) for name in taps]
        for module in self._taps if checkpoint else ():
            module.forward = partial(recomputed, module.forward, use_reentrant=False)

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Stays in eval mode, whatever a training loop asks for."""
        return super().train(False)

    def forward(self, ct_hu: Float[Tensor, "b 1 x y z"]) -> list[Float[Tensor, "b _ _ _ _"]]:
        """One map for each tap, in the order of the taps. Sides must suit the network: multiples of 16 for ours as it ships."""
        channels = turned(windowed(ct_hu, self.windows_hu, self.span), self.orientation)
        with _outputs(self._taps) as stages:
            self.network(channels.contiguous(memory_format=torch.channels_last_3d))
        return [turned_back(stages[k], self.orientation) for k in range(len(self._taps))]


def windowed(ct_hu: Float[Tensor, "b 1 x y z"], windows_hu: Windows, span: tuple[float, float]) -> Float[Tensor, "b w x y z"]:
    """One channel for each window: HU clipped to it and mapped onto `span`."""
    low, high = span
    channels = [(ct_hu.clamp(bottom, top) - bottom) * ((high - low) / (top - bottom)) + low for bottom, top in windows_hu]
    return torch.cat(channels, dim=1)


def turned(x: Float[Tensor, "b c x y z"], orientation: str) -> Float[Tensor, "b c _ _ _"]:
    """RAS+ -> axes that run in the directions of `orientation`, such as "SPL"."""
    order, flips = _axes(orientation)
    x = x.permute(0, 1, *(2 + axis for axis in order))
    return x.flip(flips) if flips else x


def turned_back(x: Float[Tensor, "b c i j k"], orientation: str) -> Float[Tensor, "b c _ _ _"]:
    """Inverse of `turned`."""
    order, flips = _axes(orientation)
    x = x.flip(flips) if flips else x
    return x.permute(0, 1, *(2 + order.index(axis) for axis in range(3)))


def build_network(network: str, config: dict[str, Any]) -> nn.Module:
    """The network `mae3d` or `monai:NAME` with fresh weights. Raises UsageError E-CARD if there is none, or the settings do not suit it."""
    try:
        if network == OURS:
            return Encoder(EncoderConfig(**config))
        return _monai_class(network.removeprefix(MONAI))(**config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["config", *(str(part) for part in first["loc"])])
        raise UsageError("E-CARD", f"{where}: {first['msg']}", remedy="docs/encoders.md lists the settings") from None
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        cause = f"{network} cannot be built with this [config]: {error}"
        raise UsageError("E-CARD", cause, remedy="give the settings that the weights were trained with") from None


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a safetensors file, all of it and nothing less. Raises WeightsError E-WEIGHTS, which names the first tensors that differ."""
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise WeightsError(
            "E-WEIGHTS", f"{path.name} is no safetensors file: {error}", remedy="convert the weights to safetensors"
        ) from None
    wanted = network.state_dict()
    differing = [
        *(f"{name} is missing" for name in wanted if name not in stored),
        *(f"{name} is not part of the network" for name in stored if name not in wanted),
        *(
            f"{name} has shape {_shape(stored[name])}, not {_shape(value)}"
            for name, value in wanted.items()
            if _differs(name, value, stored)
        ),
    ]
    if differing:
        more = f"; and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        cause = f"{path.name} does not hold this network: {'; '.join(differing[:NAMED])}{more}"
        raise WeightsError("E-WEIGHTS", cause, remedy="give the card the network and the [config] that the weights were trained with")
    network.load_state_dict({name: value.to(wanted[name].dtype) for name, value in stored.items()}, strict=True)


@contextmanager
def _outputs(modules: Sequence[nn.Module]) -> Iterator[dict[int, Tensor]]:
    """What the modules put out while the block runs, by their place in the list."""
    seen: dict[int, Tensor] = {}

    def keep(k: int, _module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, Tensor):
            raise UsageError("E-CARD", f"tap {k} puts out no tensor but {type(output).__name__}", remedy="tap a module within it")
        seen[k] = output

    # The hooks are gone before a backward pass, which may run checkpointed modules again.
    handles = [module.register_forward_hook(partial(keep, k)) for k, module in enumerate(modules)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _axes(orientation: str) -> tuple[list[int], list[int]]:
    """Which axis of RAS+ each axis of the orientation runs along, and the tensor's axes that run the other way."""
    order = [axis for letter in orientation for axis, ends in enumerate(AXES) if letter in ends]
    return order, [2 + place for place, letter in enumerate(orientation) if letter in "LPI"]


def _submodule(network: nn.Module, name: str) -> nn.Module:
    modules = dict(network.named_modules())
    if name and name in modules:
        return modules[name]
    top = ", ".join(child for child, _ in network.named_children())
    raise UsageError("E-CARD", f"the network has no module {name!r}", remedy=f"taps are dotted names below: {top}")


def _monai_class(name: str) -> type[nn.Module]:
    """A network of `monai.networks.nets`, by its name there or in one of its files (`SegResNet`, `segresnet_ds.SegResEncoder`)."""
    from monai.networks import nets

    *path, last = name.split(".")
    inside: Any = nets
    for part in path:
        inside = getattr(inside, part, None)
    files = [inside] if path else [nets, *(value for value in vars(nets).values() if isinstance(value, ModuleType))]
    for file in files:
        found = getattr(file, last, None)
        if isinstance(found, type) and issubclass(found, nn.Module):
            return found
    raise UsageError("E-CARD", f"MONAI has no network {name}", remedy="names are those of monai.networks.nets, such as monai:SegResNetDS")


def _differs(name: str, wanted: Tensor, stored: dict[str, Tensor]) -> bool:
    return name in stored and stored[name].shape != wanted.shape


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
