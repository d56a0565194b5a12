"""An MR of a head drawn by formula: scalp, dark skull, brain with ventricle and lesion, air cavity, neck, noise; and files that hold it."""

from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from medsynth.core.volume import Origin, Volume

VIEW_MM = (192, 224, 256)
SPACING_MM = 4.0
RADII_MM = np.array([76.0, 94.0, 110.0])
# (depth below the skin in mm, signal): the scalp's fat, skull, CSF, grey matter, white matter.
LAYERS = ((0.0, 520.0), (7.0, 25.0), (15.0, 110.0), (18.0, 330.0), (26.0, 430.0))
SKULL_INSIDE_MM = 15.0
VENTRICLE_MM, SINUS_MM = 16.0, 14.0
SINUS_AT_MM = np.array([0.0, 66.0, -30.0])
LESION_MM, LESION_AT_MM = 14.0, np.array([30.0, -20.0, 40.0])  # to the right, so that a mirrored head differs
NECK_MM, NECK_BELOW_MM, NECK_AT_MM = 50.0, -50.0, np.array([0.0, -15.0])
NAME = "Phantom^Ελένη"


def shape(spacing_mm: float = SPACING_MM) -> tuple[int, int, int]:
    """Voxels along x, y, z."""
    x, y, z = (round(side / spacing_mm) for side in VIEW_MM)
    return x, y, z


def affine_ras(spacing_mm: float = SPACING_MM) -> np.ndarray:
    """RAS+, the head's middle at the origin."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = -spacing_mm * (np.array(shape(spacing_mm)) - 1) / 2
    return affine


def mr_head(spacing_mm: float = SPACING_MM, *, seed: int = 0) -> np.ndarray:
    """float32 [x y z], arbitrary units, magnitude of a noisy signal (Rician), background about 6."""
    at_mm = _places_mm(spacing_mm)
    depth_mm, neck = _depth_mm(at_mm), _neck(at_mm)
    signal = np.where(neck, 300.0, 0.0)
    for below_mm, value in LAYERS:
        signal[(depth_mm > below_mm) & ~(neck & (depth_mm < SKULL_INSIDE_MM))] = value
    signal[np.linalg.norm(at_mm, axis=-1) < VENTRICLE_MM] = 110.0
    signal[np.linalg.norm(at_mm - LESION_AT_MM, axis=-1) < LESION_MM] = 620.0
    signal[_sinus(at_mm)] = 0.0
    rng = np.random.default_rng(seed)
    real, imaginary = (rng.normal(0, 5, signal.shape) for _ in range(2))
    return np.hypot(signal + real, imaginary).astype(np.float32)


def stripped(spacing_mm: float = SPACING_MM) -> np.ndarray:
    """The same head after its skull was removed: zero outside the brain."""
    brain = _depth_mm(_places_mm(spacing_mm)) > SKULL_INSIDE_MM
    return np.where(brain, mr_head(spacing_mm), np.float32(0))


def head_mask(spacing_mm: float = SPACING_MM) -> np.ndarray:
    """bool [x y z]: head and neck with their cavities."""
    at_mm = _places_mm(spacing_mm)
    return (_depth_mm(at_mm) > 0) | _neck(at_mm)


def sinus_mask(spacing_mm: float = SPACING_MM) -> np.ndarray:
    """bool [x y z]: the cavity."""
    return _sinus(_places_mm(spacing_mm))


def volume(array: np.ndarray, *, modality: str = "", affine: np.ndarray | None = None) -> Volume:
    """A scan in memory."""
    origin = Origin(kind="nifti", case="phantom", files=(), modality=modality)
    return Volume(array=array, affine_ras=affine_ras() if affine is None else affine, origin=origin)


def write_nifti(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    """int16."""
    stored = np.rint(mr_head() if array is None else array).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(stored, affine_ras() if affine is None else affine)
    nib.save(image, path)
    return path


def write_dicom(folder: Path, array: np.ndarray | None = None, *, leave_out: tuple[int, ...] = (), series: int = 1) -> Path:
    """An axial MR series with a patient's name, one file a slice; the slices `leave_out` are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = np.rint(mr_head() if array is None else array).astype(np.uint16)
    for k in range(stored.shape[2]):
        if k not in leave_out:
            _slice(stored[::-1, ::-1, k], k, series).save_as(folder / f"{series}-{k + 1:03d}.dcm", enforce_file_format=True)
    return folder


def _slice(pixels: np.ndarray, k: int, series: int) -> Dataset:
    """pixels: [x y], x to the patient's left and y to the back, which is how DICOM counts."""
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, f"1.2.826.0.1.{series}.{k + 1}"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.826.0.2", f"1.2.826.0.3.{series}", "1.2.826.0.4"
    image.Modality, image.SeriesNumber, image.SeriesDescription, image.InstanceNumber = "MR", series, f"head {series}", k + 1
    image.SpecificCharacterSet, image.PatientName, image.PatientID = "ISO_IR 192", NAME, "PHANTOM-ID"
    last = affine_ras() @ [*(n - 1 for n in pixels.shape), k, 1]
    image.ImagePositionPatient = [-last[0], -last[1], last[2]]
    image.ImageOrientationPatient, image.PixelSpacing, image.SliceThickness = [1, 0, 0, 0, 1, 0], [SPACING_MM] * 2, SPACING_MM
    image.Columns, image.Rows = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelData = np.ascontiguousarray(pixels.T).tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def _places_mm(spacing_mm: float) -> np.ndarray:
    """[x y z 3]: where each voxel lies."""
    return np.moveaxis(np.indices(shape(spacing_mm)), 0, -1) * spacing_mm + affine_ras(spacing_mm)[:3, 3]


def _depth_mm(at_mm: np.ndarray) -> np.ndarray:
    """Depth below the skin of an ellipsoid, exact to the sides and about so elsewhere."""
    return np.asarray((1 - np.linalg.norm(at_mm / RADII_MM, axis=-1)) * RADII_MM.min())


def _neck(at_mm: np.ndarray) -> np.ndarray:
    """A cylinder of muscle from the skull's base out of the view."""
    return np.asarray((np.linalg.norm(at_mm[..., :2] - NECK_AT_MM, axis=-1) < NECK_MM) & (at_mm[..., 2] < NECK_BELOW_MM))


def _sinus(at_mm: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(at_mm - SINUS_AT_MM, axis=-1) < SINUS_MM)
