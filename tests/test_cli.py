"""What the command line offers: a snapshot of every option, start-up without torch, and what it says of wrong usage."""

import inspect
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args

import phantom
import pytest
import typer
from commandline import medsynth

import medsynth as package
from medsynth.cli import app
from medsynth.core.errors import Exit
from medsynth.verbs import learn, models

SNAPSHOT = Path(__file__).with_name("cli.txt")
HEAVY = ("torch", "monai", "SimpleITK", "numpy", "scipy", "nibabel", "pydicom", "PIL", "huggingface_hub", "lightning_fabric")
LOADED = """
import sys
from medsynth.cli import main
sys.argv = ["medsynth", *sys.argv[1:]]
try:
    main()
finally:
    print("loaded:", *(name for name in {heavy} if name in sys.modules), file=sys.stderr)
"""


def commands(group: typer.Typer, path: str = "medsynth") -> Iterator[tuple[str, Callable[..., None]]]:
    """(`medsynth models list`, the function behind it) for all commands, by name."""
    if group.registered_callback is not None and group.registered_callback.callback is not None:
        yield path, group.registered_callback.callback
    named = {
        command.name or command.callback.__name__.replace("_", "-"): command.callback
        for command in group.registered_commands
        if command.callback
    }
    yield from ((f"{path} {name}", function) for name, function in sorted(named.items()))
    for part in group.registered_groups:
        assert part.typer_instance is not None
        yield from commands(part.typer_instance, f"{path} {part.name}")


def parameters(function: Callable[..., None]) -> Iterator[str]:
    """A line for each: names, type, default."""
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = get_args(parameter.annotation)
        # In Annotated, typer keeps the first name of an option where its default would be.
        words = [word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str)]
        names = " ".join(words) or info.metavar or name
        default = "required" if parameter.default is inspect.Parameter.empty else f"default {parameter.default!r}"
        yield f"  {names}: {type_name(kind)}, {default}"


def type_name(kind: Any) -> str:
    """As it is written; Python's own words for `Path | None` differ between versions."""
    if isinstance(kind, UnionType):
        return " | ".join(type_name(part) for part in get_args(kind))
    return "None" if kind is NoneType else str(kind) if get_args(kind) else kind.__name__


def current() -> str:
    lines = [line for path, function in commands(app) for line in (path, *parameters(function))]
    return "\n".join(lines) + "\n"


def test_every_option_is_as_in_the_snapshot() -> None:
    """Options are what scripts depend on: a change must be meant."""
    assert current() == SNAPSHOT.read_text(encoding="utf-8"), "if the change is meant: python tests/test_cli.py"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("mri2ct", "--help"),
        ("sparse-ct", "--help"),
        ("project", "--help"),
        ("models", "list"),
        ("models", "list", "--json"),
        ("models", "show", "mri2ct-head"),
    ],
    ids=" ".join,
)
def test_help_and_listings_load_no_large_library(arguments: tuple[str, ...]) -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOADED.format(heavy=HEAVY), *arguments], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert result.returncode == 0
    assert result.stderr.splitlines()[-1].split() == ["loaded:"]


def test_the_version_is_the_packages() -> None:
    result = medsynth("--version")
    assert (result.exit_code, result.stdout) == (0, f"{package.__version__}\n")


def test_without_arguments_it_shows_its_commands() -> None:
    printed = medsynth().output
    for name in ("mri2ct", "sparse-ct", "project", "preview", "eval", "models", "train", "doctor"):
        assert name in printed


