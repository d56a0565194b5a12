"""Which device and precision a run uses: `auto` takes the best device there is; one asked for by name is used or refused."""

import sys

import torch

from medsynth.core.errors import UsageError


def resolve(name: str) -> str:
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps` -> a device that exists. Raises UsageError E-DEVICE."""
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return name
    if kind == "cuda" and (not index or index.isdigit()):
        if torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count():
            return f"cuda:{index or 0}"
        raise UsageError(
            "E-DEVICE",
            f"{name} was asked for, and this machine has {torch.cuda.device_count()} CUDA devices that torch can use",
            remedy="--device cpu, or install torch with CUDA (medsynth doctor shows what it sees)",
        )
    if name == "mps" and torch.backends.mps.is_available():
        return name
    raise UsageError("E-DEVICE", f"{name} is not a device of this machine", remedy="auto, cpu, cuda:N or mps")


def resolve_for_projections(name: str) -> str:
    """As `resolve`, for what projects. torch has no products with sparse matrices on mps: `auto` passes over it with a line on stderr.

    Raises UsageError E-DEVICE for mps, and as `resolve` does.
    """
    chosen = resolve(name)
    if chosen != "mps":
        return chosen
    if name != "auto":
        raise UsageError("E-DEVICE", "projections are products with sparse matrices, which torch lacks on mps", remedy="--device cpu")
    print("note: computed on the processor: projections are products with sparse matrices, which torch lacks on mps", file=sys.stderr)
    return "cpu"


def precision_for(device: torch.device) -> torch.dtype:
    """Half precision on CUDA, bfloat16 on processors that compute in it, else float32."""
    if device.type == "cuda":
        return torch.float16
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if device.type == "cpu" and capabilities.get("avx512_bf16") else torch.float32
