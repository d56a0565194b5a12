"""`medsynth preview`: where the picture goes, what is drawn, what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageDraw

from medsynth.core.errors import MedsynthError, ScanError, UsageError
from medsynth.scans.folder import Choices
from medsynth.verbs import picture
from medsynth.verbs.preview import preview

Draw = Callable[..., Path]


def write(path: Path, *, shift_mm: float = 0.0, shape: tuple[int, int, int] = (30, 34, 20), unit: str = "HU") -> Path:
    array = np.full(shape, -1000, dtype=np.int16)
    array[6:-6, 6:-6, 4:-4] = 40
    array[8:12, 8:12, 8:12] = 700
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    affine[:3, 3] = (-60 + shift_mm, -68, -50)
    nib.save(nib.Nifti1Image(array if unit == "HU" else (array + 1000).astype(np.int16), affine), path)
    return path


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every piece of text that is drawn."""
    drawn: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _, __, text, **___: drawn.append(text))
    return drawn


def draw(
    path: Path,
    other: Path | None = None,
    out: Path | None = None,
    *,
    windows: tuple[str, ...] = (),
    at: str = "",
    beside: tuple[Path, ...] = (),
    uncertainty: Path | None = None,
) -> Path:
    return preview(path, other, out, windows=windows, at=at, choices=Choices(), beside=beside, uncertainty=uncertainty)


def test_the_picture_lies_beside_the_scan_under_its_name_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = draw(write(tmp_path / "head.nii.gz"))
    assert target == tmp_path.resolve() / "head_preview.png"
    with Image.open(target) as image:
        assert image.format == "PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["head.nii.gz", "head_preview.png"]


def test_out_is_a_file_in_a_new_folder_or_a_folder_that_is_there(tmp_path: Path) -> None:
    scan = write(tmp_path / "head.nii.gz")
    assert draw(scan, out=tmp_path / "new" / "a.png") == tmp_path / "new" / "a.png"
    assert draw(scan, out=tmp_path / "new") == tmp_path / "new" / "head_preview.png"
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "new" / "head_preview.png").read_bytes()


def test_a_series_keeps_its_folder_clean(shared_data: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_data / "dicom" / "ct_headphantom_tilt", tmp_path / "phantom")
    assert draw(tmp_path / "phantom") == tmp_path.resolve() / "phantom_preview.png"
    assert not list((tmp_path / "phantom").glob("*.png"))


def test_windows_are_drawn_in_the_order_they_were_asked_for(tmp_path: Path, texts: list[str]) -> None:
    draw(write(tmp_path / "head.nii.gz"), windows=("bone", "400,40"))
    joined = " ".join(texts)
    assert 0 < joined.index("bone window: W 1800 L 400 HU") < joined.index("custom window: W 400 L 40 HU")
    assert "head-soft" not in joined
    assert "CT, by its values" in joined


def test_without_windows_a_ct_is_shown_in_soft_tissue_and_bone_and_an_mr_by_percentiles(tmp_path: Path, texts: list[str]) -> None:
    draw(write(tmp_path / "ct.nii.gz"))
    assert [name in " ".join(texts) for name in ("head-soft window", "bone window", "percentiles")] == [True, True, False]
    texts.clear()
    draw(write(tmp_path / "mr.nii.gz", unit=""))
    assert [name in " ".join(texts) for name in ("head-soft window", "bone window", "percentiles")] == [False, False, True]
    assert "MR, by its values" in " ".join(texts)


def test_a_pair_is_drawn_with_its_difference(tmp_path: Path, texts: list[str]) -> None:
    target = draw(write(tmp_path / "ref.nii.gz"), write(tmp_path / "pred.nii.gz"), windows=("brain",))
    assert target.name == "ref_preview.png"
    assert {"reference", "prediction", "difference", "prediction - reference", "pred   against   ref"} <= set(texts)


def test_the_planes_go_through_the_point_that_was_asked_for(tmp_path: Path, texts: list[str]) -> None:
    draw(write(tmp_path / "head.nii.gz"), at="-20,-28,10")
    assert {"x = -20.0 mm", "y = -28.0 mm", "z = 10.0 mm"} <= set(texts)


def test_what_medsynth_made_is_called_synthetic_and_other_scans_are_not(tmp_path: Path, texts: list[str]) -> None:
    scan = write(tmp_path / "head_ct.nii.gz")
    (tmp_path / "head_ct.json").write_text('{"Modality": "MR", "GeneratedBy": [{"Name": "other"}]}')
    draw(scan)
    assert picture.SYNTHETIC not in texts
    (tmp_path / "head_ct.json").write_text('{"GeneratedBy": {"Name": "medsynth", "Version": "1"}}')
    draw(scan)
    assert picture.SYNTHETIC in texts
    texts.clear()
    draw(write(tmp_path / "ref.nii.gz"), scan)
    assert picture.SYNTHETIC in texts


