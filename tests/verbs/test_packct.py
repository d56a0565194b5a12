"""Packing scans for pretraining: what counts as a CT, what as a head label map, what is left out, and what is not done twice."""

import errno
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny

from medsynth.core.errors import ScanError
from medsynth.sources import unlabelled
from medsynth.sources.unlabelled import Item, read_packed
from medsynth.verbs.packct import pack

SPACING_MM = 2.0


def test_a_ct_is_packed_on_the_isotropic_grid(tmp_path: Path) -> None:
    _write(tmp_path / "ct" / "thorax.nii.gz", spacing_mm=(1.0, 1.0, 4.0))
    (item,) = _pack(tmp_path)
    packed = read_packed(item.path)
    assert (item.kind, item.name) == ("ct", "thorax")
    assert packed.dtype == np.int16
    assert packed.shape == (13, 12, 43)
    assert packed.min() == pytest.approx(-1000, abs=30)
    assert packed[6, 6, 22] == pytest.approx(800, abs=30)


def test_a_scan_is_packed_once_and_again_when_it_changes(tmp_path: Path) -> None:
    said: list[str] = []
    _write(tmp_path / "ct" / "a.nii.gz")
    first, again = (_pack(tmp_path, said) for _ in range(2))
    assert first == again
    assert said == ["packed 1/1 a"]
    _write(tmp_path / "ct" / "a.nii.gz", shift=5)
    (changed,) = _pack(tmp_path, said)
    assert changed.path != first[0].path
    assert len(said) == 2


def test_another_spacing_is_another_file(tmp_path: Path) -> None:
    _write(tmp_path / "ct" / "a.nii.gz")
    (coarse,) = pack([tmp_path / "ct"], 4.0, tmp_path / "cache", say=_quietly)
    assert coarse.path != _pack(tmp_path)[0].path


def test_head_label_maps_are_passed_on_as_they_are(tmp_path: Path) -> None:
    maps = tiny.write_label_maps(tmp_path / "ct")
    items = _pack(tmp_path)
    assert items == [Item("head", f"tiny_{k:02}", maps / f"tiny_{k:02}.nii.gz") for k in (1, 2, 3)]


@pytest.mark.parametrize("kind", ["labels", "brain", "mr", "thin"])
def test_what_is_neither_is_left_out_by_name(tmp_path: Path, kind: str) -> None:
    """Organ labels, a brain without skull, an MR, and a slab of 4 mm beside a good CT."""
    said: list[str] = []
    _write(tmp_path / "ct" / "good.nii.gz")
    organs = np.random.default_rng(0).integers(0, 90, (20, 20, 20)).astype(np.float32)
    brain = tiny.labels() * np.isin(tiny.labels(), (2, 3, 41, 42))
    slab = np.full((20, 20, 2), -1000.0, dtype=np.float32)
    slab[5:15, 5:15] = 300
    array = {"labels": organs, "brain": brain.astype(np.float32), "mr": organs * 7.5, "thin": slab}[kind]
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "ct" / "odd.nii.gz")
    assert [item.name for item in _pack(tmp_path, said)] == ["good"]
    (line,) = [line for line in said if line.startswith("left out")]
    assert "odd" in line
    assert str(tmp_path) not in line


def test_an_unreadable_scan_does_not_stop_the_others(tmp_path: Path) -> None:
    said: list[str] = []
    _write(tmp_path / "ct" / "good.nii.gz")
    (tmp_path / "ct" / "broken.nii.gz").write_bytes(b"no gzip")
    assert [item.name for item in _pack(tmp_path, said)] == ["good"]
    assert any(line.startswith("left out: broken") for line in said)


def test_patterns_leave_scans_out_unread(tmp_path: Path) -> None:
    for name in ("a_1", "a_2", "b"):
        _write(tmp_path / "ct" / f"{name}.nii.gz")
    said: list[str] = []
    items = pack([tmp_path / "ct"], SPACING_MM, tmp_path / "cache", exclude=("a_*",), say=said.append)
    assert [item.name for item in items] == ["b"]
    assert said == ["packed 1/1 b"]


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "ct" / "a.nii.gz")
    with pytest.raises(ScanError, match="no CT") as caught:
        pack([tmp_path / "ct"], SPACING_MM, tmp_path / "cache", exclude=("*",), say=_quietly)
    assert caught.value.code == "E-EMPTY"


def test_a_full_disk_says_where_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, **arrays: np.ndarray) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unlabelled.np, "savez_compressed", full)
    _write(tmp_path / "ct" / "a.nii.gz")
    with pytest.raises(ScanError, match="no space is left") as caught:
        _pack(tmp_path)
    assert caught.value.code == "E-DISK"
    assert list((tmp_path / "cache").iterdir()) == []


def test_real_cts_are_recognised_and_their_label_map_is_not(shared_data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    keep = ("totalseg_abdomenpelvis_3mm", "totalseg_abdomenpelvis_3mm_seg", "pelvis_TCGA-BC-A10W_native_slab16")
    (tmp_path / "ct").mkdir()
    for name in keep:
        (tmp_path / "ct" / f"{name}.nii.gz").symlink_to(shared_data / "ct" / f"{name}.nii.gz")
    items = pack([tmp_path / "ct"], 3.0, tmp_path / "cache", say=said.append)
    assert [item.name for item in items] == [keep[2], keep[0]]
    assert read_packed(items[1].path).shape == (122, 101, 112)
    assert sum(line.startswith(f"left out: {keep[1]}") for line in said) == 1


def _pack(folder: Path, said: list[str] | None = None) -> list[Item]:
    return pack([folder / "ct"], SPACING_MM, folder / "cache", say=_quietly if said is None else said.append)


def _write(path: Path, *, spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0), shift: int = 0) -> None:
    """A bar of bone in soft tissue in air, 26 x 24 x 22 voxels."""
    ct_hu = np.full((26, 24, 22), -1000.0, dtype=np.float32)
    ct_hu[4:22, 4:20] = 40
    ct_hu[9 + shift : 17 + shift, 8:16] = 800
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(ct_hu, np.diag([*spacing_mm, 1.0])), path)


def _quietly(line: str) -> None:
    """Keeps the test's output clean."""
