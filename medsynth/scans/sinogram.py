"""Sinogram files: arrays [slices, views, detectors] of line integrals or counts, and the geometry file that lies beside each.

.npz (its array "sinogram", or its only one), .npy, .h5 and .hdf5 (the same; needs h5py), .mha and .nrrd, whose first axis, which changes
fastest in the file, is the detector, the second the view, the third the slice. A file of two axes is one slice.
"""

import re
import zipfile
import zlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from medsynth.core.errors import ScanError, UsageError
from medsynth.scans import itk
from medsynth.scans.files import replacing

KEY = "sinogram"
SINO, GEOMETRY = "_sino", "_geometry.toml"
ARRAYS, IMAGES = (".npz", ".npy", ".h5", ".hdf5"), (".mha", ".nrrd")
Sinogram = Float32[np.ndarray, "s v d"]

LARGEST_INTEGRAL = 50.0  # of a line: a metre of steel; counts begin in the hundreds
SIGNAL = 0.05  # of the largest value: what is above lies in the shadow of the object
SHADOWED = 0.1  # share of views in which both neighbours of a dead cell are in the shadow
AIR_READS = 0.5  # line integral of the outermost cells from which the air between is no longer air
TOO_BRIGHT, TOO_DARK = 1.5, 0.5  # counts of air against i0


