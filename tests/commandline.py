"""The command line, called in this process, or in one of its own that can be interrupted, killed and given an environment."""

import csv
import itertools
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from medsynth.cli import app

# What takes long to import is imported once, by the server that every process is forked from.
PRELOADED = ["medsynth.verbs.synthesize", "safetensors.torch", "pydicom", "commandline"]


def medsynth(*arguments: object) -> Result:
    """`medsynth ...` in this process. stdout, stderr and exit_code are in the result."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="medsynth")


def start(
    *arguments: object, log: Path, environment: Mapping[str, str] | None = None, die_at: int = 0, by: signal.Signals = signal.SIGKILL
) -> BaseProcess:
    """`medsynth ...` in a process of its own, which writes to `log` what it prints.

    die_at: n: it sends itself the signal `by` just before it gives a file or folder its final name for the nth time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    command = [str(argument) for argument in arguments]
    process = context.Process(target=_main, args=(command, str(log), dict(environment or {}), die_at, by))
    process.start()
    return process


def partial_files(folder: Path) -> list[str]:
    """Names of what a run that was stopped left half done: everything that it writes has a hidden name first."""
    return sorted(path.name for path in folder.rglob(".*")) if folder.exists() else []


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its path, but for the record of the run, which holds times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "run.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def record(out: Path) -> dict[str, Any]:
    """run.json."""
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


def status(out: Path) -> dict[str, str]:
    """Case -> done, skipped or failed."""
    return {case["case"]: case["status"] for case in record(out)["cases"]}


def failures(out: Path) -> dict[str, str]:
    """Case -> code, as failures.csv has them."""
    with (out / "failures.csv").open(encoding="utf-8", newline="") as file:
        return {row["case"]: row["code"] for row in csv.DictReader(file)}


def _main(arguments: list[str], log: str, environment: dict[str, str], die_at: int, by: signal.Signals) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, tests among them, ignore it
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]  # it reads the environment when it is imported
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if die_at:
        _die_at(die_at, by)
    app(arguments, prog_name="medsynth")


def _die_at(number: int, by: signal.Signals) -> None:
    calls = itertools.count(1)

    def mortal(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Path, target: Path) -> Any:
            if next(calls) == number:
                os.kill(os.getpid(), by)
            return original(self, target)

        return call

    Path.replace, Path.rename = mortal(Path.replace), mortal(Path.rename)  # type: ignore[method-assign]
