"""Packing of label maps: what a packed head holds, the cache, and the errors."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny
from scipy import ndimage

from medsynth.core.errors import ScanError
from medsynth.sources import packed
from medsynth.sources.packed import DEPTH_UNIT_MM, Head, load_heads, pack
from medsynth.sources.tissues import INDEX, label_table


def test_packed_tissues_are_the_labels_with_a_voxel_of_air_around(head: Head) -> None:
    assert head.tissue.dtype == head.depth.dtype == np.uint8
    np.testing.assert_array_equal(head.tissue, np.pad(label_table()[tiny.labels()], 1))


def test_depth_is_the_distance_to_the_surface(head: Head) -> None:
    middle = tuple(n // 2 for n in head.depth.shape)
    along_x = head.depth[:, middle[1], middle[2]] * DEPTH_UNIT_MM
    distance = np.abs(np.arange(len(along_x)) - (len(along_x) - 1) / 2)
    inside = distance < 26
    np.testing.assert_allclose(along_x[inside], 26 - distance[inside], atol=1.0)
    assert (along_x[~inside] == 0).all()


def test_the_cut_neck_is_no_skin() -> None:
    cut = tiny.labels()[:, :, 28:]
    lowest = pack(cut).depth[1:-1, 1:-1, 1]
    assert lowest[30, 32] * DEPTH_UNIT_MM > 20


def test_air_in_a_cavity_and_in_an_open_nostril_is_inside_the_head() -> None:
    label = tiny.labels()
    label[20:24, 30:34, 20:24] = 0
    label[28:32, 40:, 26:30] = 0
    tissue = pack(label).tissue[1:-1, 1:-1, 1:-1]
    assert (tissue[20:24, 30:34, 20:24] == INDEX["inner_air"]).all()
    assert (tissue[28:32, 40:48, 26:30] == INDEX["inner_air"]).all()
    assert tissue[0, 0, 0] == tissue[30, -1, 28] == INDEX["air"]


def test_specks_outside_the_head_are_dropped() -> None:
    label = tiny.labels()
    label[1:3, 1:3, 1:3] = 24
    np.testing.assert_array_equal(pack(label).tissue, pack(tiny.labels()).tissue)


def test_a_map_in_another_orientation_packs_to_the_same_head(tmp_path: Path, head: Head) -> None:
    turned = tiny.labels()[::-1, :, ::-1].transpose(2, 0, 1)
    affine = np.array([[0, -1, 0, 59], [0, 0, 1, 0], [-1, 0, 0, 55], [0, 0, 0, 1]], dtype=float)
    tiny.write_label_map(turned, tmp_path / "turned_01.nii.gz", affine)
    (found,) = load_heads(tmp_path, ("01",), cache=tmp_path / "cache")
    np.testing.assert_array_equal(found.tissue, head.tissue)
    np.testing.assert_array_equal(found.depth, head.depth)


def test_labels_without_a_tissue_are_named() -> None:
    label = tiny.labels()
    label[30, 32, 28] = 999
    with pytest.raises(ScanError, match="999") as caught:
        pack(label)
    assert caught.value.code == "E-MODALITY"


def test_a_label_map_that_is_not_there_is_named_without_its_folder(tmp_path: Path) -> None:
    maps = tiny.write_label_maps(tmp_path / "maps")
    with pytest.raises(ScanError, match="99") as caught:
        load_heads(maps, ("01", "99"), cache=tmp_path / "cache")
    assert caught.value.code == "E-EMPTY"
    assert str(tmp_path) not in str(caught.value)


def test_a_map_is_packed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, cache = tiny.write_label_maps(tmp_path / "maps"), tmp_path / "cache"
    (first,) = load_heads(maps, ("01",), cache=cache)
    monkeypatch.setattr(packed, "pack", _refuse)
    (second,) = load_heads(maps, ("01",), cache=cache)
    np.testing.assert_array_equal(first.tissue, second.tissue)
    assert [path.name.split("-")[0] for path in cache.iterdir()] == ["tiny_01"]


def test_a_map_that_changed_is_packed_anew(tmp_path: Path) -> None:
    maps, cache = tiny.write_label_maps(tmp_path / "maps"), tmp_path / "cache"
    (before,) = load_heads(maps, ("01",), cache=cache)
    tiny.write_label_map(tiny.labels(0.8), maps / "tiny_01.nii.gz")
    (after,) = load_heads(maps, ("01",), cache=cache)
    assert (after.tissue > 0).sum() < 0.6 * (before.tissue > 0).sum()


def test_a_packing_that_broke_off_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, cache = tiny.write_label_maps(tmp_path / "maps"), tmp_path / "cache"
    monkeypatch.setattr(packed.np, "savez_compressed", _write_half)
    with pytest.raises(OSError, match="disk full"):
        load_heads(maps, ("01",), cache=cache)
    monkeypatch.undo()
    (head,) = load_heads(maps, ("01",), cache=cache)
    np.testing.assert_array_equal(head.tissue, pack(tiny.labels()).tissue)


def test_heads_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    maps = tiny.write_label_maps(tmp_path / "maps")
    sizes = [int((head.tissue > 0).sum()) for head in load_heads(maps, ("03", "tiny_01", "02"), cache=tmp_path / "cache")]
    assert sizes[0] < sizes[2] < sizes[1]


def test_packed_maps_alone_are_data_enough(tmp_path: Path) -> None:
    """What is copied to a cluster need not hold the label maps."""
    maps, cache = tiny.write_label_maps(tmp_path / "maps"), tmp_path / "cache"
    (head,) = load_heads(maps, ("01",), cache=cache)
    (from_packed,) = load_heads(cache, ("01",), cache=tmp_path / "unused")
    np.testing.assert_array_equal(from_packed.tissue, head.tissue)
    assert not (tmp_path / "unused").exists()


def test_a_real_map_packs_to_one_head_with_its_airways(shared_data: Path) -> None:
    """Every other voxel, which packs in a tenth of the time."""
    image = nib.as_closest_canonical(nib.load(shared_data / "labels" / "head_synthseg_charm" / "training_seg_15.nii.gz"))
    labels = np.asarray(image.dataobj).astype(np.int64)[::2, ::2, ::2]
    head = pack(labels)
    assert head.tissue.shape == tuple(n + 2 for n in labels.shape)
    assert ndimage.label(head.tissue > 0)[1] == 1
    assert (head.tissue == INDEX["inner_air"]).sum() > 1000


def _refuse(labels: np.ndarray) -> Head:
    raise AssertionError("packed again")


def _write_half(path: Path, **arrays: np.ndarray) -> None:
    path.write_bytes(b"half of a file")
    raise OSError("disk full")
