"""The files that a run leaves for each scan: the volume, its picture, and a sidecar that says how it was made.

`<case>_<suffix>.nii.gz` (or the format asked for), `.png` and `.json`. The sidecar is written last: with it, the case is complete. It
holds a fingerprint of the scan, the model and the settings, and the hash of the output; a later run skips what still agrees.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medsynth import __version__
from medsynth.core.errors import UsageError
from medsynth.core.task import Prepared, Task
from medsynth.core.volume import Volume
from medsynth.scans import dicom_write, folder, itk, nifti
from medsynth.scans.files import replacing
from medsynth.verbs import picture
from medsynth.verbs.record import Case
from medsynth.zoo import Model

if TYPE_CHECKING:
    from medsynth.verbs.synthesize import Settings

Format = Literal["nifti", "dicom", "same"]
DISCLAIMER = "synthetic, for research only"


def output_name(found: folder.Found, suffix: str, format_: Format) -> str:
    """Name of the output volume; a folder for DICOM."""
    stem = f"{found.case}_{suffix}"
    if format_ == "dicom" or (format_ == "same" and found.kind == "dicom"):
        return stem
    if format_ == "same" and found.kind in ("nrrd", "mha"):
        return f"{stem}.{found.kind}"
    return f"{stem}.nii.gz"


def write(
    output: Volume,
    scan: Volume,
    prepared: Prepared,
    task: Task,
    model: Model,
    settings: "Settings",
    fingerprint: str,
    seconds: dict[str, float],
    began: float,
) -> Case:
    """Volume, picture, sidecar: in this order, each under a temporary name first."""
    found = folder.Found(kind=scan.origin.kind, case=scan.origin.case, files=scan.origin.files, series=scan.origin.series)
    name = output_name(found, task.suffix, settings.format)
    path = settings.out / name
    warnings = prepared.warnings + scan.origin.notes
    sidecar_path = settings.out / f"{found.case}_{task.suffix}.json"
    sidecar_path.unlink(missing_ok=True)  # an earlier one must not vouch for files that are half replaced
    _write_volume(output, path, model, settings)
    image = picture.draw_pair(
        scan, output, settings.windows, footer=f"{model.card.name} {model.card.version} · {DISCLAIMER}", warnings=warnings
    )
    picture.save(image, settings.out / f"{found.case}_{task.suffix}.png")
    sidecar: dict[str, Any] = {
        "Description": f"{task.summary} {DISCLAIMER}",
        "GeneratedBy": {"Name": "medsynth", "Version": __version__},
        "Model": {"Name": model.card.name, "Version": model.card.version, "Revision": model.revision, "Sha256": _sha256_of(model)},
        "Sources": [file.name for file in scan.origin.files[:1]],
        "Settings": described(settings),
        "Units": task.target.unit,
        "InputScale": vars(prepared.source_scale),
        "Warnings": list(warnings),
        "Fingerprint": fingerprint,
        "Output": {"Name": name, "Sha256": content_hash(path)},
    }
    _write_text(sidecar_path, json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n")
    seconds["write"] = time.perf_counter() - began
    return Case(case=found.case, status="done", output=name, warnings=warnings, seconds=seconds)


def describe_dataset(out: Path, task: Task) -> None:
    """dataset_description.json, by which BIDS tools know a folder of derivatives (BIDS 1.9, Derived dataset)."""
    description = {
        "Name": task.summary,
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "medsynth", "Version": __version__}],
    }
    _write_text(out / "dataset_description.json", json.dumps(description, indent=2) + "\n")


def fingerprint(found: folder.Found, mask: folder.Found | None, model: Model, settings: "Settings") -> str:
    """What decides the output: the scan's bytes, the mask's, the model with its configuration, the settings and this version."""
    digest = hashlib.sha256()
    for part in (__version__, _sha256_of(model), _recipe(model, settings)):
        digest.update(part.encode())
    for path in (*found.files, *(mask.files if mask else ())):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_complete(case: str, suffix: str, fingerprint_now: str, settings: "Settings") -> bool:
    """Whether the output is there, whole, and made in the same way."""
    try:
        sidecar = json.loads((settings.out / f"{case}_{suffix}.json").read_text(encoding="utf-8"))
        path = settings.out / sidecar["Output"]["Name"]
        whole = path.exists() and content_hash(path) == sidecar["Output"]["Sha256"] and (settings.out / f"{case}_{suffix}.png").exists()
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return whole and sidecar.get("Fingerprint") == fingerprint_now


def described(settings: "Settings") -> dict[str, Any]:
    """The settings that change an output, without paths."""
    choices = {k: v for k, v in vars(settings.choices).items() if v is not None and v is not False and v != ""}
    windows = [f"{w.width:g},{w.level:g}" for w in settings.windows]
    flags = {k: True for k in ("force", "allow_burned_in") if getattr(settings, k)}
    return {"task": settings.task, "format": settings.format, "mask": settings.mask is not None, "windows": windows, **flags, **choices}


def match_masks(path: Path | None, found: list[folder.Found]) -> dict[str, folder.Found]:
    """Case -> its mask: one file for one scan, or a folder whose files are named as the scans are (or with `_mask` behind).

    Raises UsageError E-MASK if a scan has none.
    """
    if path is None:
        return {}
    masks = folder.find(path, choices=folder.Choices())
    if path.is_file() and len(found) == 1:
        return {found[0].case: masks[0]}
    by_name = {mask.case.removesuffix("_mask"): mask for mask in masks}
    missing = [item.case for item in found if item.case not in by_name]
    if missing:
        raise UsageError(
            "E-MASK",
            f"no mask for {len(missing)} of {len(found)} scans, first: {missing[0]}",
            remedy="name masks as their scans, or give one scan with one mask",
        )
    return {item.case: by_name[item.case] for item in found}


def content_hash(path: Path) -> str:
    """sha256 of a file, or of a folder's files in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def prepare_folder(out: Path) -> None:
    """Makes the folder and clears it of what a killed run left. Raises UsageError E-OUTPUT if that is impossible."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            "E-OUTPUT", f"{out.name} cannot be a folder: {error.strerror}", remedy="give another folder for the results"
        ) from None
    remove_partial(out)


def remove_partial(out: Path) -> None:
    """Deletes what a killed run left under temporary names."""
    for path in _partial(out):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _partial(out: Path) -> Iterable[Path]:
    return [path for path in out.iterdir() if path.name.startswith(".medsynth-")]


def _write_volume(output: Volume, path: Path, model: Model, settings: "Settings") -> None:
    if path.name.endswith(".nii.gz"):
        nifti.write(output, path, dtype="int16")
    elif path.suffix in (".nrrd", ".mha"):
        itk.write(output, path, dtype="int16")
    else:
        dicom_write.write(
            output,
            path,
            model=f"{model.card.name} {model.card.version}",
            model_sha256=_sha256_of(model),
            settings=_recipe(model, settings),
            allow_burned_in=settings.allow_burned_in,
        )


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _recipe(model: Model, settings: "Settings") -> str:
    """What was asked for, and how the card builds the model: the same weights under another configuration give another CT."""
    built = model.card.model_dump(mode="json", include={"task", "generator", "config", "grid"})
    return json.dumps({**described(settings), **built}, sort_keys=True)


def _sha256_of(model: Model) -> str:
    return model.card.weights.sha256 if model.card.weights else ""
