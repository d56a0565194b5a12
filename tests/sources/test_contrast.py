"""Drawn contrasts stay within what MR shows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.sources.contrast import KINDS, MEANS, draw_contrast
from medsynth.sources.tissues import COUNT, INDEX

seeds = st.integers(0, 2**32 - 1)


def test_the_kinds_cover_all_training() -> None:
    assert sum(KINDS.values()) == pytest.approx(1)
    assert set(KINDS) == set(MEANS) | {"random"}


@settings(deadline=None)
@given(seeds)
def test_a_seed_gives_one_contrast(seed: int) -> None:
    first, second = (draw_contrast(np.random.default_rng(seed)) for _ in range(2))
    assert first.kind == second.kind
    np.testing.assert_array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(first.sd, second.sd)


@settings(deadline=None)
@given(seeds, st.sampled_from(list(KINDS)))
def test_no_contrast_has_signal_in_air_or_much_in_compact_bone(seed: int, kind: str) -> None:
    contrast = draw_contrast(np.random.default_rng(seed), kind)
    assert contrast.kind == kind
    assert contrast.mean.shape == contrast.sd.shape == (COUNT,)
    assert (contrast.mean >= 0).all()
    assert (contrast.sd >= 0).all()
    assert contrast.mean[[INDEX["air"], INDEX["inner_air"]]].max() <= 0.05
    assert contrast.mean[INDEX["cortical"]] <= 0.3


@settings(deadline=None)
@given(seeds, st.sampled_from(list(MEANS)))
def test_tissues_keep_their_ranges_and_none_is_forgotten(seed: int, kind: str) -> None:
    mean = draw_contrast(np.random.default_rng(seed), kind).mean
    for tissue, (low, high) in MEANS[kind].items():
        assert low - 1e-6 <= mean[INDEX[tissue]] <= high + 1e-6
    air = [INDEX["air"], INDEX["inner_air"]]
    assert (np.delete(mean, air) > 0).all()


@settings(deadline=None)
@given(seeds)
def test_brain_is_ordered_as_each_sequence_orders_it(seed: int) -> None:
    def shown(kind: str) -> tuple[float, float, float]:
        mean = draw_contrast(np.random.default_rng(seed), kind).mean
        return mean[INDEX["csf"]], mean[INDEX["grey"]], mean[INDEX["white"]]

    csf, grey, white = shown("t1")
    assert csf < grey < white
    csf, grey, white = shown("t2")
    assert white <= grey < csf
    csf, grey, white = shown("flair")
    assert csf < min(grey, white)
