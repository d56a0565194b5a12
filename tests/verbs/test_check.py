"""What `train --check` finds: each fault with its code, several at once, before anything is written."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantom
import pytest
from rich.console import Console

from medsynth import tasks
from medsynth.core.errors import Exit, ScanError, UsageError
from medsynth.core.task import Task
from medsynth.scans.pairs import find_pairs
from medsynth.verbs.check import Report, check, insist, render
from medsynth.verbs.pack import pack

CARD_MM, PATCH = (4.0, 4.0, 4.0), (32, 32, 32)
TASK: Task = tasks.get("mri2ct")
NAMES = ("a", "b", "c", "d", "e")


def ct_head(seed: int) -> np.ndarray:
    """float32 HU with a little noise, so that no two patients share a CT."""
    head = phantom.head_mask()
    ct_hu = np.where(head, np.where(phantom.mr_head() < 60, 900.0, 40.0), -1000.0)
    return (ct_hu + np.random.default_rng(seed).normal(0, 10, head.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five patients; the first has a mask."""
    data = tmp_path_factory.mktemp("good")
    for seed, name in enumerate(NAMES):
        phantom.write_nifti(data / name / "mr.nii.gz", phantom.mr_head(seed=seed))
        phantom.write_nifti(data / name / "ct.nii.gz", ct_head(seed))
    phantom.write_nifti(data / "a" / "mask.nii.gz", phantom.head_mask())
    return data


@pytest.fixture
def data(good: Path, tmp_path: Path) -> Path:
    """Three of the patients, to be spoilt."""
    for name in NAMES[:3]:
        shutil.copytree(good / name, tmp_path / "data" / name)
    return tmp_path / "data"


def checked(data: Path, patch: tuple[int, int, int] = PATCH, cache: Path | None = None) -> Report:
    return check(data, TASK, CARD_MM, patch, cache=cache or data / "no-cache", say=lambda _: None)


def only(findings: Any) -> tuple[str, str, str]:
    """(case, code, cause) of the one finding, which has a remedy."""
    (one,) = findings
    assert one.remedy
    return one.case, one.code, one.cause


def spoilt_file(data: Path, values: np.ndarray, name: str = "b/mr") -> Path:
    return phantom.write_nifti(data / f"{name}.nii.gz", values)


def flat_file(path: Path) -> None:
    """A header with no spacing along y, which nibabel would not write."""
    data = bytearray(nib.Nifti1Image(phantom.mr_head(seed=1), np.eye(4)).to_bytes())
    data[252:254], data[296:312] = bytes(2), bytes(16)  # qform_code, srow_y
    path.write_bytes(data)


def affine(spacing_mm: float = phantom.SPACING_MM, by_mm: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    moved = phantom.affine_ras()
    moved[:3, :3] = np.eye(3) * spacing_mm
    moved[:3, 3] += by_mm
    return moved


def shown(report: Report) -> str:
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(*render(report))
    return console.export_text()


def test_good_pairs_have_no_problem_and_raise_no_suspicion(good: Path) -> None:
    said: list[str] = []
    report = check(good, TASK, CARD_MM, PATCH, cache=good / "no-cache", say=said.append)
    assert said == [f"checked {k}/5 {name}" for k, name in enumerate(NAMES, 1)]
    assert (report.problems, report.suspicions, report.exit) == ((), (), Exit.OK)
    insist(report)
    assert [row.case for row in report.rows] == list(NAMES)
    row = report.rows[0]
    assert row.source_mm == row.target_mm == (4.0, 4.0, 4.0)
    assert row.extent_mm == phantom.VIEW_MM
    assert (row.same_grid, row.mask, row.overlap, row.shift_mm) == (True, True, 1.0, (0, 0, 0))
    assert not (good / "no-cache").exists()


def test_patients_are_on_one_side_and_the_rows_say_on_which(good: Path) -> None:
    report = checked(good)
    assert sorted(report.training + report.validation) == list(NAMES)
    assert {row.case for row in report.rows if row.side == "validation"} == set(report.validation) != set()


def test_the_cache_is_estimated_and_what_is_packed_does_not_count(good: Path, tmp_path: Path) -> None:
    cases = find_pairs(good)
    files = pack(cases[:2], CARD_MM, TASK, tmp_path, lambda _: None)
    whole, rest = checked(good), checked(good, cache=tmp_path)
    assert whole.cache_bytes == pytest.approx(5 * np.mean([file.stat().st_size for file in files]), rel=0.15)
    assert rest.cache_bytes == pytest.approx(whole.cache_bytes * 3 / 5)


def test_a_full_disk_is_said_beforehand(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))  # pyright: ignore
    case, code, cause = only(checked(good).problems)
    assert (case, code) == ("", "E-DISK")
    assert "1e-06 GB are free" in cause


