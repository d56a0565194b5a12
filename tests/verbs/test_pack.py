"""Packing: the grid and the values that inference has, done once, whole files only, and a full disk that is named."""

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantom
import pytest
import torch

from medsynth import tasks
from medsynth.core.errors import ScanError
from medsynth.core.task import Task
from medsynth.core.volume import Volume
from medsynth.scans import grid
from medsynth.scans.pairs import Case, find_pairs
from medsynth.sources.paired import AIR, BODY, PACKED, UNKNOWN, PairedScans
from medsynth.verbs import pack as packing
from medsynth.verbs.pack import BYTES_PER_VOXEL, DIGESTS, pack, pack_scans, unpacked

CARD_MM = (4.0, 4.0, 4.0)
TASK: Task = tasks.get("mri2ct")


def ct_head(spacing_mm: float = phantom.SPACING_MM) -> np.ndarray:
    """float32 HU: soft tissue, bone where the MR's skull is dark, air, and a couch below the head that no MR shows."""
    head, mr = phantom.head_mask(spacing_mm), phantom.mr_head(spacing_mm)
    ct_hu = np.where(head, 40.0, -1000.0)
    ct_hu[head & (mr < 60)] = 900.0
    ct_hu[phantom.sinus_mask(spacing_mm)] = -1000.0
    ct_hu[:, 0] = 100.0
    return ct_hu.astype(np.float32)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Case]:
    """Two patients, the first with a mask."""
    for name, seed in (("a", 0), ("b", 1)):
        phantom.write_nifti(tmp_path / "data" / name / "mr.nii.gz", phantom.mr_head(seed=seed))
        phantom.write_nifti(tmp_path / "data" / name / "ct.nii.gz", ct_head())
    phantom.write_nifti(tmp_path / "data" / "a" / "mask.nii.gz", phantom.head_mask())
    return find_pairs(tmp_path / "data")


def packed(cases: list[Case], cache: Path, spacing_mm: tuple[float, float, float] = CARD_MM) -> tuple[list[Path], list[str]]:
    said: list[str] = []
    return pack(cases, spacing_mm, TASK, cache, said.append), said


def moved(scan: Volume, by_mm: tuple[float, float, float]) -> Volume:
    affine = scan.affine_ras.copy()
    affine[:3, 3] += by_mm
    return replace(scan, affine_ras=affine)


def test_a_packed_pair_is_what_inference_will_prepare(pairs: list[Case], tmp_path: Path) -> None:
    (path, _), _ = packed(pairs, tmp_path / "cache")
    voxels = np.load(path)
    assert voxels.dtype == PACKED
    assert voxels.shape == phantom.shape()
    prepared = TASK.prepare(grid.to_card(phantom.volume(np.rint(phantom.mr_head())), CARD_MM), phantom.head_mask(), False)
    np.testing.assert_allclose(voxels["image"], prepared.image[0], atol=1e-3, rtol=1e-3)
    assert np.array_equal(voxels["known"] == BODY, phantom.head_mask())
    assert np.array_equal(voxels["ct_hu"][phantom.head_mask()], ct_head()[phantom.head_mask()])


def test_what_lies_outside_the_body_in_the_ct_is_air(pairs: list[Case], tmp_path: Path) -> None:
    for path in packed(pairs, tmp_path / "cache")[0]:
        voxels = np.load(path)
        assert (voxels["known"] == AIR).any()
        assert (voxels["ct_hu"][voxels["known"] == AIR] == TASK.outside).all()


def test_without_a_mask_the_body_is_found_as_in_inference(pairs: list[Case], tmp_path: Path) -> None:
    voxels = np.load(packed(pairs, tmp_path / "cache")[0][1])
    prepared = TASK.prepare(grid.to_card(phantom.volume(np.rint(phantom.mr_head(seed=1))), CARD_MM), None, False)
    assert np.array_equal(voxels["known"] == BODY, prepared.region)


