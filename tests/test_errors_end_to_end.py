"""The ten most likely mistakes, made on the command line: each has a code, says its cause and its remedy, and ends with its status.

A scan that fails on its own gives the run its status; beside scans that succeed, the status is 4 (tests/verbs/test_synthesize.py).
"""

from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import fake_hub
import nibabel as nib
import numpy as np
import phantom
import psutil
import pytest
from commandline import medsynth, partial_files, start
from tiny_model import write_tiny_model

from medsynth.core.errors import Exit

HUB_MODEL = "hub:somebody/mri2ct@v1"
OTHERS = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}


@dataclass(frozen=True)
class Mistake:
    """What the user did (make: writes input into a folder and gives the arguments), and what the command is to say and return."""

    code: str
    exit: Exit
    make: Callable[[Path, Path], tuple[object, ...]]
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.code} {self.make.__name__}"


def weights_exchanged(folder: Path, model: Path) -> tuple[object, ...]:
    weights = write_tiny_model(folder / "model") / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    return "mri2ct", phantom.write_nifti(folder / "in" / "a.nii.gz"), folder / "out", "--model", folder / "model"


def weights_missing(folder: Path, model: Path) -> tuple[object, ...]:
    (write_tiny_model(folder / "model") / "weights.safetensors").unlink()
    return "mri2ct", phantom.write_nifti(folder / "in" / "a.nii.gz"), folder / "out", "--model", folder / "model"


def folder_of_other_files(folder: Path, model: Path) -> tuple[object, ...]:
    (folder / "in").mkdir()
    for name in ("report.pdf", "photo.jpg", "photo2.jpg"):
        (folder / "in" / name).write_bytes(b"...")
    return "mri2ct", folder / "in", folder / "out", "--model", model


def two_series_in_one_folder(folder: Path, model: Path) -> tuple[object, ...]:
    for number in (1, 2):
        phantom.write_dicom(folder / "in", series=number)
    return "mri2ct", folder / "in", folder / "out", "--model", model


def missing_slices(folder: Path, model: Path) -> tuple[object, ...]:
    return "mri2ct", phantom.write_dicom(folder / "in", leave_out=(20, 21)), folder / "out", "--model", model


def two_orientations(folder: Path, model: Path) -> tuple[object, ...]:
    image = nib.Nifti1Image(phantom.mr_head().astype(np.int16), phantom.affine_ras())
    image.header.set_qform(phantom.affine_ras() + np.eye(4)[:, [3, 3, 3, 2]] * 20, code=1)
    nib.save(image, folder / "a.nii.gz")
    return "mri2ct", folder / "a.nii.gz", folder / "out", "--model", model


def a_ct(folder: Path, model: Path) -> tuple[object, ...]:
    ct_hu = np.where(phantom.head_mask(), 40, -1000)
    return "mri2ct", phantom.write_nifti(folder / "a.nii.gz", ct_hu), folder / "out", "--model", model


def a_brain_without_skull(folder: Path, model: Path) -> tuple[object, ...]:
    return "mri2ct", phantom.write_nifti(folder / "a.nii.gz", phantom.stripped()), folder / "out", "--model", model


def four_dimensions(folder: Path, model: Path) -> tuple[object, ...]:
    series = np.stack([phantom.mr_head()] * 3, axis=-1)
    return "mri2ct", phantom.write_nifti(folder / "a.nii.gz", series), folder / "out", "--model", model


def too_little_memory(folder: Path, model: Path) -> tuple[object, ...]:
    """The machine is given half a gigabyte below."""
    return "mri2ct", phantom.write_nifti(folder / "a.nii.gz"), folder / "out", "--model", model


def prediction_on_another_grid(folder: Path, model: Path) -> tuple[object, ...]:
    moved = phantom.affine_ras()
    moved[0, 3] += 9
    reference = phantom.write_nifti(folder / "ref" / "a.nii.gz")
    return "eval", "--ref", reference, "--pred", phantom.write_nifti(folder / "pred" / "a.nii.gz", affine=moved)


def derived_series_of_a_scan_with_gaps(folder: Path, model: Path) -> tuple[object, ...]:
    scan = phantom.write_dicom(folder / "in", leave_out=(20,))
    return "mri2ct", scan, folder / "out", "--model", model, "--allow-gaps", "--format", "dicom"


def hub_unreachable(folder: Path, model: Path) -> tuple[object, ...]:
    return "mri2ct", phantom.write_nifti(folder / "a.nii.gz"), folder / "out", "--model", HUB_MODEL


