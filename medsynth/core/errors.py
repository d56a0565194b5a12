"""Errors that a user can act on: a code, the cause, the remedy, and the exit status they lead to."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses of the command line."""

    OK = 0
    BUG = 1
    USAGE = 2
    INPUT = 3
    PARTIAL = 4
    WEIGHTS = 5
    LICENCE = 6
    MEMORY = 7
    INTERRUPTED = 130


class MedsynthError(Exception):
    """An expected failure. `code` names it (E-FORM), `cause` says what was found, `remedy` what to do."""

    exit: Exit = Exit.INPUT

    def __init__(self, code: str, cause: str, *, remedy: str) -> None:
        super().__init__(f"{code}: {cause}\n  remedy: {remedy}")
        self.code = code
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.cause, self.remedy)


class ScanError(MedsynthError):
    """A scan that cannot be read or must not be used."""


class UsageError(MedsynthError):
    """The command line, a card or a setting is wrong."""

    exit = Exit.USAGE


class WeightsError(MedsynthError):
    """A model is missing, incomplete or not what its card says."""

    exit = Exit.WEIGHTS


class LicenceError(MedsynthError):
    """A model whose terms were not accepted."""

    exit = Exit.LICENCE


class OutOfMemoryError(MedsynthError):
    """The machine has not enough memory for the scan, even with the smallest tiles."""

    exit = Exit.MEMORY


def _rebuild(kind: type[MedsynthError], code: str, cause: str, remedy: str) -> MedsynthError:
    return kind(code, cause, remedy=remedy)