@pytest.mark.parametrize("spacing_mm", [(3.0, 3.0, 5.0), (8.0, 8.0, 8.0)])
def test_packed_scans_lie_on_the_cards_grid(pairs: list[Case], tmp_path: Path, spacing_mm: tuple[float, float, float]) -> None:
    voxels = np.load(packed(pairs, tmp_path / "cache", spacing_mm)[0][0])
    assert np.array(voxels.shape) * spacing_mm == pytest.approx(np.array(phantom.VIEW_MM), abs=8.1)
    volume_ml = (voxels["known"] == BODY).sum() * np.prod(spacing_mm)
    assert volume_ml == pytest.approx(phantom.head_mask().sum() * 4.0**3, rel=0.03)


def test_a_ct_on_another_grid_is_brought_onto_the_mrs() -> None:
    mr, ct = phantom.volume(phantom.mr_head()), phantom.volume(ct_head(2.0), affine=phantom.affine_ras(2.0))
    mask = phantom.volume(phantom.head_mask().astype(np.float32))
    packed_hu = pack_scans(mr, ct, mask, CARD_MM, TASK)["ct_hu"].astype(float)
    x, y, z = phantom.shape()
    blocks = ct.array.reshape(x, 2, y, 2, z, 2).mean((1, 3, 5))  # each voxel of 4 mm is eight of 2 mm
    errors = [np.abs(packed_hu - np.roll(blocks, shift, 0))[phantom.head_mask()].mean() for shift in (-1, 0, 1)]
    assert errors[1] < 35  # the smoothing that goes with a coarser grid
    assert min(errors[0], errors[2]) > 3 * errors[1]


def test_where_one_scan_does_not_reach_nothing_is_known_and_nothing_is_stored() -> None:
    mr = phantom.volume(phantom.mr_head())
    ct = moved(phantom.volume(ct_head()), (0, 0, 80.0))  # 20 slices
    voxels = pack_scans(mr, ct, None, CARD_MM, TASK)
    assert voxels.shape == (*phantom.shape()[:2], phantom.shape()[2] - 20)
    assert (voxels["known"] != UNKNOWN).all()
    turn = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    upright, oblique = phantom.volume(ct_head()), phantom.volume(phantom.mr_head(), affine=turn @ phantom.affine_ras())
    wide = phantom.volume(np.pad(ct_head(), 30, constant_values=-1000), affine=moved(mr, (-120, -120, -120)).affine_ras)
    for source, target in ((mr, phantom.volume(ct_head(), affine=turn @ phantom.affine_ras())), (oblique, upright), (oblique, wide)):
        voxels = pack_scans(source, target, None, CARD_MM, TASK)
        assert 0.01 < (voxels["known"] == UNKNOWN).mean() < 0.6
        assert voxels["known"][0, 0, 30] == UNKNOWN


def test_scans_that_share_no_body_are_refused_with_the_cases_name(pairs: list[Case], tmp_path: Path) -> None:
    far = phantom.affine_ras()
    far[:3, 3] += 500
    phantom.write_nifti(pairs[1].target, ct_head(), far)
    with pytest.raises(ScanError, match="b: the two scans share no part") as caught:
        packed(pairs, tmp_path / "cache")
    assert caught.value.code == "E-GEOMETRY"


def test_bright_vessels_and_metal_stay_in_range() -> None:
    mr, ct_hu = phantom.mr_head(), ct_head()
    mr[20:22, 20:22, 30], ct_hu[24, 28, 30], ct_hu[24, 28, 31] = 1e9, 30000.0, -3000.0
    voxels = pack_scans(phantom.volume(mr), phantom.volume(ct_hu), None, CARD_MM, TASK)
    assert np.isfinite(voxels["image"].astype(np.float32)).all()
    assert voxels["ct_hu"].min() >= TASK.range[0]
    assert voxels["ct_hu"].max() == TASK.range[1]


