"""Tasks by name. A new one is a file here and a line in `TASKS`."""

from importlib import import_module
from typing import Any

# name -> what the command's help says; the file is found by the name, so that listing tasks imports none of them.
TASKS = {
    "mri2ct": "Synthetic CT of the head from one MR, in one step.",
    "sparse-ct": "CT from few views, in agreement with what was measured.",
}
# Those that map a volume to a volume share one command; a task that reconstructs has its own.
VOLUME_TASKS = ("mri2ct",)


def get(name: str) -> Any:
    """The `Task` of that name."""
    return import_module(f"medsynth.tasks.{name.replace('-', '_')}").TASK
