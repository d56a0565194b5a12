"""The table of tissues: complete, without contradictions, in the order of the network's classes."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsynth.generators.gdm import Config
from medsynth.sources.contrast import MEANS, TEXTURE
from medsynth.sources.labels import CLASSES
from medsynth.sources.tissues import COUNT, HU_RANGE, INDEX, NETWORK_CLASS, TISSUES, label_table


def test_no_label_means_two_tissues() -> None:
    labels = [label for tissue in TISSUES for label in tissue.labels]
    assert len(labels) == len(set(labels))


def test_each_label_leads_to_its_tissue_and_others_to_none() -> None:
    table = label_table()
    claimed = {label: index for index, tissue in enumerate(TISSUES) for label in tissue.labels}
    assert {label: int(table[label]) for label in claimed} == claimed
    assert (np.delete(table, list(claimed)) == 255).all()


def test_background_is_air_and_comes_first() -> None:
    """Packing and weighting take index 0 for what is outside."""
    assert label_table()[0] == INDEX["air"] == 0


def test_hu_ranges_ascend_and_air_is_fixed() -> None:
    assert (HU_RANGE[:, 0] <= HU_RANGE[:, 1]).all()
    assert (HU_RANGE[[INDEX["air"], INDEX["inner_air"]]] == -1000).all()


def test_classes_are_numbered_as_the_generator_numbers_them() -> None:
    assert set(NETWORK_CLASS) == set(range(CLASSES)) == set(range(len(Config().class_hu)))


@pytest.mark.parametrize("name", ["air", "inner_air", "fat", "cortical", "cancellous", "csf"])
def test_a_class_of_one_tissue_has_the_middle_of_its_range(name: str) -> None:
    """Else cross-entropy and L1 would pull at different values."""
    index = INDEX[name]
    assert HU_RANGE[index].mean() == Config().class_hu[NETWORK_CLASS[index]]


@pytest.mark.parametrize("kind", MEANS)
def test_contrasts_name_known_tissues_with_ranges_that_ascend(kind: str) -> None:
    assert set(MEANS[kind]) | set(TEXTURE) <= set(INDEX)
    assert all(0 <= low <= high for low, high in MEANS[kind].values())


def test_indices_fit_a_packed_map() -> None:
    assert len(INDEX) == COUNT < 255


@pytest.mark.parametrize("number", ["01", "16"])
def test_every_label_of_a_real_map_has_a_tissue(shared_data: Path, number: str) -> None:
    image = nib.load(shared_data / "labels" / "head_synthseg_charm" / f"training_seg_{number}.nii.gz")
    labels = np.unique(np.asarray(image.dataobj).astype(np.int64))
    assert len(labels) > 30
    assert labels[label_table()[labels] == 255].tolist() == []
