"""NIfTI and MGH files: reading with the checks that libraries leave out, and writing the same bytes for the same volume.

Formats: NIfTI-1 and -2 (nifti.nimh.nih.gov), FreeSurfer's MGH/MGZ. Where a NIfTI header holds two orientations that disagree, tools differ
in which one they follow (SimpleITK: qform, nibabel: sform), so such a file is refused until the user says which one to trust.
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from medsynth.core.errors import ScanError
from medsynth.core.volume import Origin, Volume, grid_distance_mm
from medsynth.scans.files import replacing

Dtype = Literal["int16", "uint8", "float32"]
Trust = Literal["", "sform", "qform"]

DISAGREE_VOXELS = 1e-2  # beyond what float32 quaternions round away
GZIP_LEVEL = 4  # twice as fast as 9, a few per cent larger
UNIT_MM = {"meter": 1e3, "micron": 1e-3}

# What gzip and nibabel raise for damaged files; LookupError and TypeError where an MGH header is too short or names no type.
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    MGHError,
)
_Image = nib.Nifti1Image | nib.MGHImage


def read(path: Path, *, case: str, trust: Trust = "", volume: int | None = None) -> Volume:
    """The scan in a .nii, .nii.gz, .mgh or .mgz file, float32 [x y z], on the grid of its header.

    volume: which one of a 4-D file, from 0. Raises ScanError E-READ if the file is damaged, E-DIM if it holds anything but one 3-D image
    of plain numbers, E-FORM if qform and sform disagree and `trust` does not say which one holds.
    """
    try:
        image = _load(path)
        index = _index(path, image, volume)
        array = np.asarray(image.dataobj[index], dtype=np.float32)
        affine_ras, notes = _affine(path, image, trust)
    except _UNREADABLE as error:
        reason = str(error).replace(str(path), path.name).split("\n")[0]
        cause = f"{path.name} cannot be read: {reason or type(error).__name__}"
        raise ScanError("E-READ", cause, remedy="copy or convert the file again; it is damaged or incomplete") from None
    origin = Origin(kind="nifti", case=case, files=(path,), notes=notes)
    return Volume(array=array.reshape((*array.shape, 1, 1, 1)[:3]), affine_ras=affine_ras, origin=origin)


def write(volume: Volume, path: Path, *, dtype: Dtype) -> None:
    """Write a .nii or .nii.gz file in mm, slope 1 and intercept 0, so that integers come back as they are.

    The sform holds the grid; the qform too, unless the grid is sheared, which a qform cannot express. The bytes depend on the volume
    alone. Raises ScanError E-VALUES if the values do not fit the type.
    """
    image = nib.Nifti1Image(stored(volume, dtype), volume.affine_ras)
    header = image.header
    header.set_slope_inter(1, 0)
    header.set_xyzt_units("mm")
    header.set_sform(volume.affine_ras, code=1)
    header.set_qform(volume.affine_ras, code=1)
    if _disagreement_mm(np.asarray(header.get_qform()), volume.affine_ras, volume.shape) > _tolerance_mm(volume.affine_ras):
        header.set_qform(None, code=0)
    with replacing(path) as part, part.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            # No name and no time in the gzip header: the same volume gives the same bytes.
            with gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0) as packed:
                image.to_stream(packed)
        else:
            image.to_stream(file)


def stored(volume: Volume, dtype: Dtype) -> np.ndarray:
    """The voxels [x y z] in the type that a file holds, integers rounded to the nearest.

    Raises ScanError E-VALUES for NaN, infinity and values beyond the type's range.
    """
    array = volume.array
    if not np.isfinite(array).all():
        cause = f"the result for {volume.origin.case} holds NaN or infinite values"
        raise ScanError("E-VALUES", cause, remedy="run it again with --device cpu; if it stays, report it")
    if dtype == "float32":
        return array.astype(np.float32, copy=False)
    limits = np.iinfo(dtype)
    rounded = np.rint(array)
    if rounded.min() < limits.min or rounded.max() > limits.max:
        span = f"{rounded.min():.0f} to {rounded.max():.0f}"
        raise ScanError("E-VALUES", f"values of {volume.origin.case} ({span}) do not fit {dtype}", remedy="write float32")
    return rounded.astype(dtype)


def chosen_volume(name: str, count: int, volume: int | None) -> int:
    """Which of a file's `count` volumes to read, from 0. Raises ScanError E-DIM if there is a choice and none was made, or a wrong one."""
    remedy = f"choose one: --volume K, with K from 0 to {count - 1}" if count > 1 else "leave out --volume"
    if volume is None and count > 1:
        raise ScanError("E-DIM", f"{name} holds {count} volumes (time points, echoes, directions or components)", remedy=remedy)
    if not 0 <= (volume or 0) < count:
        raise ScanError("E-DIM", f"{name} has no volume {volume}", remedy=remedy)
    return volume or 0


