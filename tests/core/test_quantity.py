"""Laws of the maps between a scan's unit and the network's."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medsynth.core.quantity import CT, HU_MAX, HU_MIN, MR, Scale

finite_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_every_int16_hu_survives_the_round_trip() -> None:
    scale = CT().fit()
    hu = np.arange(-(2**15), 2**15, dtype=np.int16)
    np.testing.assert_array_equal(scale.decode(scale.encode(hu)).astype(np.float32), hu)


# Below a ten-thousandth of a HU the offset of the interval swallows the last bits of a float32; no scanner resolves that.
@settings(deadline=None)
@given(arrays(np.float32, 16, elements=st.floats(-(2.0**15), 2.0**15, width=32).filter(lambda hu: hu == 0 or abs(hu) > 1e-4)))
def test_every_float32_hu_survives_the_round_trip(hu: np.ndarray) -> None:
    scale = CT().fit()
    np.testing.assert_array_equal(scale.decode(scale.encode(hu)).astype(np.float32), hu)


@settings(deadline=None)
@given(arrays(np.float32, 16, elements=finite_float32), st.floats(1e-6, 1e6))
def test_every_float32_mr_signal_survives_the_round_trip(mr: np.ndarray, half_width: float) -> None:
    scale = Scale(centre=0.0, half_width=half_width)
    np.testing.assert_array_equal(scale.decode(scale.encode(mr)).astype(np.float32), mr)


def test_the_hu_interval_fills_the_network_interval_for_every_scan() -> None:
    scale = CT().fit(np.full((2, 2, 2), 70.0))
    assert (scale.encode(HU_MIN), scale.encode(HU_MAX)) == (-1, 1)
    assert scale == CT().fit()


@settings(deadline=None)
@given(st.floats(1e-3, 1e4))
def test_the_mr_scale_follows_the_gain_of_the_scanner(gain: float) -> None:
    scan = _head_in_air()
    assert MR().fit(gain * scan).half_width == pytest.approx(gain * MR().fit(scan).half_width, rel=1e-5)


def test_the_mr_scale_hardly_sees_the_air_around_the_head() -> None:
    scan = _head_in_air()
    assert MR().fit(np.pad(scan, 4)).half_width == pytest.approx(MR().fit(scan).half_width, rel=0.01)


def test_the_mr_scale_maps_bright_tissue_to_one() -> None:
    scan = _head_in_air()
    foreground = MR().fit(scan).encode(scan)[4:-4, 4:-4, 4:-4]
    assert np.mean(foreground <= 1) == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_an_mr_without_signal_has_a_positive_scale(value: float) -> None:
    assert MR().fit(np.full((4, 4, 4), value, dtype=np.float32)).half_width > 0


def test_tensors_pass_through_a_scale_with_their_type() -> None:
    torch = pytest.importorskip("torch")
    hu = torch.tensor([-1000.0, 40.0, 3000.0])
    network = CT().fit().encode(hu)
    assert network.dtype == torch.float32
    torch.testing.assert_close(CT().fit().decode(network), hu)


def test_quantities_import_no_torch() -> None:
    code = "import sys, medsynth.core.quantity, medsynth.core.task, medsynth.core.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _head_in_air() -> np.ndarray:
    """float32 [20 20 20]: air below 2 % around tissue between .4 and 1."""
    rng = np.random.default_rng(0)
    scan = rng.uniform(0, 0.02, (20, 20, 20))
    scan[4:-4, 4:-4, 4:-4] = rng.uniform(0.4, 1, (12, 12, 12))
    return scan.astype(np.float32)
