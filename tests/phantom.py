"""An MR of a head drawn by formula: scalp, dark skull, brain with ventricles, an air cavity, noise; and the files that hold it."""

from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from medsynth.core.volume import Origin, Volume

SHAPE = (48, 56, 64)
SPACING_MM = 4.0
RADII_MM = np.array([76.0, 94.0, 110.0])
# (depth below the skin in mm, signal): the scalp's fat, skull, CSF, grey matter, white matter.
LAYERS = ((0.0, 520.0), (7.0, 25.0), (15.0, 110.0), (18.0, 330.0), (26.0, 430.0))
SKULL_INSIDE_MM = 15.0
VENTRICLE_MM, SINUS_MM = 16.0, 14.0
SINUS_AT_MM = np.array([0.0, 66.0, -30.0])
NAME = "Phantom^Ελένη"


def affine_ras(spacing_mm: float = SPACING_MM) -> np.ndarray:
    """RAS+, the head's middle at the origin."""
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = -spacing_mm * (np.array(SHAPE) - 1) / 2
    return affine


def mr_head(*, seed: int = 0, size: float = 1.0) -> np.ndarray:
    """float32 [x y z], arbitrary units, magnitude of a noisy signal (Rician), background about 6."""
    depth_mm, at_mm = _depth_mm(size)
    signal = np.zeros(SHAPE)
    for below_mm, value in LAYERS:
        signal[depth_mm > below_mm] = value
    signal[np.linalg.norm(at_mm, axis=-1) < VENTRICLE_MM] = 110.0
    signal[_sinus(at_mm)] = 0.0
    rng = np.random.default_rng(seed)
    real, imaginary = (rng.normal(0, 5, SHAPE) for _ in range(2))
    return np.hypot(signal + real, imaginary).astype(np.float32)


def stripped(*, seed: int = 0) -> np.ndarray:
    """The same head after its skull was removed: zero outside the brain."""
    return np.where(_depth_mm(1.0)[0] > SKULL_INSIDE_MM, mr_head(seed=seed), np.float32(0))


def head_mask() -> np.ndarray:
    """bool [x y z]: the head with its cavities."""
    return _depth_mm(1.0)[0] > 0


def sinus_mask() -> np.ndarray:
    """bool [x y z]: the cavity."""
    return _sinus(_depth_mm(1.0)[1])


def volume(array: np.ndarray, *, modality: str = "", affine: np.ndarray | None = None) -> Volume:
    """A scan in memory."""
    origin = Origin(kind="nifti", case="phantom", files=(), modality=modality)
    return Volume(array=array, affine_ras=affine_ras() if affine is None else affine, origin=origin)


def write_nifti(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    """int16, qform and sform alike."""
    stored = np.rint(mr_head() if array is None else array).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(stored, affine_ras() if affine is None else affine)
    image.header.set_qform(image.affine, code=1)
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
    last = affine_ras() @ [SHAPE[0] - 1, SHAPE[1] - 1, k, 1]
    image.ImagePositionPatient = [-last[0], -last[1], last[2]]
    image.ImageOrientationPatient, image.PixelSpacing, image.SliceThickness = [1, 0, 0, 0, 1, 0], [SPACING_MM] * 2, SPACING_MM
    image.Columns, image.Rows = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelData = np.ascontiguousarray(pixels.T).tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def _depth_mm(size: float) -> tuple[np.ndarray, np.ndarray]:
    """Depth below the skin of an ellipsoid (about, in mm), and each voxel's place [x y z 3] in mm."""
    at_mm = np.moveaxis(np.indices(SHAPE), 0, -1) * SPACING_MM + affine_ras()[:3, 3]
    outside = np.linalg.norm(at_mm / (RADII_MM * size), axis=-1)
    return (1 - outside) * RADII_MM.min() * size, at_mm


def _sinus(at_mm: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(at_mm - SINUS_AT_MM, axis=-1) < SINUS_MM)