def _load(path: Path) -> _Image:
    """The image, from a file read whole: only then does gzip compare its checksum, which nibabel's own reading stops short of."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if not data:
        raise ValueError("the file is empty")
    if path.suffix.lower() in (".mgz", ".mgh"):
        return nib.MGHImage.from_bytes(data)
    header_bytes = {int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")}
    if 540 in header_bytes:
        return nib.Nifti2Image.from_bytes(data)
    if 348 in header_bytes:
        return nib.Nifti1Image.from_bytes(data)
    raise ValueError("it is no NIfTI file")


def _index(path: Path, image: _Image, volume: int | None) -> tuple[slice | int, ...]:
    """What to read of the file's array: everything of the first three axes, one of each further one."""
    dtype = np.dtype(image.get_data_dtype())
    if dtype.names or dtype.kind == "c":
        kind = "complex" if dtype.kind == "c" else "colour"
        raise ScanError("E-DIM", f"{path.name} holds {kind} values", remedy="convert it to one number a voxel")
    shape = image.shape
    if any(n > 1 for n in shape[4:]):
        raise ScanError("E-DIM", f"{path.name} holds vectors or more than four dimensions {shape}", remedy="extract one 3-D image first")
    further = [chosen_volume(path.name, shape[3], volume)] if len(shape) > 3 else []
    if not further:
        chosen_volume(path.name, 1, volume)
    return (*(slice(None) for _ in shape[:3]), *further, *(0 for _ in shape[4:]))


def _affine(path: Path, image: _Image, trust: Trust) -> tuple[np.ndarray, tuple[str, ...]]:
    """Voxel indices -> mm in RAS+, [4 4], and what is worth a note."""
    if isinstance(image, nib.MGHImage):
        return cast(np.ndarray, image.affine), ()
    header = image.header
    unit = str(header.get_xyzt_units()[0])
    scale = np.diag([UNIT_MM.get(unit, 1.0)] * 3 + [1.0])
    notes = (f"the header's unit of length is the {unit}: converted to mm",) if unit in UNIT_MM else ()
    forms = {name: scale @ form for name, form, code in _forms(header) if code > 0}
    if not forms:
        notes += ("no orientation in the header (qform and sform codes are 0): spacing used, left and right are a guess",)
        return scale @ header.get_base_affine(), notes
    if len(forms) == 2 and not trust:
        apart_mm = _disagreement_mm(forms["qform"], forms["sform"], image.shape)
        if apart_mm > _tolerance_mm(forms["sform"]):
            cause = f"{path.name}: qform and sform differ by {apart_mm:.3g} mm"
            raise ScanError("E-FORM", cause, remedy="say which one holds: --trust sform or --trust qform")
    return forms.get(trust or "sform", next(iter(forms.values()))), notes


def _forms(header: nib.Nifti1Header) -> Iterator[tuple[str, np.ndarray, int]]:
    # A quaternion is only looked at when its code says that it means something: without one it may be no rotation at all.
    for name, get in (("sform", header.get_sform), ("qform", header.get_qform)):
        form, code = get(coded=True)
        if form is not None:
            yield name, form, int(code)


def _disagreement_mm(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance between the corners of one array on two grids."""
    empty = np.broadcast_to(np.float32(0), (*shape, 1, 1, 1)[:3])
    return grid_distance_mm(Volume(array=empty, affine_ras=a), Volume(array=empty, affine_ras=b))


def _tolerance_mm(affine_ras: np.ndarray) -> float:
    return DISAGREE_VOXELS * float(np.linalg.norm(affine_ras[:3, :3], axis=0).min())
