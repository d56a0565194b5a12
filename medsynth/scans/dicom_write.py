"""A synthetic CT as a derived DICOM series: one CT image for each source slice, on its grid (PS3.3 A.3, CT Image IOD).

The patient, the study and the frame of reference are the source's, so that the series lies beside it and overlays it. What is copied is
listed here by name: no private attribute and nothing of the MR acquisition. Text is copied as bytes, so that a name in any character set,
even one that the header does not declare, comes out as it went in. Nothing depends on the clock or on chance: the same source, model and
settings give the same bytes.
"""

import re
import shutil
import uuid
from collections.abc import Iterable, MutableSequence, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.charset import default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless
from pydicom.valuerep import format_number_as_ds

from medsynth import __version__
from medsynth.core.errors import ScanError, UsageError
from medsynth.core.volume import Volume

INTERCEPT_HU, STORED_MAX = -1024, 2**16 - 1  # slope 1, unsigned 16 bits: HU from -1024 to 64511
GRID_TOLERANCE_VOXELS = 0.15  # from a slice's corners to those of its plane: readers take slices that lie a tenth off an even grid
WINDOWS_HU = {"SOFT TISSUE": ("40", "400"), "BONE": ("400", "2000")}  # centre, width
UID_SPACE = uuid.UUID("8f0c6f0e-6d0b-5c0a-9a57-2f5a3b1c9d4e")  # of this package's UIDs, which are 2.25.<UUID> (PS3.5 B.2)
LOSSY_SYNTAXES = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless)

# Type 2 of the patient, study, series, equipment and frame of reference modules: in every file, empty where the source has no value.
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
    "AccessionNumber", "PatientPosition", "PositionReferenceIndicator",
)  # fmt: skip
# Types 1C and 3 of these: copied where the source has them.
OPTIONAL = (
    "IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence", "PatientBirthTime", "OtherPatientIDsSequence",
    "OtherPatientNames", "EthnicGroup", "PatientComments", "PatientSpeciesDescription", "PatientSpeciesCodeSequence",
    "PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence", "ResponsiblePerson", "ResponsiblePersonRole",
    "ResponsibleOrganization", "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence",
    "StudyDescription", "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "IssuerOfAccessionNumberSequence", "ProcedureCodeSequence",
    "AdmittingDiagnosesDescription", "PatientAge", "PatientSize", "PatientWeight", "Occupation", "AdditionalPatientHistory",
    "PregnancyStatus", "PatientSexNeutered", "LongitudinalTemporalInformationModified", "BodyPartExamined", "SeriesDate", "SeriesTime",
    "RecognizableVisualFeatures",
)  # fmt: skip
OF_SLICE = (
    "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "ContentDate", "ContentTime", "SliceLocation", "BurnedInAnnotation",
)  # fmt: skip
OF_SCANNER = (
    "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "InstitutionName", "InstitutionAddress",
    "StationName",
)  # fmt: skip
OF_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
OTHERS_READ = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality",
    "SeriesNumber", "AcquisitionNumber", "Laterality", "ContrastBolusAgent", "SliceThickness", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
)  # fmt: skip
# Laterality, type 2C, must not be present for these, and must be for all others, also for an unknown part (PS3.16 Annex L).
UNPAIRED = (
    "ABDOMEN", "ABDOMENPELVIS", "AORTA", "BACK", "BLADDER", "BRAIN", "CEREBELLUM", "CSPINE", "CTSPINE", "CERVIX", "CHEST", "CHESTABDOMEN",
    "CHESTABDPELVIS", "CIRCLEOFWILLIS", "COCCYX", "COLON", "CORONARYARTERY", "DUODENUM", "WHOLEBODY", "ESOPHAGUS", "FACE", "GALLBLADDER",
    "HEAD", "HEADNECK", "HEART", "ILEUM", "ILIUM", "JAW", "JEJUNUM", "LARYNX", "LIVER", "LSPINE", "LSSPINE", "MAXILLA", "MEDIASTINUM",
    "MOUTH", "NECK", "NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV", "NOSE", "PANCREAS", "PELVIS", "PENIS", "PHARYNX", "PROSTATE",
    "RECTUM", "SSPINE", "SCALP", "SKULL", "SPINE", "SPLEEN", "STERNUM", "STOMACH", "TLSPINE", "THYMUS", "THYROID", "TONGUE", "TRACHEA",
    "TSPINE", "URETER", "URETHRA", "UTERUS", "VAGINA", "VULVA",
)  # fmt: skip