def test_further_results_and_a_map_stand_beside_the_reference_with_their_psnr(tmp_path: Path, texts: list[str]) -> None:
    reference, result = write(tmp_path / "ref.nii.gz"), write(tmp_path / "net_ct.nii.gz")
    tv = nib.load(write(tmp_path / "tv_ct.nii.gz"))
    nib.save(nib.Nifti1Image((np.asarray(tv.dataobj) + 41).astype(np.int16), tv.affine), tmp_path / "tv_ct.nii.gz")
    (tmp_path / "tv_ct.json").write_text('{"Reconstruction": {"Method": "tv", "Views": 18}}')
    (tmp_path / "net_ct.json").write_text('{"GeneratedBy": {"Name": "medsynth"}, "Warnings": ["18 views do not show soft tissue"]}')
    draw(reference, result, beside=(tmp_path / "tv_ct.nii.gz",), uncertainty=write(tmp_path / "map.nii.gz"), windows=("abdomen",))
    headings = [text for text in texts if text in ("reference", "tv, 18 views", "net_ct", "difference", "expected error")]
    assert headings == ["reference", "tv, 18 views", "net_ct", "difference", "expected error"]
    assert {"PSNR 40.0 dB, span 4096 HU", "PSNR inf dB, span 4096 HU", "net_ct - reference", "0 to 200 HU"} <= set(texts)
    assert "warning: 18 views do not show soft tissue" in texts


def test_a_map_alone_stands_beside_its_ct(tmp_path: Path, texts: list[str]) -> None:
    draw(write(tmp_path / "ct.nii.gz"), uncertainty=write(tmp_path / "map.nii.gz"))
    assert "expected error" in texts
    assert not {"difference", "reference"} & set(texts)


@pytest.mark.parametrize("option", ["beside", "uncertainty"])
def test_what_stands_beside_must_lie_on_the_same_grid(option: str, tmp_path: Path) -> None:
    other = write(tmp_path / "other.nii.gz", shift_mm=1.0)
    with pytest.raises(ScanError) as caught:
        draw(write(tmp_path / "ref.nii.gz"), **{option: (other,) if option == "beside" else other})
    assert caught.value.code == "E-GRID"


@pytest.mark.parametrize(
    ("other", "found"), [({"shift_mm": 1.0}, "corners up to 1 mm apart"), ({"shape": (30, 34, 21)}, "30 x 34 x 20 and 30 x 34 x 21 voxels")]
)
def test_a_pair_on_two_grids_is_refused(tmp_path: Path, other: dict[str, object], found: str) -> None:
    with pytest.raises(ScanError) as caught:
        draw(write(tmp_path / "ref.nii.gz"), write(tmp_path / "pred.nii.gz", **other))
    assert caught.value.code == "E-GRID"
    assert found in caught.value.cause
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"windows": ("brian",)}, "E-WINDOW"),
        ({"at": "1,2"}, "E-AT"),
        ({"at": "a,b,c"}, "E-AT"),
        ({"at": "0,0,nan"}, "E-AT"),
        ({"at": "0,0,900"}, "E-AT"),
        ({"out": Path("picture.jpg")}, "E-OUT"),
    ],
)
def test_what_was_asked_for_wrongly_is_refused(tmp_path: Path, options: dict[str, object], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        draw(write(tmp_path / "head.nii.gz"), **options)
    assert caught.value.code == code


def test_an_hu_window_for_an_mr_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        draw(write(tmp_path / "mr.nii.gz", unit=""), windows=("brain",))
    assert caught.value.code == "E-WINDOW"
    assert "--window" in caught.value.remedy


def test_a_folder_of_several_scans_is_refused_and_names_them(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz")
    write(tmp_path / "b.nii.gz")
    with pytest.raises(MedsynthError) as caught:
        draw(tmp_path)
    assert caught.value.code == "E-SERIES"
    assert "a, b" in caught.value.cause


@pytest.mark.parametrize(
    ("path", "in_hu"),
    [
        ("ct/abdomen_C3L-00189_native_slab16.nii.gz", True),
        ("ct/totalseg_thorax_cta_1p5mm.nii.gz", True),
        ("eval/pelvis_ref.nii.gz", True),
        ("mr/mne_ecog/T1.mgz", False),
        ("mr/totalseg_abdomen_mr_3mm.nii.gz", False),
        ("formats/brain1_image.nrrd", False),
    ],
)
def test_real_scans_whose_file_does_not_say_what_they_are_are_told_apart(
    shared_data: Path, tmp_path: Path, texts: list[str], path: str, in_hu: bool
) -> None:
    draw(shared_data / path, out=tmp_path / "a.png")
    assert any(text.startswith("CT, by its values" if in_hu else "MR, by its values") for text in texts)
