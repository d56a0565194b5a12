"""Which pairs are found in each layout, what is refused, and that patients stay on their side of the split."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import phantom
import pytest

from medsynth.core.errors import ScanError, UsageError
from medsynth.scans.pairs import Case, find_pairs, read_scan, split


def files(root: Path, *names: str) -> Path:
    """Empty files: finding looks at names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(root: Path, text: str) -> Path:
    (root / "pairs.csv").write_text(text, encoding="utf-8")
    return root


def found(data: Path) -> list[tuple[str, ...]]:
    """(patient, case, source, target, mask) with names from the data's folder."""

    def named(path: Path | None) -> str:
        return "" if path is None else path.relative_to(data).as_posix()

    return [(case.patient, case.case, named(case.source), named(case.target), named(case.mask)) for case in find_pairs(data)]


def refusal(call: Callable[[], object]) -> ScanError:
    with pytest.raises(ScanError) as caught:
        call()
    assert caught.value.code == "E-PAIRS"
    assert caught.value.remedy
    return caught.value


def patients(names: str) -> list[Case]:
    return [Case(patient=name, case=name, source=Path(name), target=Path(name)) for name in names.split()]


def test_folders_pair_by_name_whatever_the_format(tmp_path: Path) -> None:
    files(tmp_path, "mr/b.nii.gz", "ct/b.mha", "mr/a.nrrd", "ct/a_ct.nii", "mask/a_mask.nii.gz", "ct/notes.txt", "ct/.hidden.nii")
    assert found(tmp_path) == [("a", "a", "mr/a.nrrd", "ct/a_ct.nii", "mask/a_mask.nii.gz"), ("b", "b", "mr/b.nii.gz", "ct/b.mha", "")]


def test_a_subject_of_bids_is_the_patient_of_all_its_files_in_folders(tmp_path: Path) -> None:
    files(tmp_path, *(f"{kind}/sub-07_ses-{session}.nii.gz" for kind in ("mr", "ct") for session in (1, 2)))
    assert [row[:2] for row in found(tmp_path)] == [("sub-07", "sub-07_ses-1"), ("sub-07", "sub-07_ses-2")]


def test_folders_may_hold_dicom_series(tmp_path: Path) -> None:
    files(tmp_path, "mr/07/1.dcm", "mr/07/2.dcm", "ct/07/1", "ct/07/2")
    assert found(tmp_path) == [("07", "07", "mr/07", "ct/07", "")]


@pytest.mark.parametrize("place", ["", "Task1/brain/"])
def test_a_folder_a_patient_is_found_at_any_depth(tmp_path: Path, place: str) -> None:
    names = ("1BA001/mr.nii.gz", "1BA001/ct.nii.gz", "1BA001/mask.nii.gz", "1PA002/MR.mha", "1PA002/ct.mha", "overview/1BA001.png")
    files(tmp_path, *(place + name for name in names))
    assert found(tmp_path) == [
        ("1BA001", "1BA001", f"{place}1BA001/mr.nii.gz", f"{place}1BA001/ct.nii.gz", f"{place}1BA001/mask.nii.gz"),
        ("1PA002", "1PA002", f"{place}1PA002/MR.mha", f"{place}1PA002/ct.mha", ""),
    ]


def test_a_patients_series_are_folders_in_his_own(tmp_path: Path) -> None:
    files(tmp_path, "p1/mr/1.dcm", "p1/ct/1.dcm")
    assert found(tmp_path) == [("p1", "p1", "p1/mr", "p1/ct", "")]
    assert find_pairs(tmp_path / "p1")[0].patient == "p1"


def test_folders_of_one_name_are_one_patient_with_cases_of_different_names(tmp_path: Path) -> None:
    files(tmp_path, "A/p1/mr.nii", "A/p1/ct.nii", "B/p1/mr.nii", "B/p1/ct.nii")
    assert [row[:2] for row in found(tmp_path)] == [("p1", "p1"), ("p1", "p1_2")]


