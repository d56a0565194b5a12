"""What a run costs: start-up, overlap of the stages, one 1 mm head, and the same head under nnU-Net's residual-encoder L network.

    python benchmarks/speed.py [--skip-nnunet]

Ratios are of figures taken in one run. The scans are the drawn example heads. Needs `pip install -e .[bench]` for the last part.
The last part compares cost, not quality: nnU-Net's network has random weights.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does

import nibabel as nib
import numpy as np
import torch

from medsynth import tasks, zoo
from medsynth.core.windows import parse
from medsynth.scans import folder
from medsynth.verbs.console import RunPrinter
from medsynth.verbs.device import precision_for
from medsynth.verbs.synthesize import Settings, compute, predictor, read_scan, synthesize, write_result

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples" / "mr"
RESULTS = HERE / "results" / "speed.json"
SCANS = 8
NNUNET_PATCH = (160, 192, 160)  # what nnU-Net plans for its L preset on 1 mm heads, 24 GB


def main() -> None:
    """Measure everything, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-nnunet", action="store_true")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {
        "date": str(datetime.date.today()),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        for part, measure in {"help": start_up, "folder": lambda: overlap(workspace), "head": lambda: one_head(workspace)}.items():
            figures[part] = shown(part, measure())
        if not arguments.skip_nnunet:
            figures["nnunet"] = shown("nnunet", nnunet(workspace, figures["head"]["wall_s"]))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


def start_up() -> dict[str, float]:
    """`medsynth --help` against importing typer and rich: medians of runs in turn."""
    command = [str(Path(sys.executable).parent / "medsynth"), "--help"]
    imports = [sys.executable, "-c", "import typer, rich"]
    ours, theirs = [], []
    for _ in range(9):
        ours.append(seconds(lambda: subprocess.run(command, check=True, capture_output=True)))
        theirs.append(seconds(lambda: subprocess.run(imports, check=True, capture_output=True)))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return {"help_s": statistics.median(ours), "imports_s": statistics.median(theirs), "ratio": ratio, "bar": 1.5}


def overlap(workspace: Path) -> dict[str, float]:
    """Each stage by itself over a folder of scans, then the run, where they overlap."""
    source = workspace / "eight"
    source.mkdir()
    for i in range(SCANS):
        shutil.copy(EXAMPLES / f"head_{('t1', 't2')[i % 2]}.nii.gz", source / f"head_{i}.nii.gz")
    settings = settings_for(source, workspace / "stages")
    settings.out.mkdir()
    task, model, device = tasks.get("mri2ct"), zoo.find(settings.model), torch.device("cpu")
    predict = predictor(model, model.weights_file(), device)
    found = folder.find(source, choices=settings.choices)
    reads: list[Any] = []
    results: list[Any] = []
    stages = {
        "read": lambda: reads.extend(read_scan(item, task, model, settings, None) for item in found),
        "network": lambda: results.extend(compute(read, predict, model, device) for read in reads),
        "write": lambda: [write_result(item, result, task, model, settings) for item, result in zip(found, results, strict=True)],
    }
    figures: dict[str, float] = {}
    processor = 0.0
    for name, stage in stages.items():
        before = time.process_time()
        figures[f"{name}_s"] = seconds(stage)
        processor += time.process_time() - before
    wall = seconds(lambda: synthesize(settings_for(source, workspace / "run"), RunPrinter(quiet=True)))
    bound = max(*figures.values(), processor / 2)
    return {**figures, "processor_s": processor, "wall_s": wall, "ratio": wall / bound, "bar": 1.25}


def one_head(workspace: Path) -> dict[str, float]:
    """A 1 mm head of 256^3, as a process of its own: seconds, peak memory, the network's share and its fraction of the machine's peak."""
    scan = padded_head(workspace)
    out = workspace / "head"
    command = [str(Path(sys.executable).parent / "medsynth"), "mri2ct", str(scan), str(out), "--device", "cpu"]
    wall = seconds(lambda: subprocess.run(command, check=True, capture_output=True))
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    case = json.loads((out / "run.json").read_text())["cases"][0]
    achieved, peak = multiplications(scan, case["seconds"]["network"])
    return {
        "wall_s": wall,
        "bar_s": 30,
        "peak_gb": peak_gb,
        "bar_gb": 4,
        **{f"{stage}_s": value for stage, value in case["seconds"].items()},
        "network_share": case["seconds"]["network"] / wall,
        "network_gmac_per_s": achieved,
        "same_convolution_gmac_per_s": peak,
        "fraction_of_peak": achieved / peak,
    }


