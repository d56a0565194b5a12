"""NRRD and MetaImage files (.nrrd, .nhdr, .mha, .mhd) through SimpleITK, whose patient axes (LPS) are turned into ours (RAS+)."""

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from medsynth.core.errors import ScanError
from medsynth.core.volume import Kind, Origin, Volume
from medsynth.scans.files import replacing
from medsynth.scans.nifti import Dtype, chosen_volume, stored

KINDS: dict[str, Kind] = {".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "mha", ".mhd": "mha"}
MODALITY = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR"}
HEADER_CHARACTERS = 65536
RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read(path: Path, *, case: str, volume: int | None = None) -> Volume:
    """The scan in an NRRD or MetaImage file, float32 [x y z].

    volume: which one of a 4-D file, or which component of a file with several numbers a voxel, from 0. Raises ScanError E-READ, E-DIM.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        component = _select(path.name, reader, volume)
        image = reader.Execute()
    except RuntimeError as error:
        cause = f"{path.name} cannot be read: {reason(error, path)}"
        raise ScanError("E-READ", cause, remedy="check that the file, and a data file beside it, is whole") from None
    if image.GetNumberOfComponentsPerPixel() > 1:
        image = sitk.VectorIndexSelectionCast(image, component)
    array = sitk.GetArrayFromImage(image).astype(np.float32, copy=False).T
    origin = Origin(kind=KINDS[path.suffix.lower()], case=case, files=(path,), modality=_modality(reader), notes=_notes(path, reader))
    return Volume(array=array.reshape((*array.shape, 1)[:3]), affine_ras=_affine_ras(image), origin=origin)


def files(path: Path) -> tuple[Path, ...]:
    """The header file and, where it names one beside it, the file that holds its voxels (.mhd, .nhdr)."""
    if path.suffix.lower() not in (".mhd", ".nhdr"):
        return (path,)
    with path.open(encoding="utf-8", errors="replace") as header:
        named = re.search(r"^(?:ElementDataFile *=|data ?file *:) *(\S.*?)\s*$", header.read(HEADER_CHARACTERS), re.MULTILINE)
    data = path.with_name(named[1]) if named and "/" not in named[1] else path
    return (path, data) if data != path and data.is_file() else (path,)


def write(volume: Volume, path: Path, *, dtype: Dtype) -> None:
    """Write a compressed .nrrd or .mha file. Raises ScanError E-GEOMETRY for a sheared grid, E-VALUES if the values do not fit the type."""
    spacing_mm = np.array(volume.spacing_mm)
    affine_lps = RAS_LPS @ volume.affine_ras
    direction = affine_lps[:3, :3] / spacing_mm
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-4:
        raise ScanError("E-GEOMETRY", f"the grid of {volume.origin.case} is sheared, which {path.suffix} cannot hold", remedy="write NIfTI")
    image = sitk.GetImageFromArray(np.ascontiguousarray(stored(volume, dtype).T))
    image.SetSpacing(spacing_mm.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(affine_lps[:3, 3].tolist())
    with replacing(path) as part:
        sitk.WriteImage(image, str(part), useCompression=True)


def reason(error: Exception, path: Path) -> str:
    """The last line of SimpleITK's message that says something, without the folder."""
    lines = [line.strip() for line in str(error).replace(str(path), path.name).splitlines()]
    # "Reason:" is the C library's last error, which has nothing to do with the file.
    said = [line for line in lines if line and not line.startswith("Reason:")]
    return re.sub(r"^(ITK|sitk::|itk::) ?ERROR: (\w+\(0x\w+\): )?", "", said[-1]) if said else "unknown format"


def _select(name: str, reader: sitk.ImageFileReader, volume: int | None) -> int:
    """Sets the reader to one 3-D volume; returns the component to take. Raises ScanError E-DIM."""
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise ScanError("E-DIM", f"{name} holds complex values", remedy="convert it to one number a voxel, such as the magnitude")
    if any(n > 1 for n in size[4:]) or (components > 1 and any(n > 1 for n in size[3:])):
        raise ScanError("E-DIM", f"{name} has more than four dimensions", remedy="extract one 3-D image first")
    count = size[3] if len(size) > 3 else 1
    chosen = chosen_volume(name, max(count, components), volume)
    if len(size) > 3:
        reader.SetExtractSize([*size[:3], *(0 for _ in size[3:])])
        reader.SetExtractIndex([0, 0, 0, chosen if count > 1 else 0, *(0 for _ in size[4:])])
    return chosen


def _affine_ras(image: sitk.Image) -> np.ndarray:
    """Voxel indices -> mm in RAS+, [4 4]; a 2-D image lies in the plane z = 0."""
    d = image.GetDimension()
    affine_lps = np.eye(4)
    affine_lps[:d, :d] = np.reshape(image.GetDirection(), (d, d)) * np.array(image.GetSpacing())
    affine_lps[:d, 3] = image.GetOrigin()
    return RAS_LPS @ affine_lps


def _modality(reader: sitk.ImageFileReader) -> str:
    return MODALITY.get(reader.GetMetaData("Modality"), "") if reader.HasMetaDataKey("Modality") else ""


def _notes(path: Path, reader: sitk.ImageFileReader) -> tuple[str, ...]:
    if KINDS[path.suffix.lower()] == "nrrd" and not reader.HasMetaDataKey("NRRD_space"):
        return ("no patient axes in the header (NRRD field space): left-posterior-superior assumed",)
    return ()