def test_packing_again_reads_no_scan(pairs: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, said = packed(pairs, tmp_path / "cache")
    assert said == ["packed 1/2 a", "packed 2/2 b"]

    def opened(*_: object) -> None:
        raise AssertionError("a scan was read")

    monkeypatch.setattr(packing, "read_scan", opened)
    monkeypatch.setattr(packing.hashlib, "file_digest", opened)
    assert packed(pairs, tmp_path / "cache") == (first, [])
    assert unpacked(pairs, CARD_MM, TASK, tmp_path / "cache") == []


def test_a_damaged_record_of_digests_costs_time_only(pairs: list[Case], tmp_path: Path) -> None:
    first, _ = packed(pairs, tmp_path / "cache")
    for text in ("{", "[1]", '{"a": [1]}', '{"a": 3}'):
        (tmp_path / "cache" / DIGESTS).write_text(text)
        assert unpacked(pairs, CARD_MM, TASK, tmp_path / "cache") == pairs
        assert packed(pairs, tmp_path / "cache") == (first, [])


def test_what_changes_is_packed_anew_and_only_that(pairs: list[Case], tmp_path: Path) -> None:
    first, _ = packed(pairs, tmp_path / "cache")
    phantom.write_nifti(pairs[1].source, phantom.mr_head(seed=7))
    assert unpacked(pairs, CARD_MM, TASK, tmp_path / "cache") == pairs[1:]
    second, said = packed(pairs, tmp_path / "cache")
    assert said == ["packed 2/2 b"]
    assert (second[0], second[1] != first[1]) == (first[0], True)
    without_mask = [replace(pairs[0], mask=None)]
    other_grid = packed(pairs[:1], tmp_path / "cache", (6.0, 6.0, 6.0))[0]
    assert len({*first, *second, *packed(without_mask, tmp_path / "cache")[0], *other_grid}) == 5


def test_a_copied_scan_is_known_by_its_bytes(pairs: list[Case], tmp_path: Path) -> None:
    first, _ = packed(pairs, tmp_path / "cache")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert packed(find_pairs(tmp_path / "elsewhere"), tmp_path / "cache") == (first, [])


def test_a_series_is_packed_as_a_file_is(pairs: list[Case], tmp_path: Path) -> None:
    series = phantom.write_dicom(tmp_path / "series", phantom.mr_head(seed=0))
    from_files, from_series = (np.load(packed([case], tmp_path / "cache")[0][0]) for case in (pairs[0], replace(pairs[0], source=series)))
    assert np.array_equal(from_files, from_series)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_no_half_file(
    pairs: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    save = np.save

    def full(file: object, voxels: np.ndarray) -> None:
        if [path for path in (tmp_path / "cache").glob("*.npy") if not path.name.startswith(".")]:
            raise OSError(code, "no space")
        save(file, voxels)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ScanError, match="1 packed case") as caught:
        packed(pairs, tmp_path / "cache")
    assert caught.value.code == "E-DISK"
    assert len([file for file in (tmp_path / "cache").iterdir() if file.name != DIGESTS]) == 1
    monkeypatch.undo()
    assert packed(pairs, tmp_path / "cache")[1] == ["packed 2/2 b"]


def test_other_faults_of_the_disk_are_not_called_full(pairs: list[Case], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        packed(pairs, tmp_path / "file")


def test_a_packed_file_has_the_size_that_is_announced(pairs: list[Case], tmp_path: Path) -> None:
    (path, _), _ = packed(pairs, tmp_path / "cache")
    assert path.stat().st_size == pytest.approx(np.prod(phantom.shape()) * BYTES_PER_VOXEL, rel=0.01)


def test_packed_scans_train(pairs: list[Case], tmp_path: Path) -> None:
    files, _ = packed(pairs, tmp_path / "cache")
    scans = PairedScans(tuple(files), patch=(16, 16, 16), spacing_mm=CARD_MM, seed=0)
    condition, target = scans.training_pair(0, torch.device("cpu"))
    assert condition.image.shape == target.image.shape == target.weight.shape