class Found(NamedTuple):
    """A sinogram that was found and not yet read. case: its name without ending and `_sino`. geometry: the file beside it, if any."""

    case: str
    file: Path
    geometry: Path | None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that say what was measured."""
        return (self.file,) if self.geometry is None else (self.file, self.geometry)


def find(path: Path) -> list[Found]:
    """The sinograms in a file or folder (with its sub-folders), in the order of their paths; none is no error.

    In a folder, what is named `<case>_sino` or has `<case>_geometry.toml` beside it; if there is no such file, all .npz, .npy and .h5. An
    .mha or .nrrd file is a scan unless it is named so. Raises UsageError E-PATH if there is no such path, ScanError E-SINOGRAM if two
    sinograms have one name.
    """
    if not path.exists():
        raise UsageError("E-PATH", f"there is no file or folder {path.name or path}", remedy="check the path")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file, path))
    candidates = [_found(file) for file in files if file.suffix.lower() in ARRAYS + IMAGES]
    named = [item for item in candidates if item.geometry is not None or item.file.stem.lower().endswith(SINO)]
    if path.is_file() or not named:
        named = [item for item in candidates if item in named or item.file.suffix.lower() in ARRAYS]
    names = [item.case.casefold() for item in named]
    twice = next((item for item in named if names.count(item.case.casefold()) > 1), None)
    if twice is not None:
        cause = f"two sinograms are named {twice.case}"
        raise ScanError("E-SINOGRAM", cause, remedy="give each a name of its own, or one folder at a time")
    return named


def read(found: Found) -> Sinogram:
    """The array as it is stored, float32, finite.

    Raises ScanError E-READ for a damaged file, E-SINOGRAM for one of another shape or with NaN or infinity, UsageError E-H5PY if h5py is
    not installed.
    """
    array = _array(found.file)
    if array.dtype.kind not in "fiu" or array.ndim not in (2, 3) or not array.size:
        cause = f"{found.file.name} holds {array.dtype} of shape {list(array.shape)}"
        raise ScanError("E-SINOGRAM", cause, remedy="give numbers of shape [slices, views, detectors]")
    sinogram = np.ascontiguousarray(array.reshape((1, *array.shape)[-3:]), dtype=np.float32)
    finite = np.isfinite(sinogram)
    if not finite.all():
        s, v, d = (int(i) for i in np.argwhere(~finite)[0])
        cause = f"{found.file.name}: {int((~finite).sum())} values are NaN or infinite, first in slice {s}, view {v}, cell {d}"
        raise ScanError("E-SINOGRAM", cause, remedy="leave the view out of file and geometry, or interpolate the cell")
    return sinogram


def write(sinogram: Sinogram, path: Path) -> None:
    """An .npz file; equal arrays give equal bytes."""
    with replacing(path) as part:
        np.savez(part, **{KEY: sinogram})  # pyright: ignore[reportArgumentType]


def problem_of_integrals(sinogram: Sinogram) -> tuple[str, str]:
    """(cause, remedy) of what cannot be line integrals, or two empty words."""
    largest = float(sinogram.max())
    if largest > LARGEST_INTEGRAL:
        return f"values up to {largest:.4g} look like counts, not like line integrals", "give --counts, with --i0"
    edge, middle = _edge_and_middle(sinogram)
    if edge > AIR_READS and middle < edge:
        cause = "the detector's ends, which see air, read more than its middle: these look like transmissions, not like line integrals"
        return cause, "give -log of the share of photons that arrive, or counts with --counts and --i0"
    return _missing(sinogram, air=0.0)


def problem_of_counts(counts: Sinogram, i0: float) -> tuple[str, str]:
    """(cause, remedy) of what cannot be counts of a scan with i0 photons to a cell, or two empty words."""
    largest = float(counts.max())
    if float(counts.min()) < 0:
        return f"counts are below zero, down to {counts.min():.4g}", "give counts with the detector's offset added, or line integrals"
    if largest < LARGEST_INTEGRAL:
        return f"values up to {largest:.4g} look like line integrals, not like counts", "leave out --counts"
    air = float(np.percentile(counts, 99))
    if air > TOO_BRIGHT * i0:
        return f"cells count up to {air:.4g} photons, more than the {i0:.4g} that were sent", f"give --i0 {air:.3g}, what air counts"
    return _missing(counts, air=largest)


def notes_on_integrals(sinogram: Sinogram) -> tuple[str, ...]:
    """What a user should know: an object that reaches beyond the detector."""
    edge = float(np.median(np.maximum(sinogram[:, :, 0], sinogram[:, :, -1])))
    if edge > max(SIGNAL * float(sinogram.max()), 0.1):
        return ("the object reaches beyond the detector's ends: values near its outline are too high",)
    return ()


def notes_on_counts(counts: Sinogram, i0: float) -> tuple[str, ...]:
    """What a user should know: cells that no photon reached, and an i0 that air does not reach."""
    dark, air = int((counts < 1).sum()), float(np.percentile(counts, 99))
    notes = [f"no photon reached a cell in {dark} readings: taken as one"] if dark else []
    if air < TOO_DARK * i0:
        notes.append(f"air counts {air:.4g} of {i0:.4g} photons: is --i0 right?")
    return tuple(notes)


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _found(file: Path) -> Found:
    case = re.sub(f"({SINO}|_sinogram)$", "", file.stem, flags=re.IGNORECASE) or file.stem
    beside = (file.with_name(f"{stem}{GEOMETRY}") for stem in (case, file.stem))
    return Found(case, file, next((path for path in beside if path.is_file()), None))


def _array(file: Path) -> np.ndarray:
    ending = file.suffix.lower()
    if ending in IMAGES:
        return itk.read(file, case=file.stem).array.T
    try:
        if ending in (".npy", ".npz"):
            with file.open("rb") as opened:  # np.load leaves a damaged file open
                loaded = np.load(opened, allow_pickle=False)
                return loaded if isinstance(loaded, np.ndarray) else _only(file, loaded)
        with _h5py(file).File(file, "r") as arrays:
            return _only(file, arrays)
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).replace(str(file), file.name).split("\n")[0] or type(error).__name__
        cause = f"{file.name} cannot be read: {reason}"
        raise ScanError("E-READ", cause, remedy="copy the file again; it is damaged or no array") from None


def _only(file: Path, arrays: Mapping[str, Any]) -> np.ndarray:
    names = list(arrays.keys())
    if KEY not in names and len(names) != 1:
        cause = f"{file.name} holds {len(names)} arrays: {', '.join(names[:8])}"
        raise ScanError("E-SINOGRAM", cause, remedy=f'name the one that is meant "{KEY}"')
    return np.asarray(arrays[KEY if KEY in names else names[0]])


def _h5py(file: Path) -> Any:
    try:
        return import_module("h5py")
    except ImportError:
        raise UsageError("E-H5PY", f"reading {file.name} needs h5py, which is not installed", remedy="pip install h5py") from None


def _edge_and_middle(sinogram: Sinogram) -> tuple[float, float]:
    """Medians over all views: of the outermost cell, at the end where it is lower, and of the middle half."""
    cells = sinogram.shape[2]
    return float(np.median(sinogram[:, :, [0, -1]], axis=(0, 1)).min()), float(np.median(sinogram[:, :, cells // 4 : cells - cells // 4]))


def _missing(sinogram: Sinogram, *, air: float) -> tuple[str, str]:
    """A view, or a cell of the detector, that says the same throughout while those around it do not."""
    if float(sinogram.max()) == float(sinogram.min()):
        return f"all values are {sinogram.flat[0]:g}", "check the export of this sinogram"
    dead_views = np.flatnonzero(np.ptp(sinogram, axis=(0, 2)) == 0)
    if dead_views.size:
        return f"{_named('view', dead_views)} the same value throughout", "leave it out of the file, and its angle out of the geometry"
    dead_cells = [d for d in np.flatnonzero(np.ptp(sinogram, axis=(0, 1)) == 0) if _is_dead(sinogram, int(d), air)]
    if dead_cells:
        return f"{_named('cell', np.array(dead_cells))} the same value throughout", "interpolate it from its neighbours"
    return "", ""


def _is_dead(sinogram: Sinogram, cell: int, air: float) -> bool:
    """Whether a cell that never changes should have: it does not read air, or the object's shadow lies on both sides of it."""
    if abs(float(sinogram[0, 0, cell]) - air) > SIGNAL * float(np.ptp(sinogram)):
        return True
    changing = np.flatnonzero(np.ptp(sinogram, axis=(0, 1)) > 0)
    before, after = changing[changing < cell], changing[changing > cell]
    if not before.size or not after.size:
        return False
    shadow = np.abs(sinogram[:, :, [before[-1], after[0]]] - air) > SIGNAL * float(np.ptp(sinogram))
    return float(shadow.all(axis=2).mean()) > SHADOWED


def _named(what: str, places: np.ndarray) -> str:
    """`view 3 has`, `cells 3, 4, 5, ... have`."""
    shown = ", ".join(str(place) for place in places[:5]) + (", ..." if len(places) > 5 else "")
    return f"{what} {shown} has" if len(places) == 1 else f"{what}s {shown} have"