def terms_not_accepted(folder: Path, model: Path) -> tuple[object, ...]:
    return "mri2ct", phantom.write_nifti(folder / "a.nii.gz"), folder / "out", "--model", HUB_MODEL


IN_PROCESS = (
    Mistake("E-WEIGHTS", Exit.WEIGHTS, weights_exchanged, "not the file that its card describes", "fetch the model again"),
    Mistake("E-WEIGHTS", Exit.WEIGHTS, weights_missing, "weights.safetensors is missing", "copy the model's whole folder"),
    Mistake("E-EMPTY", Exit.INPUT, folder_of_other_files, "found: 2 .jpg, 1 .pdf", "give NIfTI"),
    Mistake("E-SERIES", Exit.INPUT, two_series_in_one_folder, "in holds 2 series: number 1, head 1, 64 slices", "--series"),
    Mistake("E-GAP", Exit.INPUT, missing_slices, "2 missing slices between instances 20 and 23", "--allow-gaps"),
    Mistake("E-FORM", Exit.INPUT, two_orientations, "qform and sform differ by 20 mm", "--trust sform or --trust qform"),
    Mistake("E-MODALITY", Exit.INPUT, a_ct, "this is a CT", "give the MR"),
    Mistake("E-MODALITY", Exit.INPUT, a_brain_without_skull, "the skull was removed", "--force"),
    Mistake("E-DIM", Exit.INPUT, four_dimensions, "holds 3 volumes", "--volume K, with K from 0 to 2"),
    Mistake("E-MEM", Exit.MEMORY, too_little_memory, "GB, and 0.5 GB are free", "coarser grid"),
    Mistake("E-GRID", Exit.INPUT, prediction_on_another_grid, "9 mm", "compare on one grid"),
    Mistake("E-GRID", Exit.INPUT, derived_series_of_a_scan_with_gaps, "a gap was filled", "write NIfTI"),
)
FROM_THE_HUB = (
    Mistake("E-WEIGHTS", Exit.WEIGHTS, hub_unreachable, "is not in the cache and the hub cannot be reached", "HF_HUB_OFFLINE"),
    Mistake("E-GATED", Exit.LICENCE, terms_not_accepted, "the terms of somebody/mri2ct were not accepted", "hf auth login"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def little_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "too_little_memory" in request.node.name:
        memory = namedtuple("memory", ["available", "total"])
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(int(0.5e9), int(8e9)))


@pytest.fixture
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that finds a hub with a gated model, or none."""
    gated = fake_hub.Repo(files={"card.toml": b""}, tags={"v1": "c0ffee" + 34 * "0"}, gated=True)
    offline = "hub_unreachable" in request.node.name
    with nullcontext("http://127.0.0.1:9") if offline else fake_hub.serve({"somebody/mri2ct": gated}) as endpoint:
        yield OTHERS | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_CACHE": str(tmp_path / "cache")}


def assert_said(mistake: Mistake, printed: str, exit_code: object, folder: Path) -> None:
    words = " ".join("".join(" " if mark in "│┃" else mark for mark in printed).split())
    assert exit_code == mistake.exit, printed
    assert mistake.code in words
    assert mistake.cause in words
    assert mistake.remedy in words
    assert "Traceback" not in printed
    assert str(folder) not in printed.replace(f"record: {folder}", "")
    assert partial_files(folder / "out") == []
    assert not list(folder.rglob("*_ct.*"))


@pytest.mark.parametrize("mistake", IN_PROCESS, ids=str)
def test_a_mistake_is_named_with_its_cause_and_remedy(
    mistake: Mistake, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # so that the table of failures breaks no line
    result = medsynth(*mistake.make(tmp_path, model))
    assert_said(mistake, result.output, result.exit_code, tmp_path)


@pytest.mark.parametrize("mistake", FROM_THE_HUB, ids=str)
def test_a_mistake_with_a_hub_is_named_with_its_cause_and_remedy(
    mistake: Mistake, model: Path, hub: dict[str, str], tmp_path: Path
) -> None:
    process = start(*mistake.make(tmp_path, model), log=tmp_path / "log.txt", environment=hub)
    process.join(240)
    assert_said(mistake, (tmp_path / "log.txt").read_text(encoding="utf-8"), process.exitcode, tmp_path)
    assert not (tmp_path / "out").exists()


def test_every_code_of_the_ten_is_provoked() -> None:
    ten = {"E-WEIGHTS", "E-GATED", "E-EMPTY", "E-SERIES", "E-GAP", "E-FORM", "E-MODALITY", "E-DIM", "E-MEM", "E-GRID"}
    assert {mistake.code for mistake in (*IN_PROCESS, *FROM_THE_HUB)} == ten
