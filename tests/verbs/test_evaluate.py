import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medsynth.cli import app
from medsynth.core.errors import Exit, ScanError, UsageError
from medsynth.core.volume import Volume
from medsynth.scans import nifti
from medsynth.verbs.evaluate import PROFILES, evaluate, render


def head(seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ct_hu = np.full((20, 20, 20), -1000.0)
    ct_hu[3:17, 3:17, 3:17] = 40 + rng.normal(0, 20, (14, 14, 14))
    ct_hu[3:5, 3:17, 3:17] = 900
    return (ct_hu + shift).astype(np.float32)


def save(path: Path, array: np.ndarray, spacing_mm: float = 2.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti.write(Volume(array=array, affine_ras=np.diag([spacing_mm] * 3 + [1.0])), path, dtype="float32")
    return path


def measure(reference: Path, predicted: Path, mask: Path | None = None, profiles=("synthrad2023",)):
    return evaluate(reference, predicted, mask=mask, profiles=profiles, top_hu=3071)


def test_folders_pair_by_name_and_report_mean_and_spread(tmp_path):
    for i, shift in enumerate((10.0, 30.0)):
        save(tmp_path / "ref" / f"a{i}.nii.gz", head(i))
        save(tmp_path / "out" / f"a{i}_ct.nii.gz", head(i, shift))
        save(tmp_path / "mask" / f"a{i}_mask.nii.gz", np.ones((20, 20, 20), dtype=np.float32))
    report = measure(tmp_path / "ref", tmp_path / "out", tmp_path / "mask")
    summary = report.summary["synthrad2023/mae_hu"]
    assert (summary.mean, summary.n) == (pytest.approx(20, rel=1e-4), 2)
    assert summary.sd == pytest.approx(np.std([10, 30], ddof=1), rel=1e-4)
    assert report.exit is Exit.OK


def test_the_layout_of_one_folder_a_patient_pairs_by_the_folder(tmp_path):
    save(tmp_path / "data" / "1BA001" / "ct.nii.gz", head())
    save(tmp_path / "out" / "1BA001_ct.nii.gz", head(shift=5))
    assert [row.case for row in measure(tmp_path / "data", tmp_path / "out").rows] == ["1BA001"]


def test_in_a_patients_folder_the_ct_is_the_reference_and_the_mask_the_mask(tmp_path):
    for patient in ("1BA001", "1BA002"):
        save(tmp_path / "data" / patient / "ct.nii.gz", head())
        save(tmp_path / "data" / patient / "mr.nii.gz", head(shift=2000))
        save(tmp_path / "data" / patient / "mask.nii.gz", (head() > 500).astype(np.float32))
        save(tmp_path / "out" / f"{patient}_mr_ct.nii.gz", np.where(head() > 500, head() + 7, 0))
    report = measure(tmp_path / "data", tmp_path / "out", tmp_path / "data")
    assert [row.case for row in report.rows] == ["1BA001", "1BA002"]
    assert report.summary["synthrad2023/mae_hu"].mean == pytest.approx(7, rel=1e-4)


def test_two_predictions_for_one_case_are_refused_and_named(tmp_path):
    save(tmp_path / "ref" / "a.nii.gz", head())
    for name in ("a", "a_sct"):
        save(tmp_path / "out" / f"{name}.nii.gz", head())
    (row,) = measure(tmp_path / "ref", tmp_path / "out").rows
    assert row.code == "E-PAIR"
    assert "a_sct" in row.cause


def test_equal_names_in_different_folders_stay_different_cases(tmp_path):
    for folder, shift in (("one", 10.0), ("two", 20.0)):
        save(tmp_path / "ref" / folder / "scan.nii.gz", head())
        save(tmp_path / "out" / folder / "scan.nii.gz", head(shift=shift))
    report = measure(tmp_path / "ref", tmp_path / "out")
    assert {row.case: row.figures["synthrad2023/mae_hu"] for row in report.rows} == {
        "one_scan": pytest.approx(10, rel=1e-4),
        "two_scan": pytest.approx(20, rel=1e-4),
    }


def test_a_ct_given_as_mask_is_refused(tmp_path):
    scan = save(tmp_path / "a.nii.gz", head())
    (row,) = measure(scan, scan, scan).rows
    assert (row.code, row.figures) == ("E-MASK", {})


def test_figures_that_are_not_defined_are_left_out_and_json_stays_valid(tmp_path):
    soft = save(tmp_path / "soft.nii.gz", np.minimum(head(), 60))
    report = measure(soft, soft, profiles=PROFILES)
    figures = json.loads(report.model_dump_json())["rows"][0]["figures"]
    assert "medsynth/bone_dice" not in figures
    assert figures["synthrad2023/psnr_db"] == "Infinity"
    assert "synthrad2023/psnr_db" not in report.summary
    assert report.summary["synthrad2023/ssim"].mean == pytest.approx(1)


def test_without_a_mask_the_body_of_the_reference_is_used_and_said(tmp_path):
    reference, predicted = save(tmp_path / "r.nii.gz", head()), save(tmp_path / "p.nii.gz", np.where(head() < -500, -500, head()))
    report = measure(reference, predicted)
    assert report.rows[0].figures["synthrad2023/mae_hu"] == pytest.approx(0, abs=1e-4)
    assert report.rows[0].mask == "body"


@pytest.mark.parametrize("other", [{"array": head()[:, :, :-1]}, {"array": head(), "spacing_mm": 2.1}])
def test_geometry_is_compared_before_any_number(tmp_path, other):
    save(tmp_path / "ref" / "a.nii.gz", head())
    save(tmp_path / "ref" / "b.nii.gz", head(1))
    save(tmp_path / "out" / "a.nii.gz", **other)
    save(tmp_path / "out" / "b.nii.gz", head(1, 8))
    report = measure(tmp_path / "ref", tmp_path / "out")
    bad, good = report.rows
    assert (bad.code, bad.figures) == ("E-GRID", {})
    assert good.figures["synthrad2023/mae_hu"] == pytest.approx(8, rel=1e-3)
    assert report.exit is Exit.PARTIAL


def test_cases_without_a_partner_are_listed_and_none_at_all_is_an_error(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "ref" / f"{name}.nii.gz", head())
    save(tmp_path / "out" / "a.nii.gz", head())
    assert measure(tmp_path / "ref", tmp_path / "out").unpaired == ("b",)
    save(tmp_path / "else" / "z.nii.gz", head())
    with pytest.raises(ScanError, match="E-EMPTY"):
        measure(tmp_path / "ref", tmp_path / "else")


def test_a_case_without_its_mask_is_not_measured(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / "ref" / f"{name}.nii.gz", head())
        save(tmp_path / "out" / f"{name}.nii.gz", head())
    save(tmp_path / "mask" / "a.nii.gz", np.ones((20, 20, 20), dtype=np.float32))
    report = measure(tmp_path / "ref", tmp_path / "out", tmp_path / "mask")
    assert [row.code for row in report.rows] == ["", "E-MASK"]


def test_an_unknown_profile_is_a_usage_error(tmp_path):
    scan = save(tmp_path / "a.nii.gz", head())
    with pytest.raises(UsageError, match="synthrad2023, synthrad2025, medsynth"):
        measure(scan, scan, profiles=("ssim",))


def test_every_profile_has_rows_in_the_table(tmp_path):
    reference, predicted = save(tmp_path / "r.nii.gz", head()), save(tmp_path / "p.nii.gz", head(shift=4))
    report = measure(reference, predicted, profiles=PROFILES)
    table = render(report)[0]
    assert set(table.columns[0].cells) == set(PROFILES)
    assert table.row_count == len(report.summary)


def test_the_command_prints_json_and_exits_by_the_outcome(tmp_path):
    reference, predicted = save(tmp_path / "r.nii.gz", head()), save(tmp_path / "p.nii.gz", head(shift=4))
    result = CliRunner().invoke(app, ["eval", "--ref", str(reference), "--pred", str(predicted), "--profile", "synthrad2023", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["rows"][0]["figures"]["synthrad2023/mae_hu"] == pytest.approx(4, rel=1e-3)
    shifted = save(tmp_path / "s.nii.gz", head(), spacing_mm=3)
    result = CliRunner().invoke(app, ["eval", "--ref", str(reference), "--pred", str(shifted)])
    assert result.exit_code == Exit.INPUT
    assert "E-GRID" in result.stdout