def test_bids_pairs_every_mr_of_a_session_with_its_ct(tmp_path: Path) -> None:
    names = ("anat/sub-1_ses-a_T1w.nii.gz", "anat/sub-1_ses-a_T2w.nii.gz", "anat/sub-1_ses-a_T1w.json", "ct/sub-1_ses-a_ct.nii.gz")
    others = ("sub-2/anat/sub-2_FLAIR.nii", "sub-2/anat/sub-2_ct.nii", "sub-2/ct/sub-2_mask.nii")
    files(tmp_path, *(f"sub-1/ses-a/{name}" for name in names), *others)
    assert found(tmp_path) == [
        ("sub-1", "sub-1_ses-a_T1w", "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz", "sub-1/ses-a/ct/sub-1_ses-a_ct.nii.gz", ""),
        ("sub-1", "sub-1_ses-a_T2w", "sub-1/ses-a/anat/sub-1_ses-a_T2w.nii.gz", "sub-1/ses-a/ct/sub-1_ses-a_ct.nii.gz", ""),
        ("sub-2", "sub-2_FLAIR", "sub-2/anat/sub-2_FLAIR.nii", "sub-2/anat/sub-2_ct.nii", "sub-2/ct/sub-2_mask.nii"),
    ]


def test_a_table_names_pairs_from_its_own_folder(tmp_path: Path) -> None:
    files(tmp_path, "x/1.nii", "x/2.nii", "x/3.nii", "y/1.nii")
    rows = ("anna,x/1.nii,y/1.nii,,train", "anna,x/2.nii,y/1.nii,x/3.nii,train", "bo, x/3.nii,y/1.nii,,validation")
    table(tmp_path, "\n".join(("\ufeffpatient,mr,ct,mask,split", *rows, "")))
    assert found(tmp_path) == [
        ("anna", "anna_1", "x/1.nii", "y/1.nii", ""),
        ("anna", "anna_2", "x/2.nii", "y/1.nii", "x/3.nii"),
        ("bo", "bo", "x/3.nii", "y/1.nii", ""),
    ]
    assert [case.side for case in find_pairs(tmp_path / "pairs.csv")] == ["training", "training", "validation"]


def test_other_quantities_give_other_names(tmp_path: Path) -> None:
    files(tmp_path, "pet/a.nii", "dose/a.nii")
    assert len(find_pairs(tmp_path, source="pet", target="dose")) == 1


@pytest.mark.parametrize(
    ("names", "lone"),
    [
        (("mr/a.nii", "ct/a.nii", "mr/b.nii", "ct/c.nii"), ("mr/b.nii", "ct/c.nii")),
        (("mr/a.nii", "ct/a.nii", "mask/b.nii"), ("mask/b.nii",)),
        (("mr/a.nii",), ("mr/a.nii",)),
        (("p1/mr.nii", "p1/ct.nii", "p2/ct.nii"), ("p2/ct.nii",)),
        (("sub-1/anat/sub-1_T1w.nii", "sub-1/ct/sub-1_ct.nii", "sub-2/anat/sub-2_T1w.nii"), ("sub-2_T1w.nii",)),
    ],
)
def test_what_has_no_partner_is_named(tmp_path: Path, names: tuple[str, ...], lone: tuple[str, ...]) -> None:
    cause = refusal(lambda: find_pairs(files(tmp_path, *names))).cause
    assert cause == f"{len(lone)} file(s) without a partner: {', '.join(lone)}"


@pytest.mark.parametrize(
    "names",
    [
        ("mr/a.nii", "mr/a.mha", "ct/a.nii"),
        ("p1/mr.nii", "p1/mr.mha", "p1/ct.nii"),
        ("sub-1/anat/sub-1_T1w.nii", "sub-1/ct/sub-1_acq-a_ct.nii", "sub-1/ct/sub-1_acq-b_ct.nii"),
    ],
)
def test_two_files_for_one_place_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert "several files for one place" in refusal(lambda: find_pairs(files(tmp_path, *names))).cause


