"""The spectrum of noise in real CTs, measured: prints the table that `medsynth/sources/texture.py` holds.

    python benchmarks/spectrum.py --ct CT_FOLDER

Takes the slabs at native resolution (`*_native*.nii.gz`) whose name is not excluded below. Squares of 32 x 32 pixels of axial slices
are kept where each quarter has the mean of soft tissue and the quarters agree, and of these the smoothest tenth a scan, so that edges of
organs do not count. A quadratic surface is taken off each, and the power is averaged over rings of frequency (ICRU report 87). Each scan's
spectrum is normalised to unit variance first, so that a noisy scan does not outvote the others.
"""

import argparse
import datetime
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

EXCLUDED = ("head_jnifti",)  # tests only (README of the shared scans)
SQUARE = 32  # pixels
STRIDE = 16
SOFT_HU = (10.0, 130.0)
QUARTERS_AGREE_HU = 15.0
SMOOTHEST = 0.1
FEWEST = 10  # squares that a scan must have to count
RING_PER_MM = 0.05
RINGS = 16


class Measured(NamedTuple):
    """One scan: density [ring] in mm^2 (unit variance), sd_hu: median over the squares, squares: how many were used."""

    name: str
    pixel_mm: float
    density: np.ndarray
    sd_hu: float
    squares: int


def main() -> None:
    """Measure every scan, print them and their mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path, required=True)
    folder = parser.parse_args().ct
    files = [p for p in sorted(folder.glob("*_native*.nii.gz")) if not p.name.startswith(EXCLUDED)]
    rows = [row for row in (measure(path) for path in files) if row.squares >= FEWEST]
    for row in rows:
        print(f"{row.name[:44]:<44} {row.pixel_mm:5.2f} mm  sd {row.sd_hu:5.1f} HU  {row.squares:5d} squares  {_in_line(row.density)}")
    mean = np.mean([row.density for row in rows], axis=0)
    mean /= variance(mean)
    sds = [row.sd_hu for row in rows]
    print(f"# {len(rows)} scans, {datetime.date.today()}; sd {min(sds):.0f} to {max(sds):.0f} HU, median {np.median(sds):.0f}")
    print(f"NOISE_DENSITY_MM2 = ({', '.join(f'{value:.3f}' for value in mean)})")


def measure(path: Path) -> Measured:
    """The noise of one scan."""
    image = nib.load(path)
    pixel_mm = float(image.header.get_zooms()[0])
    squares = soft_squares(np.asarray(image.dataobj, dtype=np.float32))
    if not len(squares):
        return Measured(path.name, pixel_mm, np.zeros(RINGS), 0.0, 0)
    flat = detrended(squares)
    sd_hu = flat.std(axis=(1, 2))
    return Measured(path.name, pixel_mm, radial_density(flat, pixel_mm), float(np.median(sd_hu)), len(flat))


def soft_squares(ct_hu: np.ndarray) -> np.ndarray:
    """[n 32 32]: the smoothest of the squares of axial slices with the mean of soft tissue in each quarter."""
    views = np.lib.stride_tricks.sliding_window_view(ct_hu, (SQUARE, SQUARE), axis=(0, 1))[::STRIDE, ::STRIDE].reshape(-1, SQUARE, SQUARE)
    half = SQUARE // 2
    quarters = views.reshape(-1, 2, half, 2, half).mean(axis=(2, 4)).reshape(-1, 4)
    low, high = quarters.min(1), quarters.max(1)
    squares = views[(low > SOFT_HU[0]) & (high < SOFT_HU[1]) & (high - low < QUARTERS_AGREE_HU)]
    if not len(squares):
        return squares
    sd_hu = detrended(squares).std(axis=(1, 2))
    return squares[sd_hu <= np.quantile(sd_hu, SMOOTHEST)]


def detrended(squares: np.ndarray) -> np.ndarray:
    """Squares [n s s] without their best quadratic surface."""
    axis = np.linspace(-1, 1, squares.shape[1])
    x, y = np.meshgrid(axis, axis, indexing="ij")
    surface = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=-1).reshape(-1, 6)
    flat = squares.reshape(len(squares), -1).astype(np.float64)
    weights = flat @ np.linalg.pinv(surface).T
    return (flat - weights @ surface.T).reshape(squares.shape)


def radial_density(squares: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Mean power by ring [ring], mm^2, so that the integral over the plane of frequencies is 1."""
    side = squares.shape[1]
    window = np.outer(np.hanning(side + 2)[1:-1], np.hanning(side + 2)[1:-1])
    power = (np.abs(np.fft.fft2(squares * window)) ** 2).mean(axis=0)
    per_mm = np.fft.fftfreq(side, pixel_mm)
    ring = (np.hypot(per_mm[:, None], per_mm[None]) / RING_PER_MM).astype(int)
    inside = ring < RINGS
    total = np.bincount(ring[inside], power[inside], RINGS)
    count = np.bincount(ring[inside], minlength=RINGS)
    density = np.where(count > 0, total / np.maximum(count, 1), 0)
    return density / variance(density)


def variance(density: np.ndarray) -> float:
    """Integral of a radial density over the plane: the variance of the noise."""
    centres = (np.arange(len(density)) + 0.5) * RING_PER_MM
    return float((2 * np.pi * centres * density * RING_PER_MM).sum())


def _in_line(values: np.ndarray) -> str:
    return " ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    main()
