"""Finds the pairs of scans in a folder that somebody wants to train on, whichever of four layouts it has, and sets patients aside.

- folders: `mr/`, `ct/` and, if there are masks, `mask/`, with one name for what belongs together (`mr/07.nii.gz`, `ct/07.mha`).
- patients: one folder a patient, at any depth, with `mr.*`, `ct.*` and perhaps `mask.*` (SynthRAD); a DICOM series is a folder `mr/`.
- BIDS: `sub-*/[ses-*/]{anat,ct}/`, MRs by their suffix (T1w, T2w, ...), CTs `_ct`, masks `_mask`; a CT serves all MRs of its session.
- CSV: a table with the columns `patient`, `mr`, `ct`, perhaps `mask` and `split`; paths from the table's own folder.

A patient is what BIDS calls `sub-X`, else the folder's name, the column of the table, or the file's name without its ending.
"""

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from medsynth.core.errors import ScanError, UsageError
from medsynth.core.volume import Volume
from medsynth.scans import folder

MASK, TABLE = "mask", "pairs.csv"
SIDES: dict[str, Literal["", "training", "validation"]] = {"": "", "train": "training", "validation": "validation"}
MR_SUFFIXES = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "UNIT1", "mr")
ROLES = {"ct", "mr", "mri", "image", "images", "scan", "scans"}  # folders so named say what is in them, not whose it is
DEPTH = 6  # of folders below the data; links may lead in a circle
LISTED = 12
LAYOUTS = (
    "the layouts: folders {source}/ and {target}/ with files of one name; a folder for each patient with {source}.nii.gz and "
    f"{{target}}.nii.gz; BIDS; or a table {TABLE} with the columns patient,{{source}},{{target}} (docs/training-data.md)"
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pair. case: unique among those found together. source, target, mask: an image file, or the folder of a DICOM series.

    side: where the table's `split` puts the patient; "" leaves it to `split`.
    """

    patient: str
    case: str
    source: Path
    target: Path
    mask: Path | None = None
    side: Literal["", "training", "validation"] = ""


def find_pairs(data: Path, *, source: str = "mr", target: str = "ct") -> list[Case]:
    """The pairs in a folder, or in a CSV, in the order of their names. source, target: the task's quantities, by which files are named.

    Raises UsageError E-PATH if there is no such path; ScanError E-PAIRS if no layout fits, if a scan has no partner or several, or if the
    table has other columns or names files that are not there.
    """
    if not data.exists():
        raise UsageError("E-PATH", f"there is no file or folder {data.name or data}", remedy="check the path")
    table = data if data.is_file() else data / TABLE
    if table.is_file():
        cases = _from_table(table, source, target)
    elif _holds_scans(data / source) or _holds_scans(data / target):
        cases = _from_folders(data, source, target)
    elif sessions := list(_sessions(data, source, target)):
        cases = _from_bids(sessions, source, target)
    else:
        cases = _from_patients(data, source, target)
    if not cases:
        raise ScanError(
            "E-PAIRS", f"{data.name or data} fits no layout; it holds {_held(data)}", remedy=LAYOUTS.format(source=source, target=target)
        )
    return _distinct(sorted(cases, key=lambda case: (case.case, case.source.as_posix())))


def split(cases: list[Case], *, share: float = 0.15, seed: int = 0) -> tuple[list[Case], list[Case]]:
    """(training, validation), by patient, never by scan.

    A patient's side follows from its name and the seed, so that it stays where it is when others are added; where the table names a side,
    that holds. If one side would be empty, the patient that is nearest to it moves there. Raises ScanError E-PAIRS for fewer than two
    patients, and if the table puts one patient on both sides or all on one.
    """
    fixed: dict[str, set[str]] = {}
    for case in cases:
        fixed.setdefault(case.patient, set()).update({case.side} - {""})
    torn = sorted(patient for patient, sides in fixed.items() if len(sides) > 1)
    if torn:
        raise ScanError(
            "E-PAIRS", f"the table puts a patient on both sides: {_listed(torn)}", remedy="give all rows of a patient one split"
        )
    if len(fixed) < 2:
        cause = f"there are {len(cases)} pairs of {len(fixed)} patient(s), and validation needs a patient that training never sees"
        raise ScanError("E-PAIRS", cause, remedy="add a second patient; name patients in a table if the names do not tell them apart")
    draw = {patient: _draw(patient, seed) for patient in fixed}
    side = {patient: next(iter(sides), "validation" if draw[patient] < share else "training") for patient, sides in fixed.items()}
    free = sorted((patient for patient, sides in fixed.items() if not sides), key=lambda patient: draw[patient])
    for name, nearest in (("validation", free[:1]), ("training", free[-1:])):
        if name not in side.values():
            if not nearest:
                raise ScanError(
                    "E-PAIRS", f"the table leaves no patient for {name}", remedy="change the split of a patient, or leave it empty"
                )
            side[nearest[0]] = name
    return [case for case in cases if side[case.patient] == "training"], [case for case in cases if side[case.patient] == "validation"]


def read_scan(path: Path) -> Volume:
    """The scan in a file, or in the folder of a DICOM series. Raises ScanError: as `folder.read`, and E-PAIRS if there are several."""
    found = folder.find(path, choices=folder.Choices())
    if len(found) > 1:
        raise ScanError("E-PAIRS", f"{path.name} holds {len(found)} scans", remedy="keep one of them there, or name it in a table")
    return folder.read(found[0], choices=folder.Choices())


def scan_files(path: Path) -> tuple[Path, ...]:
    """The files that `read_scan` reads. Raises as `folder.find`."""
    return folder.find(path, choices=folder.Choices())[0].files


def _from_folders(data: Path, source: str, target: str) -> list[Case]:
    kinds = {kind: _by_stem(data / kind, kind) for kind in (source, target, MASK)}
    keys = sorted(set(kinds[source]) | set(kinds[target]) | set(kinds[MASK]))
    _refuse_several({f"{kind}/{key}": paths for kind, scans in kinds.items() for key, paths in scans.items()})
    lone = [
        f"{kind}/{kinds[kind][key][0].name}"
        for key in keys
        for kind in kinds
        if key in kinds[kind] and not _whole(key, kinds, source, target)
    ]
    _refuse_lone(lone)
    return [
        Case(
            patient=_subject(key) or key,
            case=key,
            source=kinds[source][key][0],
            target=kinds[target][key][0],
            mask=kinds[MASK].get(key, [None])[0],
        )
        for key in keys
    ]


def _whole(key: str, kinds: dict[str, dict[str, list[Path]]], source: str, target: str) -> bool:
    return key in kinds[source] and key in kinds[target]


def _from_patients(data: Path, source: str, target: str) -> list[Case]:
    cases: list[Case] = []
    lone: list[str] = []
    for place in _folders(data):
        held = _by_stem(place)
        roles = {kind: paths for kind in (source, target, MASK) for stem, paths in held.items() if stem.casefold() == kind}
        name = place.relative_to(data).as_posix()
        _refuse_several({f"{name}/{kind}": paths for kind, paths in roles.items()})
        if source in roles and target in roles:
            patient = (place if place != data else place.resolve()).name
            mask = roles.get(MASK, [None])[0]
            cases.append(Case(patient=patient, case=patient, source=roles[source][0], target=roles[target][0], mask=mask))
        else:
            lone += [f"{name}/{roles[kind][0].name}" for kind in (source, target) if kind in roles]
    _refuse_lone(lone)
    return cases


def _from_bids(sessions: list[tuple[Path, dict[str, list[Path]]]], source: str, target: str) -> list[Case]:
    _refuse_lone([scan.name for _, held in sessions for scan in held[source] + held[target] if not (held[source] and held[target])])
    _refuse_several({f"{place.name}, {kind}": held[kind] for place, held in sessions for kind in (target, MASK)})
    return [
        Case(
            patient=_subject(scan.name) or place.name,
            case=_stem(scan),
            source=scan,
            target=held[target][0],
            mask=next(iter(held[MASK]), None),
        )
        for place, held in sessions
        for scan in held[source]
    ]


def _sessions(data: Path, source: str, target: str) -> Iterator[tuple[Path, dict[str, list[Path]]]]:
    """Folders `sub-X` or `sub-X/ses-Y` that hold scans of either kind, with these."""
    for place in sorted([*data.glob("sub-*"), *data.glob("sub-*/ses-*")]):
        files = [file for part in ("anat", "ct") for file in sorted((place / part).glob("sub-*_*")) if _stem(file)]
        by_suffix = [(_stem(file).rsplit("_", 1)[1], file) for file in files]
        suffixes = {source: MR_SUFFIXES if source == "mr" else (source,), target: (target,), MASK: (MASK,)}
        held = {kind: [file for suffix, file in by_suffix if suffix in wanted] for kind, wanted in suffixes.items()}
        if held[source] or held[target]:
            yield place, held


def _from_table(table: Path, source: str, target: str) -> list[Case]:
    remedy = f"the first line names the columns, with commas between them: patient,{source},{target}[,mask][,split]"
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="more", restval="", skipinitialspace=True)
            rows, columns = list(reader), reader.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise ScanError("E-PAIRS", f"{table.name} is no CSV in UTF-8: {error}", remedy=remedy) from None
    required, known = {"patient", source, target}, {"patient", source, target, MASK, "split"}
    if not required <= set(columns) <= known:
        raise ScanError("E-PAIRS", f"the columns of {table.name} are {', '.join(columns) or 'none'}", remedy=remedy)
    if not rows:
        raise ScanError("E-PAIRS", f"{table.name} has no rows", remedy="add a row for each pair")
    wrong = [f"line {line}: {fault}" for line, row in enumerate(rows, 2) if (fault := _fault(row, table.parent, (source, target)))]
    again = Counter(row[source] for row in rows)
    wrong += [f"{name} is in {count} rows" for name, count in again.items() if count > 1]
    if wrong:
        raise ScanError(
            "E-PAIRS", f"{table.name}: {_listed(wrong)}", remedy="paths are relative to the table; split is train or validation"
        )
    several = {patient for patient, count in Counter(row["patient"] for row in rows).items() if count > 1}
    return [
        Case(
            patient=row["patient"],
            case=row["patient"] + (f"_{_stem(Path(row[source])) or Path(row[source]).name}" if row["patient"] in several else ""),
            source=table.parent / row[source],
            target=table.parent / row[target],
            mask=table.parent / row[MASK] if row.get(MASK) else None,
            side=SIDES[row.get("split", "")],
        )
        for row in rows
    ]


def _fault(row: dict[str, str], base: Path, required: tuple[str, str]) -> str:
    """What is wrong with a row of the table, or ""."""
    if "more" in row or not row["patient"] or not all(row[kind] for kind in required):
        return "a value is missing, or there is one too many"
    gone = [row[kind] for kind in (*required, MASK) if row.get(kind) and not (base / row[kind]).exists()]
    if gone:
        return f"{gone[0]} is not there"
    return "" if row.get("split", "") in SIDES else f"split is {row['split']!r}"


def _by_stem(place: Path, word: str = "") -> dict[str, list[Path]]:
    """Scans directly in a folder: image files, and sub-folders that hold a DICOM series. A name may end in `word` (`07_mr.nii.gz`)."""
    scans: dict[str, list[Path]] = {}
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        stem = path.name if _is_series(path) else _stem(path)
        key = re.sub(rf"[_-]{re.escape(word)}$", "", stem, flags=re.IGNORECASE) if word else stem
        if key and not path.name.startswith("."):
            scans.setdefault(key, []).append(path)
    return scans


def _stem(path: Path) -> str:
    """An image file's name without its ending, "" for what is no image file."""
    ending = next((ending for ending in folder.ENDINGS if path.name.lower().endswith(ending)), "")
    return path.name[: -len(ending)] if ending and not path.is_dir() else ""


def _is_series(path: Path) -> bool:
    """Whether a folder may be a DICOM series: files, none of them an image file by its ending."""
    held = [item for item in path.iterdir() if not item.name.startswith(".")] if path.is_dir() else []
    return bool(held) and not any(item.is_dir() or _stem(item) for item in held)


def _holds_scans(place: Path) -> bool:
    """Whether a folder `mr/` holds scans, one a patient, rather than the slices of one."""
    return place.is_dir() and bool(_by_stem(place))


def _folders(data: Path) -> Iterator[Path]:
    for parent, folders, _ in os.walk(data, followlinks=True):
        place = Path(parent)
        deepest = len(place.relative_to(data).parts) >= DEPTH
        folders[:] = [] if deepest else sorted(name for name in folders if not name.startswith("."))
        yield place


def patient_of(path: Path, case: str) -> str:
    """Whose scan lies at a path below the data: BIDS's `sub-X`, else the first folder that names no role, else the scan's own name."""
    first = next((name for name in path.parts[:-1] if name.casefold() not in ROLES), "")
    return _subject(path.name) or first or case


def _subject(name: str) -> str:
    """BIDS's `sub-X` at the beginning of a name, or ""."""
    match = re.match(r"sub-[A-Za-z0-9]+", name)
    return match[0] if match else ""


def _draw(patient: str, seed: int) -> float:
    """A number from 0 to 1 that only the name and the seed decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:8], "big") / 2**64


def _distinct(cases: list[Case]) -> list[Case]:
    seen: Counter[str] = Counter()
    named: list[Case] = []
    for case in cases:
        seen[case.case] += 1
        named.append(replace(case, case=f"{case.case}_{seen[case.case]}") if seen[case.case] > 1 else case)
    return named


def _refuse_lone(lone: list[str]) -> None:
    if lone:
        remedy = "name both sides alike, add what is missing, move these away, or list the pairs in a table"
        raise ScanError("E-PAIRS", f"{len(lone)} file(s) without a partner: {_listed(lone)}", remedy=remedy)


def _refuse_several(candidates: dict[str, list[Path]]) -> None:
    several = [f"{name} ({', '.join(path.name for path in paths)})" for name, paths in candidates.items() if len(paths) > 1]
    if several:
        raise ScanError("E-PAIRS", f"several files for one place: {_listed(several)}", remedy="keep one, or list the pairs in a table")


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + rest


def _held(data: Path) -> str:
    """What a folder holds, in a few words."""
    if data.is_file():
        return "no table"
    items = sorted(f"{item.name}/" if item.is_dir() else item.name for item in data.iterdir() if not item.name.startswith("."))
    return _listed(items) or "nothing"