class _Recipe(NamedTuple):
    """What made the voxels; written into every image and into its UIDs."""

    model: str
    model_sha256: str
    settings: str


def write(volume: Volume, folder: Path, *, model: str, model_sha256: str, settings: str, allow_burned_in: bool = False) -> None:
    """A folder of CT images, `ct_0001.dcm` for the first slice along the array's z axis.

    volume: HU [x y z] on the grid of the DICOM series that is its origin; rounded, and clipped to [-1024, 64511]. model, model_sha256 and
    settings are written into the description and, with the source's UIDs, decide the new UIDs. Dates are the source's. An earlier result
    in the folder is replaced at the end; a failure leaves it as it was.
    Raises ScanError E-GRID if the volume does not lie on the source's slices, E-BURNEDIN if these have text in their pixels (unless
    allow_burned_in), E-UID if one cannot be referenced, E-VALUES for NaN; UsageError E-OUTPUT if the folder holds anything else.
    """
    folder = folder.resolve()
    _check_folder(folder, volume.origin.files)
    _check_voxels(volume)
    wanted = [Tag(keyword) for keyword in (*TYPE_2, *OPTIONAL, *OF_SLICE, *OF_SCANNER, *OF_LOSSY, *OTHERS_READ)]
    headers = [dcmread(path, stop_before_pixels=True, specific_tags=wanted) for path in volume.origin.files]
    for k, header in enumerate(headers):
        _check_slice(volume, k, header)
    if not allow_burned_in:
        _refuse_burned_in(headers, volume.origin.files)
    series = _series(volume, headers, _Recipe(model, model_sha256, settings))
    partial = folder.with_name(f".medsynth-part-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for k, header in enumerate(headers):
            _image(series, header, k, volume.array[:, :, k]).save_as(partial / f"ct_{k + 1:04d}.dcm", enforce_file_format=True)
        _replace(folder, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_folder(folder: Path, sources: Iterable[Path]) -> None:
    others = [path for path in folder.iterdir() if not re.fullmatch(r"ct_\d{4,}\.dcm|\..*", path.name)] if folder.is_dir() else []
    if others or folder.is_file() or any(folder in source.resolve().parents for source in sources):
        raise UsageError("E-OUTPUT", f"{folder.name} is there and is no earlier result, so it is kept", remedy="give another output folder")


def _check_voxels(volume: Volume) -> None:
    planes, slices = volume.shape[2], len(volume.origin.files)
    if volume.origin.kind != "dicom" or slices != planes:
        raise _off_grid(f"{planes} planes were computed from {slices} files: no DICOM, or a gap was filled, or a tilt removed")
    if not np.isfinite(volume.array).all():
        raise ScanError("E-VALUES", "the synthetic CT holds NaN or infinite values", remedy="try --device cpu, or another model")


def _check_slice(volume: Volume, k: int, header: Dataset) -> None:
    name = volume.origin.files[k].name
    if not all(_reference(header)):
        raise ScanError("E-UID", f"{name} has no SOP Instance UID, so no derived image can refer to it", remedy="write NIfTI instead")
    if (header.get("Columns"), header.get("Rows")) != volume.shape[:2]:
        raise _off_grid(f"{name} has other rows or columns than the synthetic CT")
    distance_voxels = _distance_voxels(volume, k, header)
    if not distance_voxels <= GRID_TOLERANCE_VOXELS:
        raise _off_grid(f"{name} lies {distance_voxels:.2f} voxels from its plane of the synthetic CT")


def _refuse_burned_in(headers: Iterable[Dataset], files: Iterable[Path]) -> None:
    for header, path in zip(headers, files, strict=True):
        if _text(header, "BurnedInAnnotation") == "YES":
            raise ScanError("E-BURNEDIN", f"{path.name} declares text in its pixels, maybe a name", remedy="look at it; --allow-burned-in")


def _off_grid(cause: str) -> ScanError:
    return ScanError("E-GRID", cause, remedy="write NIfTI instead: it holds any grid")


def _distance_voxels(volume: Volume, k: int, header: Dataset) -> float:
    """Largest distance along an axis between slice k's corners in its header (PS3.3 C.7.6.2.1.1) and in the volume; NaN without tags."""
    position, orientation = _numbers(header, "ImagePositionPatient"), _numbers(header, "ImageOrientationPatient")
    spacing = _numbers(header, "PixelSpacing")
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        return float("nan")
    row, column = orientation[:3] / np.linalg.norm(orientation[:3]), orientation[3:] / np.linalg.norm(orientation[3:])
    plane_ras = np.diag([-1.0, -1.0, 1.0]) @ np.stack([row * spacing[1], column * spacing[0], position], axis=1)
    steps, start = volume.affine_ras[:3, :3], volume.affine_ras[:3, 3]
    in_volume = np.stack([steps[:, 0], steps[:, 1], steps[:, 2] * k + start], axis=1)
    x, y = volume.shape[0] - 1, volume.shape[1] - 1
    corners = np.array([(0, 0, 1), (x, 0, 1), (0, y, 1), (x, y, 1)]).T
    return float(np.abs(np.linalg.pinv(steps) @ (plane_ras - in_volume) @ corners).max())


def _series(volume: Volume, headers: Sequence[Dataset], recipe: _Recipe) -> Dataset:
    """All that the images have in common."""
    first = headers[0]
    image = _blank(first.original_character_set)
    _copy(first, image, ["SpecificCharacterSet", *OPTIONAL])
    _copy_or_empty(first, image, TYPE_2)
    if _text(first, "BodyPartExamined") not in UNPAIRED:
        _copy_or_empty(first, image, ["Laterality"])
    if _text(first, "Modality") == "CT":  # an MR agent does not show in a CT
        _copy(first, image, ["ContrastBolusAgent"])
    _describe(image, recipe)
    source = "\n".join(_reference(header)[1] for header in headers)
    image.StudyInstanceUID = _text(first, "StudyInstanceUID") or _uid("study", source)
    image.FrameOfReferenceUID = _text(first, "FrameOfReferenceUID") or _uid("frame of reference", source)
    image.SeriesInstanceUID = _uid("series", source, _text(first, "SeriesInstanceUID"), __version__, *recipe)
    number = _text(first, "SeriesNumber")
    image.SeriesNumber = (int(number) % 10_000 if number.isdecimal() else 0) * 100 + 1  # IS, and short enough for every viewer
    image.ContributingEquipmentSequence = [*_scanner(first), _processor(recipe)]
    _copy(next(filter(_is_lossy, headers), first), image, OF_LOSSY)
    if any(map(_is_lossy, headers)):
        image.LossyImageCompression = "01"
    image.Rows, image.Columns = volume.shape[1], volume.shape[0]
    image.ImageOrientationPatient, image.PixelSpacing = _decimals(first, "ImageOrientationPatient"), _decimals(first, "PixelSpacing")
    across = np.cross(volume.affine_ras[:3, 0], volume.affine_ras[:3, 1])
    distance_mm = abs(float(volume.affine_ras[:3, 2] @ across / np.linalg.norm(across)))
    image.SpacingBetweenSlices = format_number_as_ds(round(distance_mm, 6))
    return image


def _describe(image: Dataset, recipe: _Recipe) -> None:
    """What the images are and what made them; the same for every synthetic CT but for the recipe."""
    image.SOPClassUID, image.Modality = CTImageStorage, "CT"
    image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    image.SeriesDescription = _ascii(f"Synthetic CT, research only: {recipe.model}", 64)
    image.DerivationDescription = _derivation(recipe)
    image.Manufacturer, image.ManufacturerModelName, image.SoftwareVersions = "medsynth", _ascii(recipe.model, 64), __version__
    image.KVP = None
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = str(INTERCEPT_HU), "1", "HU"
    image.WindowCenter, image.WindowWidth = (list(values) for values in zip(*WINDOWS_HU.values(), strict=True))
    image.WindowCenterWidthExplanation = list(WINDOWS_HU)


def _image(series: Dataset, header: Dataset, k: int, plane_hu: np.ndarray) -> Dataset:
    """The image that replaces one source slice; plane_hu: [x y]."""
    image = _blank(series.original_character_set)
    image.update(series)
    image.SOPInstanceUID, image.InstanceNumber = _uid("image", series.SeriesInstanceUID, str(k)), k + 1
    _copy(header, image, OF_SLICE)
    _copy_or_empty(header, image, ["AcquisitionNumber"])
    image.ImagePositionPatient = _decimals(header, "ImagePositionPatient")
    thickness_mm = _numbers(header, "SliceThickness")
    image.SliceThickness = _decimals(header, "SliceThickness") if (thickness_mm > 0).any() else series.SpacingBetweenSlices
    source = Dataset()
    source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = _reference(header)
    source.SpatialLocationsPreserved = "YES"
    source.PurposeOfReferenceCodeSequence = [_code(codes.cid7202.SourceImageForImageProcessingOperation)]
    image.SourceImageSequence = [source]
    stored = np.clip(np.rint(plane_hu) - INTERCEPT_HU, 0, STORED_MAX).astype("<u2")
    image.add_new("PixelData", "OW", stored.T.tobytes())
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.ImplementationVersionName = f"MEDSYNTH {__version__}"[:16]
    return image


def _scanner(header: Dataset) -> list[Dataset]:
    """The device that acquired the source, if the header names it: the images' own equipment is this package."""
    if not _text(header, "Manufacturer"):
        return []
    item = _blank(default_encoding)
    item.PurposeOfReferenceCodeSequence = [_code(codes.cid7005.AcquisitionEquipment)]
    _copy(header, item, OF_SCANNER)
    return [item]


def _processor(recipe: _Recipe) -> Dataset:
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [_code(codes.cid7005.ProcessingEquipment)]
    item.Manufacturer, item.ManufacturerModelName, item.SoftwareVersions = "medsynth", _ascii(recipe.model, 64), __version__
    item.ContributionDescription = _derivation(recipe)
    return item


def _derivation(recipe: _Recipe) -> str:
    model, model_sha256, settings = recipe
    maker = f"Synthetic CT computed by medsynth {__version__}, for research only"
    return _ascii(f"{maker}. Model {model}, sha256 {model_sha256}. {settings}", 1024)


def _code(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _blank(character_set: str | MutableSequence[str]) -> Dataset:
    """A dataset whose raw elements are written as they are, because they count as encoded like the file, in this character set."""
    dataset = Dataset()
    dataset.set_original_encoding(False, True, character_set)
    return dataset


def _copy(source: Dataset, target: Dataset, keywords: Iterable[str]) -> None:
    for tag in filter(source.__contains__, map(Tag, keywords)):
        raw, vr = source.get_item(tag), dictionary_VR(tag)
        if isinstance(raw, RawDataElement) and vr not in ("SQ", "US"):  # bytes of text are the same in every transfer syntax
            target[tag] = raw._replace(VR=vr)
            continue
        target[tag] = source[tag]
        for item in source[tag].value if vr == "SQ" else ():
            item.remove_private_tags()


def _copy_or_empty(source: Dataset, target: Dataset, keywords: Iterable[str]) -> None:
    for keyword in keywords:
        setattr(target, keyword, None)
    _copy(source, target, keywords)


def _reference(header: Dataset) -> tuple[str, str]:
    """SOP class and instance; de-identified headers may keep them in the file meta information alone."""
    meta = header.file_meta
    sop_class = _text(header, "SOPClassUID") or str(meta.get("MediaStorageSOPClassUID", ""))
    return sop_class, _text(header, "SOPInstanceUID") or str(meta.get("MediaStorageSOPInstanceUID", ""))


def _is_lossy(header: Dataset) -> bool:
    return _text(header, "LossyImageCompression") == "01" or header.file_meta.get("TransferSyntaxUID") in LOSSY_SYNTAXES


def _text(header: Dataset, keyword: str) -> str:
    """An element's bytes as ASCII text, "" if it is absent: pydicom's own conversion warns of odd values and quotes them."""
    value = header.get_item(Tag(keyword)).value if Tag(keyword) in header else None
    return value.decode("ascii", "replace").strip(" \0") if value else ""


def _numbers(header: Dataset, keyword: str) -> np.ndarray:
    return np.array([float(part) for part in _text(header, keyword).split("\\") if part.strip()])


def _decimals(header: Dataset, keyword: str) -> list[str]:
    """Decimal strings as the source spells them; longer ones than the 16 characters of PS3.5 6.2 are rounded to that."""
    parts = [part.strip() for part in _text(header, keyword).split("\\")]
    return [part if len(part) <= 16 else format_number_as_ds(float(part)) for part in parts]


def _ascii(text: str, length: int) -> str:
    """Text that fits every character set and holds no backslash, which would separate values."""
    return text.encode("ascii", "replace").decode().replace("\\", "/")[:length]


def _uid(*parts: str) -> str:
    return f"2.25.{uuid.uuid5(UID_SPACE, chr(0).join(parts)).int}"


def _replace(folder: Path, partial: Path) -> None:
    """Put the finished folder in the place of an earlier one, which comes back if that fails."""
    earlier = folder.with_name(f".medsynth-old-{folder.name}")
    shutil.rmtree(earlier, ignore_errors=True)
    if folder.exists():
        folder.rename(earlier)
    try:
        partial.rename(folder)
    except OSError:
        if earlier.exists():
            earlier.rename(folder)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
