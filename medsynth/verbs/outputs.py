"""The files that a run leaves for each scan: the volume, its picture, and a sidecar that says how it was made.

`<case>_<suffix>.nii.gz` (or the format asked for), `.png` and `.json`. The sidecar is written last: with it, the case is complete. It
holds a fingerprint of the scan, the model and the settings, and the hash of the output; a later run skips what still agrees.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from medsynth import __version__
from medsynth.core.errors import UsageError
from medsynth.core.task import Task
from medsynth.core.volume import Volume
from medsynth.core.windows import Window
from medsynth.scans import dicom_write, folder, itk, nifti
from medsynth.scans.files import replacing
from medsynth.verbs import picture
from medsynth.zoo import Model

Format = Literal["nifti", "dicom", "same"]
DISCLAIMER = "synthetic, for research only"
MAP = "uncertainty"


@dataclass(frozen=True, kw_only=True)
class Making:
    """What all outputs of a run share: where they go, and what made them.

    model: None for a method that needs none. method: what it is called in that case. settings: what decides an output, without paths.
    """

    out: Path
    task: Task
    model: Model | None
    method: str = ""
    settings: dict[str, Any]
    format: Format = "nifti"
    allow_burned_in: bool = False

    @property
    def maker(self) -> str:
        """The model, or the method, with its version."""
        return f"{self.model.card.name} {self.model.card.version}" if self.model else f"{self.method} (medsynth {__version__})"

    @property
    def sha256(self) -> str:
        """Of the model's weights; "" if there are none."""
        return self.model.card.weights.sha256 if self.model and self.model.card.weights else ""

    @property
    def recipe(self) -> str:
        """What was asked for, and how the card builds the model: the same weights under another configuration give another CT."""
        built = self.model.card.model_dump(mode="json", include={"task", "generator", "config", "grid"}) if self.model else {}
        return json.dumps({**self.settings, **built}, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Product:
    """One finished scan. output: on the scan's grid, with its origin. picture: draws it. facts: further keys of the sidecar.

    uncertainty: expected absolute error in the unit of the output, on the same grid.
    """

    output: Volume
    picture: Callable[[], Image.Image]
    warnings: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    uncertainty: Volume | None = None


def output_name(found: folder.Found, suffix: str, format_: Format) -> str:
    """Name of the output volume; a folder for DICOM."""
    stem = f"{found.case}_{suffix}"
    if format_ == "dicom" or (format_ == "same" and found.kind == "dicom"):
        return stem
    if format_ == "same" and found.kind in ("nrrd", "mha"):
        return f"{stem}.{found.kind}"
    return f"{stem}.nii.gz"


def write(product: Product, making: Making, fingerprint: str) -> str:
    """Volume, map if there is one, picture, sidecar: in this order, each under a temporary name first. Returns the volume's name."""
    origin, suffix = product.output.origin, making.task.suffix
    found = folder.Found(kind=origin.kind, case=origin.case, files=origin.files, series=origin.series)
    name, map_name = output_name(found, suffix, making.format), f"{found.case}_{MAP}.nii.gz"
    sidecar_path = making.out / f"{found.case}_{suffix}.json"
    if product.uncertainty is None and _names_map(sidecar_path, map_name):
        (making.out / map_name).unlink(missing_ok=True)  # of the output that this one replaces; a map that nothing names is another's
    sidecar_path.unlink(missing_ok=True)  # an earlier one must not vouch for files that are half replaced
    _write_volume(product.output, making.out / name, making)
    if product.uncertainty is not None:
        nifti.write(product.uncertainty, making.out / map_name, dtype="int16")
    picture.save(product.picture(), making.out / f"{found.case}_{suffix}.png")
    sidecar: dict[str, Any] = {
        "Description": f"{making.task.summary} {DISCLAIMER}",
        "GeneratedBy": {"Name": "medsynth", "Version": __version__},
        "Model": _described_model(making),
        "Sources": [file.name for file in origin.files[:1]],
        "Settings": making.settings,
        "Units": making.task.target.unit,
        **product.facts,
        "Warnings": list(product.warnings),
        "Fingerprint": fingerprint,
        "Output": {"Name": name, "Sha256": content_hash(making.out / name)},
    }
    if product.uncertainty is not None:
        sidecar["Uncertainty"] = {"Name": map_name, "Sha256": content_hash(making.out / map_name)}
    write_json(sidecar_path, sidecar)
    return name


def describe_dataset(out: Path, task: Task) -> None:
    """dataset_description.json, by which BIDS tools know a folder of derivatives (BIDS 1.9, Derived dataset)."""
    description = {
        "Name": task.summary,
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "medsynth", "Version": __version__}],
    }
    write_json(out / "dataset_description.json", description, ascii_only=True)


def fingerprint(files: Iterable[Path], making: Making, *further: str) -> str:
    """What decides the output: the bytes of the files, the model with its configuration, the settings and this version."""
    digest = hashlib.sha256()
    for part in (__version__, making.sha256, making.recipe, *further):
        digest.update(part.encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_complete(sidecar_path: Path, fingerprint_now: str, ending: str = ".png") -> bool:
    """Whether the outputs that a sidecar names are there, whole, and made in the same way; and the file beside it with that ending."""
    folder_, beside = sidecar_path.parent, sidecar_path.with_name(f"{sidecar_path.name.removesuffix('.json')}{ending}")
    try:
        sidecar = json.loads(sidecar_path.read_text(encoding="utf-8"))
        outputs = [sidecar["Output"], *([sidecar["Uncertainty"]] if "Uncertainty" in sidecar else [])]
        whole = beside.exists() and all(content_hash(folder_ / output["Name"]) == output["Sha256"] for output in outputs)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return whole and sidecar.get("Fingerprint") == fingerprint_now


def described_windows(windows: Iterable[Window]) -> list[str]:
    """As a record names them: `width,level`."""
    return [f"{w.width:g},{w.level:g}" for w in windows]


def described_choices(choices: folder.Choices) -> dict[str, Any]:
    """Those that were made."""
    return {k: v for k, v in vars(choices).items() if v is not None and v is not False and v != ""}


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


def write_json(path: Path, values: dict[str, Any], *, ascii_only: bool = False) -> None:
    """The file in one piece."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=ascii_only) + "\n")


def write_text(path: Path, text: str) -> None:
    """The file in one piece."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _names_map(sidecar_path: Path, map_name: str) -> bool:
    """Whether an earlier run's sidecar counts a map among its outputs."""
    try:
        return json.loads(sidecar_path.read_text(encoding="utf-8"))["Uncertainty"]["Name"] == map_name
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _partial(out: Path) -> Iterable[Path]:
    return [path for path in out.iterdir() if path.name.startswith(".medsynth-")]


def _write_volume(output: Volume, path: Path, making: Making) -> None:
    if path.name.endswith(".nii.gz"):
        nifti.write(output, path, dtype="int16")
    elif path.suffix in (".nrrd", ".mha"):
        itk.write(output, path, dtype="int16")
    else:
        dicom_write.write(
            output,
            path,
            model=making.maker,
            model_sha256=making.sha256,
            settings=making.recipe,
            allow_burned_in=making.allow_burned_in,
        )


def _described_model(making: Making) -> dict[str, str] | None:
    if making.model is None:
        return None
    card = making.model.card
    return {"Name": card.name, "Version": card.version, "Revision": making.model.revision, "Sha256": making.sha256}