def test_a_folder_that_fits_no_layout_is_described(tmp_path: Path) -> None:
    error = refusal(lambda: find_pairs(files(tmp_path / "data", "images/a.nii", "readme.txt")))
    assert "data fits no layout; it holds images/, readme.txt" in error.cause
    assert all(layout in error.remedy for layout in ("mr/ and ct/", "each patient", "BIDS", "pairs.csv"))
    with pytest.raises(UsageError) as caught:
        find_pairs(tmp_path / "nowhere")
    assert caught.value.code == "E-PATH"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("patient,mri,ct\np,a.nii,a.nii\n", "columns of pairs.csv are patient, mri, ct"),
        ("patient;mr;ct\np;a.nii;a.nii\n", "columns of pairs.csv are patient;mr;ct"),
        ("patient,mr,ct,age\np,a.nii,a.nii,7\n", "age"),
        ("patient,mr,ct\n", "no rows"),
        ("", "none"),
        ("patient,mr,ct\np,a.nii,b.nii\n", "line 2: b.nii is not there"),
        ("patient,mr,ct,split\np,a.nii,a.nii,test\n", "line 2: split is 'test'"),
        ("patient,mr,ct\n,a.nii,a.nii\n", "line 2: a value is missing"),
        ("patient,mr,ct\np,a.nii,a.nii,c.nii\n", "line 2: a value is missing, or there is one too many"),
        ("patient,mr,ct\np,a.nii,a.nii\nq,a.nii,a.nii\n", "a.nii is in 2 rows"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, text: str, cause: str) -> None:
    assert cause in refusal(lambda: find_pairs(table(files(tmp_path, "a.nii"), text))).cause


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes(b"\xff\xfe\x00")
    assert "no CSV in UTF-8" in refusal(lambda: find_pairs(tmp_path)).cause


def test_a_case_is_read_from_a_file_or_a_series(tmp_path: Path) -> None:
    phantom.write_nifti(tmp_path / "mr.nii.gz")
    phantom.write_dicom(tmp_path / "ct")
    (case,) = find_pairs(tmp_path)
    assert read_scan(case.source).shape == read_scan(case.target).shape == phantom.shape()
    phantom.write_nifti(tmp_path / "both" / "a.nii")
    phantom.write_nifti(tmp_path / "both" / "b.nii")
    assert "both holds 2 scans" in refusal(lambda: read_scan(tmp_path / "both")).cause


def test_the_split_keeps_the_scans_of_a_patient_together() -> None:
    cases = [replace(case, case=f"{case.case}-{k}") for case in patients(" ".join(map(str, range(40)))) for k in range(3)]
    training, validation = split(cases)
    assert sorted(case.case for case in training + validation) == sorted(case.case for case in cases)
    assert {case.patient for case in training}.isdisjoint({case.patient for case in validation})


def test_a_patient_stays_on_its_side_when_others_come_and_go() -> None:
    many = patients(" ".join(f"p{k}" for k in range(200)))
    held_out = {case.patient for case in split(many)[1]}
    for part in (many[:60], many[100:], many[::-3]):
        assert {case.patient for case in split(part)[1]} == held_out & {case.patient for case in part}
    assert 0.09 < len(held_out) / 200 < 0.21


def test_the_seed_and_the_share_change_the_split() -> None:
    many = patients(" ".join(f"p{k}" for k in range(200)))
    sides = [{case.patient for case in split(many, share=share, seed=seed)[1]} for share, seed in ((0.15, 0), (0.15, 1), (0.5, 0))]
    assert sides[0] != sides[1]
    assert sides[0] < sides[2]


@pytest.mark.parametrize("share", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("names", ["a b", "a b c", "k l m n"])
def test_no_side_is_empty(names: str, share: float) -> None:
    training, validation = split(patients(names), share=share)
    assert training
    assert validation
    assert len(training) + len(validation) == len(names.split())


def test_the_patient_nearest_to_an_empty_side_moves_there() -> None:
    """A larger share moves patients to validation and none back, also where it is 0 or 1."""
    cases = patients("a b c d e f g")
    held_out = [{case.patient for case in split(cases, share=share)[1]} for share in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert (len(held_out[0]), len(held_out[-1])) == (1, 6)
    assert all(a <= b for a, b in pairwise(held_out))


def test_the_tables_split_holds() -> None:
    cases = patients(" ".join(f"p{k}" for k in range(50)))
    usual = {case.patient for case in split(cases)[1]}
    fixed = [replace(case, side="training" if case.patient in usual else "validation") for case in cases]
    assert {case.patient for case in split(fixed)[0]} == usual
    mixed = [replace(cases[0], side="validation"), *cases[1:]]
    assert {case.patient for case in split(mixed)[1]} == usual | {"p0"}


def test_a_split_that_cannot_be_is_refused() -> None:
    a, b = patients("a b")
    again = replace(a, case="a2")
    assert "1 patient" in refusal(lambda: split([a, again])).cause
    assert "both sides: a" in refusal(lambda: split([replace(a, side="training"), replace(again, side="validation"), b])).cause
    assert "no patient for validation" in refusal(lambda: split([replace(a, side="training"), replace(b, side="training")])).cause