SPOILERS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "constant MR": (lambda data: spoilt_file(data, np.full(phantom.shape(), 7)), "E-MODALITY", "mr: the image is constant"),
    "constant CT": (lambda data: spoilt_file(data, np.full(phantom.shape(), -1000), "b/ct"), "E-MODALITY", "ct: the image is constant"),
    "NaN alone": (
        lambda data: nib.save(nib.Nifti1Image(np.full(phantom.shape(), np.nan, np.float32), affine()), data / "b" / "mr.nii.gz"),
        "E-READ",
        "100% of the voxels are NaN",
    ),
    "damaged file": (lambda data: (data / "b" / "ct.nii.gz").write_bytes(b"\x1f\x8b nothing"), "E-READ", "ct.nii.gz cannot be read"),
    "CT without intercept": (lambda data: spoilt_file(data, ct_head(1) + 1100, "b/ct"), "E-MODALITY", "are no HU"),
    "CT as MR": (lambda data: spoilt_file(data, ct_head(9)), "E-MODALITY", "mr: its values are those of a CT"),
    "one image twice": (lambda data: spoilt_file(data, phantom.mr_head(seed=1), "b/ct"), "E-MODALITY", "the same image"),
    "spacing of a slab": (
        lambda data: phantom.write_nifti(data / "b" / "mr.nii.gz", phantom.mr_head(seed=1), affine(0.1)),
        "E-SPACING",
        "the scan has 4.8 x 5.6 x 6.4 mm, and the model's patch 128 x 128 x 128 mm",
    ),
    "spacing of a house": (
        lambda data: phantom.write_nifti(data / "b" / "mr.nii.gz", phantom.mr_head(), affine(40.0)),
        "E-SPACING",
        "mr.nii.gz has voxels of 40 x 40 x 40 mm",
    ),
    "spacing of a hall": (
        lambda data: phantom.write_nifti(data / "b" / "mr.nii.gz", np.tile(phantom.mr_head(seed=1), (3, 1, 1)), affine(19.0)),
        "E-SPACING",
        "sides of 2.74e+03 x 1.06e+03 x 1.22e+03 mm",
    ),
    "no spacing": (lambda data: flat_file(data / "b" / "mr.nii.gz"), "E-GEOMETRY", "spacing 1 x 0 x 1 mm"),
    "one slice": (lambda data: spoilt_file(data, phantom.mr_head()[:, :, 30:31]), "E-SPACING", "192 x 224 x 4 mm"),
    "scans apart": (
        lambda data: phantom.write_nifti(data / "b" / "ct.nii.gz", ct_head(1), affine(by_mm=(0, 0, 600))),
        "E-GEOMETRY",
        "lie apart",
    ),
    "empty mask": (lambda data: spoilt_file(data, np.zeros(phantom.shape()), "b/mask"), "E-MASK", "the mask is empty"),
    "mask beside": (
        lambda data: phantom.write_nifti(data / "b" / "mask.nii.gz", phantom.head_mask(), affine(by_mm=(900, 0, 0))),
        "E-MODALITY",
        "the mask is empty on this scan",
    ),
    "same MR in two patients": (
        lambda data: shutil.copy(data / "a" / "mr.nii.gz", data / "b" / "mr.nii.gz"),
        "E-PAIRS",
        "a scan of this patient is also that of a",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILERS)
def test_what_would_spoil_training_is_a_problem(data: Path, name: str) -> None:
    spoil, code, cause = SPOILERS[name]
    spoil(data)
    report = checked(data)
    found = only(report.problems)
    assert found[:2] == ("b", code)
    assert cause in found[2]
    assert report.exit is Exit.INPUT
    assert len(report.rows) >= 2
    with pytest.raises(ScanError) as caught:
        insist(report)
    assert caught.value.code == code


def test_exchanged_scans_are_recognised_as_such(data: Path) -> None:
    (data / "b" / "mr.nii.gz").rename(data / "b" / "x")
    (data / "b" / "ct.nii.gz").rename(data / "b" / "mr.nii.gz")
    (data / "b" / "x").rename(data / "b" / "ct.nii.gz")
    assert only(checked(data).problems) == ("b", "E-MODALITY", "mr and ct are exchanged")


