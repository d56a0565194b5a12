"""HU windows: names, parsing, grey levels."""

from pathlib import Path

import numpy as np
import pytest

from medsynth.core import windows
from medsynth.core.errors import Exit, UsageError


def test_a_name_gives_its_width_and_level() -> None:
    lung = windows.parse("lung")
    assert (lung.name, lung.width, lung.level) == ("lung", 1500, -600)
    assert windows.parse(" Temporal-Bone ") is windows.WINDOWS["temporal-bone"]


@pytest.mark.parametrize(("text", "width", "level"), [("400,40", 400, 40), ("1500, -600", 1500, -600), ("80.5,2.5", 80.5, 2.5)])
def test_two_numbers_give_a_window_of_that_width_and_level(text: str, width: float, level: float) -> None:
    window = windows.parse(text)
    assert (window.name, window.width, window.level) == ("custom", width, level)


@pytest.mark.parametrize("text", ["", "brian", "400", "400,40,1", "0,40", "-400,40", "nan,40", "400,inf", "a,b"])
def test_what_is_no_window_is_refused_with_the_list_of_names(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        windows.parse(text)
    assert caught.value.code == "E-WINDOW"
    assert caught.value.exit == Exit.USAGE
    assert all(name in caught.value.remedy for name in windows.WINDOWS)


def test_a_window_is_black_at_its_lower_end_grey_at_its_level_and_white_at_its_upper_end() -> None:
    hu = np.array([[-1024.0, 0.0, 40.0, 80.0, 3000.0]], dtype=np.float32)
    assert windows.apply(windows.parse("brain"), hu).tolist() == [[0, 0, 128, 255, 255]]


def test_grey_levels_never_fall_while_hu_rise() -> None:
    hu = np.linspace(-1100, 3200, 5000, dtype=np.float32)
    for window in windows.WINDOWS.values():
        assert np.all(np.diff(windows.apply(window, hu).astype(int)) >= 0)


def test_name_width_and_level_stand_in_the_caption() -> None:
    assert windows.parse("bone").caption == "bone window: W 1800 L 400 HU"
    assert "W 401.5 L -3 HU" in windows.parse("401.5,-3").caption


def test_a_scan_without_unit_is_shown_by_percentiles_and_says_so() -> None:
    scale = windows.percentiles(np.arange(1001, dtype=np.float32))
    assert (scale.low, scale.high) == (5.0, 995.0)
    assert "percentiles" in scale.caption
    assert "no HU" in scale.caption
    assert windows.apply(scale, np.array([0.0, 5.0, 995.0, 1000.0])).tolist() == [0, 0, 255, 255]


def test_a_constant_scan_has_a_scale_that_does_not_divide_by_zero() -> None:
    scale = windows.percentiles(np.full((4, 4), 7.0, dtype=np.float32))
    assert windows.apply(scale, np.array([7.0], dtype=np.float32)).tolist() == [0]


def test_hu_are_told_by_their_air_or_by_their_fat_and_mr_is_not_taken_for_them() -> None:
    rng = np.random.default_rng(0)
    air = np.array([-1000.0] * 5 + [40.0] * 95, dtype=np.float32)
    padded = np.array([-2000.0] * 5 + [-100.0] * 10 + [40.0] * 85, dtype=np.float32)
    standardised = rng.standard_normal(1000, dtype=np.float32)
    assert windows.plausible_hu(air)
    assert windows.plausible_hu(padded)
    assert not windows.plausible_hu(standardised)
    assert not windows.plausible_hu(np.abs(standardised) * 1000)


def test_the_documentation_lists_every_window_as_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "preview.md").read_text(encoding="utf-8")
    for window in windows.WINDOWS.values():
        assert f"| `{window.name}` | {window.width:g} | {window.level:g} |" in page
