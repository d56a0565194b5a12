"""Errors say code, cause and remedy, and lead to the exit statuses that the documentation promises."""

import pickle

import pytest

from medsynth.core.errors import Exit, LicenceError, MedsynthError, OutOfMemoryError, ScanError, UsageError, WeightsError

EXITS = {ScanError: 3, UsageError: 2, WeightsError: 5, LicenceError: 6, OutOfMemoryError: 7}


@pytest.mark.parametrize(("kind", "status"), EXITS.items())
def test_each_kind_leads_to_its_exit_status(kind: type[MedsynthError], status: int) -> None:
    assert kind("E-TEST", "a cause", remedy="a remedy").exit == status


def test_exit_statuses_are_those_that_scripts_rely_on() -> None:
    statuses = {status.name: int(status) for status in Exit}
    assert statuses == {
        "OK": 0, "BUG": 1, "USAGE": 2, "INPUT": 3, "PARTIAL": 4, "WEIGHTS": 5, "LICENCE": 6, "MEMORY": 7, "INTERRUPTED": 130,
    }  # fmt: skip


def test_the_message_holds_code_cause_and_remedy() -> None:
    message = str(ScanError("E-DIM", "scan.nii.gz has 4 dimensions", remedy="--volume K"))
    assert message == "E-DIM: scan.nii.gz has 4 dimensions\n  remedy: --volume K"


@pytest.mark.parametrize("kind", EXITS)
def test_an_error_comes_back_whole_from_another_process(kind: type[MedsynthError]) -> None:
    error = kind("E-TEST", "a cause", remedy="a remedy")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.code, copy.cause, copy.remedy, str(copy)) == (error.code, error.cause, error.remedy, str(error))
