"""What drifting costs: a training step with the complete objective beside the supervised step of the same generator, batch and patch.

    python benchmarks/step.py --labels LABELS [--patch 64,64,64] [--device cpu] [--steps 12] [--growth 1000]

Steps of both kinds take turns in one process. Prints where the time of the drift goes, peak memory of each kind in a process of its own,
and with --growth how much memory a run of that many steps on a small patch gains. Writes benchmarks/results/step.json.
"""

import argparse
import datetime
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import psutil
import torch

from medsynth import zoo
from medsynth.core.quantity import CT
from medsynth.core.recipe import DriftTable
from medsynth.generators import build
from medsynth.objectives.bank import feature_maps
from medsynth.objectives.drifting import Drifting
from medsynth.sources.labels import LabelPairs
from medsynth.verbs.encoders import load_encoder
from medsynth.verbs.loader import Batch
from medsynth.verbs.step import Answering, backward
from medsynth.verbs.train import launch

RESULTS = Path(__file__).parent / "results" / "step.json"
BATCH, RHO, BAR = 4, 0.5, 1.6


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--patch", default="64,64,64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--growth", type=int, default=0)
    parser.add_argument("--encoder", default=DriftTable().encoder)
    parser.add_argument("--only", choices=("supervised", "drift"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    patch = tuple(int(n) for n in arguments.patch.split(","))
    if arguments.only:
        print(peak_gb(Bench(arguments.labels, patch, arguments.device, arguments.encoder), arguments.only == "drift"))
        return
    bench = Bench(arguments.labels, patch, arguments.device, arguments.encoder)
    figures: dict[str, Any] = compared(bench, arguments.steps) | {"parts": bench.parts(arguments.steps)}
    for kind in ("supervised", "drift"):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", kind]
        figures[f"peak_gb_{kind}"] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    if arguments.growth:
        # In float32: some CPUs get maps of two voxels wrong in bfloat16 (medsynth/nets/soundness.py).
        small = Bench(arguments.labels, (32, 32, 32), arguments.device, arguments.encoder, precision="32-true")
        figures["growth_mb"] = growth_mb(small, arguments.growth)
        figures["growth_steps"] = arguments.growth
    for name, value in figures.items():
        print(f"{name}: {value}")
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {arguments.device}"
    where = {"date": str(datetime.date.today()), "machine": machine, "patch": patch, "batch": BATCH, "bar": BAR}
    RESULTS.write_text(json.dumps(where | figures, indent=1))


class Bench:
    """The default generator with its optimiser, and a batch that stays."""

    def __init__(self, labels: Path, patch: tuple[int, ...], device: str, encoder: str, **train: Any) -> None:
        card = zoo.find("mri2ct-head").card
        assert card.train is not None
        self.fabric = launch(device, card.train.model_copy(update=train))
        torch.manual_seed(0)
        answering = Answering(build(card.generator, card.config).to(memory_format=torch.channels_last_3d))
        self.model, self.optimizer = self.fabric.setup(answering, torch.optim.AdamW(answering.parameters(), lr=1e-5))
        cache = Path(platformdirs.user_cache_dir("medsynth")) / "packed"
        sides = (patch[0], patch[1], patch[2])
        source = LabelPairs(labels, card.train.training[:2], cache=cache, patch=sides, spacing_mm=2.0, seed=0, texture=True)
        pairs = [source.training_pair(i, self.fabric.device) for i in range(BATCH)]
        self.batch: Batch = (_cat([c for c, _ in pairs]), _cat([t for _, t in pairs]))
        self.table = DriftTable(encoder=encoder)
        self.encoder = load_encoder(zoo.find_encoder(self.table.encoder)).to(self.fabric.device)
        self.drifting = Drifting(self._encoded, self.table, batch=BATCH)
        self.drifting.calibrate([CT().fit().decode(self.batch[1].image)])

    def step(self, drift: bool) -> None:
        """One update of the weights."""
        backward(self.fabric, self.model, self.batch, self.drifting, RHO if drift else 0.0)
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def parts(self, repeats: int) -> dict[str, float]:
        """Seconds of the drift's parts, each by itself; the encoder runs forward for real images, and both ways for generated ones."""
        target_hu = CT().fit().decode(self.batch[1].image)
        leaf = target_hu.clone().requires_grad_()
        with torch.no_grad():
            stages = self._encoded(target_hu)

        def there_and_back() -> None:
            sum(stage.float().square().mean() for stage in self._encoded(leaf)).backward()

        def forward() -> None:
            with torch.no_grad():
                self._encoded(target_hu)

        def bank() -> None:
            feature_maps(stages, self.table.levels, locations=self.table.locations)

        def all_of_it() -> None:
            self.drifting(leaf, target_hu, self.batch[1].place)[0].backward()

        return {f.__name__: round(timed(f, repeats), 4) for f in (forward, there_and_back, bank, all_of_it)}

    def _encoded(self, ct_hu: torch.Tensor) -> Any:
        with self.fabric.autocast():
            return self.encoder(ct_hu)


def compared(bench: Bench, steps: int) -> dict[str, float]:
    """Medians of steps that take turns, after two of each to warm up."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(steps + 2):
        for drift in (False, True):
            started = time.perf_counter()
            bench.step(drift)
            if bench.fabric.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[drift].append(time.perf_counter() - started)
    supervised, drift = (statistics.median(seconds[kind][2:]) for kind in (False, True))
    return {"supervised_s": round(supervised, 4), "drift_s": round(drift, 4), "ratio": round(drift / supervised, 3)}


def timed(run: Callable[[], None], repeats: int) -> float:
    """Median seconds."""
    seconds: list[float] = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def peak_gb(bench: Bench, drift: bool) -> float:
    """Peak memory of this process (on a GPU: of the device) after a few steps of one kind."""
    for _ in range(4):
        bench.step(drift)
    if bench.fabric.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def growth_mb(bench: Bench, steps: int) -> float:
    """Memory after `steps` steps less memory after a tenth of them, when queues are full and pools have their size."""
    held: list[float] = []
    for step in range(steps):
        bench.step(True)
        if step + 1 in (steps // 10, steps):
            gc.collect()
            held.append(psutil.Process().memory_info().rss / 1e6)
    return round(held[1] - held[0], 1)


def _cat(records: list[Any]) -> Any:
    names = [name for name, value in vars(records[0]).items() if isinstance(value, torch.Tensor)]
    return type(records[0])(**{name: torch.cat([getattr(record, name) for record in records]) for name in names})


if __name__ == "__main__":
    main()
