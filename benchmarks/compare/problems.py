"""The problems on which methods are compared: one file and one line each."""

from . import head
from .problem import Draw

PROBLEMS: dict[str, Draw] = {"head": head.draw}
