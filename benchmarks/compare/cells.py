"""Cells of the comparison: one problem, method and seed each. A cell is done when its file is there; processes claim cells by locks."""

import datetime
import json
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medsynth.scans.files import replacing

from . import judge as judges
from .figures import measure
from .locks import held
from .method import Method, Setting
from .methods import METHODS
from .network import Network
from .problem import Pairs, load
from .problems import PROBLEMS
from .sizes import SIZES, Size
from .supervised import L1
from .train import CHECKPOINT, Say, synthesize, train

EXAMPLES = 4  # patches of the test set whose predictions stay in the work folder, for pictures
WEIGHTS = "weights.pt"
WARM_SEEDS = 1000  # added to a cell's seed: its own batches then differ from those of the warm start


class Run(NamedTuple):
    """What the command line says."""

    problem: str
    size: str
    data: Path
    work: Path
    results: Path
    encoder: Path | str
    device: torch.device
    seconds: float | None = None


def prepare(run: Run) -> tuple[dict[str, Pairs], judges.Judge]:
    """Pairs and judge, from the work folder; drawn and trained first where they are not there."""
    size = SIZES[run.size]
    work = run.work / run.size
    pairs = load(PROBLEMS[run.problem].draw, run.problem, run.data, work, size)
    return pairs, judges.trained(pairs["training"], work / "judge" / run.problem, size, run.device)


def compare(run: Run, methods: Iterable[str], seeds: Iterable[int], say: Say = print) -> None:
    """Every cell that is not done and that no other process works on; seed by seed."""
    methods = list(methods)
    pairs, judge = prepare(run)
    _anchors(run, pairs["test"], judge)
    for seed in seeds:
        for name in methods:
            path = result_path(run, name, seed)
            work = run.work / run.size / f"{run.problem}-{name}-{seed}"
            with held(work / "lock", wait=False) as mine:
                if path.exists() or not mine:
                    continue
                start = warm_start(run, seed, pairs, say)
                say(f"{run.problem} {name} seed {seed}")
                _cell(run, name, seed, pairs, judge, start, lambda text: say(f"  {text}"))


def warm_start(run: Run, seed: int, pairs: dict[str, Pairs], say: Say) -> dict[str, Tensor]:
    """The weights that all methods of a seed start from: L1 alone, as drifting wants it, so that none has more of it than another."""
    size = SIZES[run.size]
    folder = run.work / run.size / f"{run.problem}-warm-{seed}"
    path = folder / WEIGHTS
    with held(folder / "lock", wait=True):
        if not path.exists():
            say(f"{run.problem} warm start, seed {seed}")
            trained = train(
                L1(),
                pairs,
                size,
                seed + WARM_SEEDS,
                seconds=size.warm_seconds,
                folder=folder,
                device=run.device,
                say=say,
                base=PROBLEMS[run.problem].base,
            )
            with replacing(path) as part:
                torch.save(trained.network.state_dict(), part)
    return torch.load(path, map_location=run.device, weights_only=True)


def result_path(run: Run, method: str, seed: int) -> Path:
    """Where a cell's rows go."""
    return run.results / run.size / f"{run.problem}-{method}-{seed}.json"


def _cell(run: Run, name: str, seed: int, pairs: dict[str, Pairs], judge: judges.Judge, start: dict[str, Tensor], say: Say) -> None:
    size = SIZES[run.size]
    work = run.work / run.size / f"{run.problem}-{name}-{seed}"
    seconds = run.seconds or size.seconds
    torch.manual_seed(seed)
    method = METHODS[name](Setting(size, run.device, pairs["training"], run.encoder, seed))
    base = PROBLEMS[run.problem].base
    trained = train(method, pairs, size, seed, seconds=seconds, folder=work, device=run.device, say=say, start=start, base=base)
    rows: list[dict[str, Any]] = []
    for evaluations in method.evaluations:
        predicted = synthesize(trained.network, method, pairs["test"], evaluations, device=run.device)
        np.savez_compressed(work / f"examples-{evaluations}.npz", predicted_hu=predicted[:EXAMPLES].astype(np.int16))
        figures = measure(predicted, pairs["test"], judge) | seconds_a_volume(trained.network, method, evaluations, size, run.device)
        rows.append({"method": name, "evaluations": evaluations, "figures": figures})
        say(f"{evaluations} evaluations: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    about = {
        "warm_seconds": size.warm_seconds,
        "seconds": seconds,
        "steps": trained.steps,
        "weights_of_step": trained.best_step,
        "selection": "best validation MAE" if method.keeps_best else "last",
        "parameters": sum(p.numel() for p in trained.network.parameters()),
        "encoder": Path(run.encoder).name if name.startswith("drift") else None,
    }
    torch.save(trained.network.state_dict(), work / WEIGHTS)
    _write(result_path(run, name, seed), {"problem": run.problem, "seed": seed, **about, **_where(run), "rows": rows})
    (work / CHECKPOINT).unlink()


def _anchors(run: Run, test: Pairs, judge: judges.Judge) -> None:
    """Rows of what could be reached, or is given."""
    path = result_path(run, "anchors", 0)
    if path.exists():
        return
    rows = [
        {"method": name, "evaluations": 0, "figures": measure(of(test).astype(np.float32), test, judge)}
        for name, of in PROBLEMS[run.problem].anchors.items()
    ]
    _write(path, {"problem": run.problem, "seed": 0, **_where(run), "rows": rows})


@torch.no_grad()
def seconds_a_volume(network: Network, method: Method, evaluations: int, size: Size, device: torch.device) -> dict[str, float]:
    """Time for a scan of size.volume, and that of one evaluation of the network measured right after it."""
    condition = torch.rand(1, 1, *size.volume, device=device)
    rng = torch.Generator(device=device).manual_seed(0)
    once = condition.new_zeros(1)
    network(condition, condition, once)
    taken = _median_seconds(lambda: method.sample(network, condition, rng, evaluations), 1 if evaluations > 4 else 3)
    single = _median_seconds(lambda: network(condition, condition, once), 3)
    return {"seconds_a_volume": taken, "times_one_evaluation": taken / single}


def _median_seconds(what: Any, repeats: int) -> float:
    taken: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        result: Tensor = what()
        result.sum().item()  # waits for a GPU
        taken.append(time.perf_counter() - started)
    return float(np.median(taken))


def machine() -> str:
    """The processor, its cores, and the threads of this run."""
    cpu = next((line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.machine())
    return f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} thread"


def _where(run: Run) -> dict[str, Any]:
    where = torch.cuda.get_device_name() if run.device.type == "cuda" else machine()
    return {"machine": where, "torch": torch.__version__, "date": str(datetime.date.today())}


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