def nnunet(workspace: Path, ours_s: float) -> dict[str, float]:
    """nnU-Net's ResEnc L at 1 mm, its sliding window (half-overlapping tiles, no mirroring), same head, same precision."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    from monai.inferers.utils import sliding_window_inference

    strides = [[1] * 3, *[[2] * 3] * 5]
    network = ResidualEncoderUNet(
        input_channels=1,
        n_stages=6,
        features_per_stage=[32, 64, 128, 256, 320, 320],
        conv_op=torch.nn.Conv3d,
        kernel_sizes=[[3] * 3] * 6,
        strides=strides,
        n_blocks_per_stage=[1, 3, 4, 6, 6, 6],
        num_classes=1,
        n_conv_per_stage_decoder=[1] * 5,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    ).eval()
    image = torch.from_numpy(np.asarray(nib.load(padded_head(workspace)).dataobj, dtype=np.float32))[None, None]
    dtype = precision_for(torch.device("cpu"))
    network = network.to(memory_format=torch.channels_last_3d)
    tiles = 0

    def tile(patch: torch.Tensor) -> torch.Tensor:
        nonlocal tiles
        tiles += 1
        return network(patch.contiguous(memory_format=torch.channels_last_3d)).float()

    def run() -> None:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            sliding_window_inference(image, NNUNET_PATCH, 1, tile, overlap=0.5, mode="gaussian")

    wall = seconds(run)
    return {
        "wall_s": wall,
        "tiles": tiles,
        "parameters_m": sum(p.numel() for p in network.parameters()) / 1e6,
        "medsynth_s": ours_s,
        "times_faster": wall / ours_s,
        "bar": 10,
    }


def multiplications(scan: Path, network_s: float) -> tuple[float, float]:
    """Billions of multiply-adds a second: of the whole network stage, and of its costliest convolution run by itself."""
    model = zoo.find("mri2ct-head")
    device = torch.device("cpu")
    settings = settings_for(scan, scan.parent)
    read = read_scan(folder.find(scan, choices=settings.choices)[0], tasks.get("mri2ct"), model, settings, None)
    total = 0.0
    costliest: tuple[float, torch.nn.Conv3d, tuple[int, ...]] | None = None

    def count(module: torch.nn.Conv3d, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total, costliest
        cost = module.in_channels * np.prod(module.kernel_size) * output.numel() / 1e9
        total += cost
        if costliest is None or cost > costliest[0]:
            costliest = (float(cost), module, tuple(inputs[0].shape))

    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda m, i, o: count(m, i, o) if isinstance(m, torch.nn.Conv3d) else None
    )
    compute(read, predictor(model, model.weights_file(), device), model, device)
    handle.remove()
    assert costliest is not None
    cost, module, shape = costliest
    dtype = precision_for(device)
    data = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    module = module.to(dtype)
    with torch.no_grad():
        fastest = min(seconds(lambda: module(data)) for _ in range(10))
    return float(total / network_s), cost / fastest


def padded_head(workspace: Path) -> Path:
    """The T1 example in the middle of 256^3 voxels of 1 mm."""
    path = workspace / "head_256.nii.gz"
    if not path.exists():
        image = nib.load(EXAMPLES / "head_t1.nii.gz")
        array = np.asarray(image.dataobj)
        before = [(256 - n) // 2 for n in array.shape]
        padded = np.pad(array, [(b, 256 - n - b) for b, n in zip(before, array.shape, strict=True)])
        affine = image.affine.copy()
        affine[:3, 3] -= before
        nib.Nifti1Image(padded, affine).to_filename(path)
    return path


def settings_for(source: Path, out: Path) -> Settings:
    """What the command line's defaults are."""
    return Settings(task="mri2ct", model="mri2ct-head", source=source, out=out, device="cpu", windows=(parse("head-soft"), parse("bone")))


def seconds(action: Callable[[], object]) -> float:
    """Wall time of an action."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def shown(part: str, figures: dict[str, float]) -> dict[str, float]:
    """Print one part's figures and pass them on."""
    print(part + ": " + ", ".join(f"{name} {value:.3g}" for name, value in figures.items()), flush=True)
    return figures


def cpu_name() -> str:
    """The processor's name, where the system says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