def test_help_says_that_it_is_no_medical_device() -> None:
    assert "not a medical device" in " ".join(medsynth("--help").stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mri2ct", "IN", "OUT", "--colour"), "--colour"),
        (("mri2ct", "IN"), "OUT"),
        (("sparse-mri",), "sparse-mri"),
        (("mri2ct", "IN", "OUT", "--format", "jpeg"), "none of nifti, dicom, same"),
        (("mri2ct", "IN", "OUT", "--trust", "both"), "none of sform, qform"),
        (("mri2ct", "IN", "OUT", "--volume", "-1"), "--volume"),
        (("mri2ct", "IN", "OUT", "--window", "wide"), "E-WINDOW"),
        (("mri2ct", "IN", "OUT", "--model", "no-such-model"), "E-MODEL"),
        (("mri2ct", "IN", "OUT", "--device", "cuda:99"), "E-DEVICE"),
        (("mri2ct", "IN", "OUT", "--device", "tpu"), "E-DEVICE"),
        (("mri2ct", "IN/missing", "OUT"), "E-PATH"),
        (("preview", "IN/missing"), "E-PATH"),
        (("models", "show", "no-such-model"), "E-MODEL"),
        (("train", "--card", "IN", "--data", "IN", "--out", "OUT"), "E-CARD"),
        (("eval", "--ref", "IN", "--pred", "IN", "--profile", "synthrad1999"), "E-PROFILE"),
        (("sparse-ct", "IN", "OUT", "--views", "0"), "--views"),
        (("sparse-ct", "IN", "OUT", "--views", "18", "--passes", "0"), "--passes"),
        (("sparse-ct", "IN", "OUT", "--views", "18", "--i0", "1"), "--i0"),
        (("sparse-ct", "IN", "OUT", "--views", "18", "--method", "art"), "none of network, fbp, sirt, tv"),
        (("sparse-ct", "IN", "OUT", "--views", "18", "--format", "jpeg"), "none of nifti, dicom, same"),
        (("sparse-ct", "IN", "OUT", "--views", "18", "--window", "wide"), "E-WINDOW"),
        (("sparse-ct", "IN", "OUT", "--views", "18", "--model", "no-such-model"), "E-MODEL"),
        (("sparse-ct", "IN", "OUT", "--views", "18", "--method", "tv", "--device", "tpu"), "E-DEVICE"),
        (("sparse-ct", "IN/missing", "OUT", "--views", "18", "--method", "tv"), "E-PATH"),
        (("sparse-ct", "IN", "OUT", "--geometry", "IN/missing", "--method", "tv"), "E-PATH"),
        (("project", "IN", "OUT"), "E-OPTION"),
        (("train", "--task", "mri2ct", "--data", "IN", "--out", "OUT", "--views", "18"), "--task sparse-ct"),
        (("train", "--task", "sparse-ct", "--data", "IN", "--out", "OUT", "--views", "18,many"), "18,36,72"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_said_with_status_2_and_leaves_nothing(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    phantom.write_nifti(tmp_path / "in" / "a.nii.gz")
    places = {"IN": str(tmp_path / "in"), "OUT": str(tmp_path / "out"), "IN/missing": str(tmp_path / "in" / "missing")}
    result = medsynth(*(places.get(argument, argument) for argument in arguments))
    assert result.exit_code == Exit.USAGE
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "passed"), [(("--views", "18,36, 72"), (18, 36, 72)), ((), ())])
def test_the_views_to_learn_are_passed_on_as_numbers(
    given: tuple[str, ...], passed: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(learn, "recipe_of", lambda *_, **options: asked.append(options))
    monkeypatch.setattr(learn, "learn", lambda *_: tmp_path)
    result = medsynth("train", "--task", "sparse-ct", "--data", tmp_path, "--out", tmp_path / "run", *given)
    assert result.exit_code == 0
    assert asked == [{"name": "run", "views": passed}]


def test_a_fault_is_one_line_without_values_and_in_full_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("Phantom^Name")

    monkeypatch.setattr(models, "listing", fail)
    result = medsynth("models", "list")
    assert result.exit_code == Exit.BUG
    assert result.stderr.startswith("E-BUG: ZeroDivisionError")
    assert "Phantom" not in result.output
    monkeypatch.setenv("MEDSYNTH_DEBUG", "1")
    assert isinstance(medsynth("models", "list").exception, ZeroDivisionError)


def test_a_listing_for_machines_is_json() -> None:
    result = medsynth("models", "list", "--json")
    assert result.exit_code == 0
    assert {"name": "mri2ct-head", "task": "mri2ct"}.items() <= json.loads(result.stdout)[0].items()


def test_a_models_card_is_shown_whole_with_the_state_of_its_weights() -> None:
    result = medsynth("models", "show", "mri2ct-head", "--json")
    shown = json.loads(result.stdout)
    assert result.exit_code == 0
    assert shown["weights_state"].startswith("whole")
    card = tomllib.loads((Path(package.__file__).parents[1] / "models" / "mri2ct-head" / "card.toml").read_text(encoding="utf-8"))
    assert shown["grid"] == card["grid"]
    assert len(shown["metrics"]) == len(card["metrics"])
    assert card["data"]["licence"] in medsynth("models", "show", "mri2ct-head").stdout


def test_names_with_brackets_are_printed_as_they_are(tmp_path: Path) -> None:
    """rich takes words in brackets for styles."""
    phantom.write_nifti(tmp_path / "in" / "scan [bold] [no.1].nii.gz", phantom.mr_head() * 0)
    result = medsynth("mri2ct", tmp_path / "in", tmp_path / "out")
    assert result.stderr.count("scan [bold] [no.1]") == 2


if __name__ == "__main__":
    SNAPSHOT.write_text(current(), encoding="utf-8")