def test_all_problems_are_listed_together(data: Path) -> None:
    for name, case in (("constant MR", "b"), ("damaged file", "b"), ("empty mask", "b")):
        SPOILERS[name][0](data)
        (data / "b").rename(data / f"{case}-{name}")
        phantom.write_nifti(data / "b" / "mr.nii.gz", phantom.mr_head(seed=20 + len(name)))
        phantom.write_nifti(data / "b" / "ct.nii.gz", ct_head(20 + len(name)))
    report = checked(data)
    assert [(one.case, one.code) for one in report.problems] == [
        ("b-constant MR", "E-MODALITY"), ("b-damaged file", "E-READ"), ("b-empty mask", "E-MASK"),
    ]  # fmt: skip
    with pytest.raises(ScanError) as caught:
        insist(report)
    assert "3 problems: " in caught.value.cause
    assert all(one.case in caught.value.cause for one in report.problems)
    text = shown(report)
    assert "problems: training will not start" in text
    assert all(word in text for one in report.problems for word in (one.case, one.code, one.cause, one.remedy))


def test_one_pair_only_is_refused_but_looked_at(data: Path) -> None:
    for name in NAMES[1:3]:
        shutil.rmtree(data / name)
    report = checked(data)
    case, code, cause = only(report.problems)
    assert (case, code, len(report.rows)) == ("", "E-PAIRS", 1)
    assert "1 patient" in cause


def test_unpaired_files_and_other_layouts_are_problems_a_wrong_path_a_mistake(data: Path) -> None:
    (data / "c" / "ct.nii.gz").unlink()
    assert "c/mr.nii.gz" in only(checked(data).problems)[2]
    with pytest.raises(UsageError) as caught:
        checked(data / "nowhere")
    assert caught.value.code == "E-PATH"


def test_a_shifted_ct_is_suspicious_and_its_shift_is_told(data: Path) -> None:
    phantom.write_nifti(data / "b" / "ct.nii.gz", ct_head(1), affine(by_mm=(0, 10, 0)))
    report = checked(data)
    assert report.problems == ()
    case, code, cause = only(report.suspicions)
    assert (case, code) == ("b", "E-SHIFT")
    assert "moved by 0, -9, 0 mm" in cause
    assert [row.same_grid for row in report.rows] == [True, False, True]
    assert "suspicions" in shown(report)


def test_a_scan_of_something_else_is_suspicious_where_the_others_agree(good: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(good, tmp_path / "data"))
    other = np.where(np.random.default_rng(0).random(phantom.shape()) < 0.5, -1000, 400)
    spoilt_file(data, other, "b/ct")
    assert "less than half in common" in only(checked(data).suspicions)[2]


def test_what_the_task_would_refuse_is_suspicious(data: Path) -> None:
    spoilt_file(data, phantom.stripped())
    suspicions = {(one.case, one.code): one.cause for one in checked(data).suspicions}
    assert "skull was removed" in suspicions["b", "E-MODALITY"]


def test_a_ct_without_bone_and_a_half_scan_are_suspicious(data: Path) -> None:
    spoilt_file(data, np.minimum(ct_head(1), 100), "b/ct")
    assert only(checked(data).suspicions)[1:] == ("E-MODALITY", "the target has no bone: at most 100 HU")
    half = checked(data, patch=(112, 32, 32)).suspicions
    assert {one.case for one in half if one.code == "E-SPACING"} == set(NAMES[:3])


def test_scans_that_share_little_are_suspicious(data: Path) -> None:
    phantom.write_nifti(data / "b" / "ct.nii.gz", ct_head(1)[:, :, 44:], affine(by_mm=(0, 0, 44 * 4.0)))
    suspicions = {(one.case, one.code): one.cause for one in checked(data).suspicions}
    assert "of the body is in both" in suspicions["b", "E-GEOMETRY"]


def test_the_report_survives_json_and_the_summary_names_ranges(good: Path) -> None:
    report = checked(good)
    assert Report.model_validate_json(report.model_dump_json()) == report
    text = shown(report)
    assert all(words in text for words in ("5 pairs, 5 patients", "spacing of the source", "mutual information", "cache to write"))
    assert "problems" not in text
    assert "suspicions" not in text
