"""Drifting compared with its alternatives: one network, one set of pairs, equal time of training.

    python -m benchmarks.compare prepare --size small --data LABELS --work WORK
    python -m benchmarks.compare run --size small --data LABELS --work WORK [--methods l1,drift] [--seeds 0,1,2]
    python -m benchmarks.compare table --size small

Methods: early-stopped L1 and L1 + MS-SSIM, GAN, flow matching, diffusion, drifting without bank levels, without coordination, and complete.
A cell (problem, method, seed) is one file under benchmarks/results/compare/SIZE; it is skipped where that is there, goes on from its last
checkpoint in WORK after a kill, and is worked on by one process only: start one `run` a core, with OMP_NUM_THREADS=1. Size small takes two
cores about 80 minutes; size large wants a GPU for a day. Problem head takes SynthSeg's label maps as --data, problem
sparse a folder of CTs.
"""

import argparse
from pathlib import Path

import torch

from .cells import Run, compare, prepare
from .methods import METHODS
from .problems import PROBLEMS
from .sizes import SIZES
from .table import table

RESULTS = Path(__file__).parents[1] / "results" / "compare"


def main() -> None:
    """One of the three commands."""
    arguments = _parser().parse_args()
    if arguments.command == "table":
        print(table(arguments.results, arguments.size))
        return
    run = Run(
        problem=arguments.problem,
        size=arguments.size,
        data=arguments.data,
        work=arguments.work,
        results=arguments.results,
        encoder=arguments.encoder,
        device=torch.device(arguments.device),
        seconds=arguments.seconds,
    )
    if arguments.command == "prepare":
        prepare(run)
    else:
        compare(run, arguments.methods, arguments.seeds, lambda text: print(text, flush=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("prepare", "run", "table"):
        command = commands.add_parser(name)
        command.add_argument("--size", choices=SIZES, default="small")
        command.add_argument("--results", type=Path, default=RESULTS)
        if name == "table":
            continue
        command.add_argument("--problem", choices=PROBLEMS, default="head")
        command.add_argument("--data", type=Path, required=True, help="what the problem is drawn from")
        command.add_argument("--work", type=Path, required=True, help="folder for pairs, judge and checkpoints")
        command.add_argument("--device", default="cpu")
        command.add_argument("--encoder", default="encoder-mae3d", help="of drifting: a bundled encoder or a folder")
        command.add_argument("--seconds", type=float, help="training time of a cell, instead of the size's")
        if name == "run":
            command.add_argument("--methods", type=_methods, default=list(METHODS), help="comma-separated: " + ",".join(METHODS))
            command.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    return parser


def _methods(text: str) -> list[str]:
    names = text.split(",")
    unknown = set(names) - set(METHODS)
    if unknown:
        raise argparse.ArgumentTypeError(f"no method {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    main()
