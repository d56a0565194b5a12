"""The command line: a command parses, imports one verb, prints. Imports no torch, so that help answers at once."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from medsynth import __version__
from medsynth.core.errors import Exit, MedsynthError
from medsynth.tasks import TASKS

app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One-step synthesis of medical images. For research only: not a medical device.",
)
models_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="The models that ship with medsynth.")
app.add_typer(models_app, name="models")

Scan = Annotated[Path, typer.Argument(metavar="IN", help="A scan, a DICOM series, or a folder that mixes them.", show_default=False)]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder for the results.", show_default=False)]
Model = Annotated[
    str,
    typer.Option(
        "--model", help="A bundled name, a model's folder, or hub:owner/name@revision. Default: the task's own.", show_default=False
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda:N or mps.")]
Mask = Annotated[
    Path | None, typer.Option("--mask", help="Mask of the body: a file, or a folder with a mask named as each scan.", show_default=False)
]
Windows = Annotated[
    list[str] | None, typer.Option("--window", help="HU window of the picture: a name or W,L. May be repeated.", show_default=False)
]
Trust = Annotated[str, typer.Option("--trust", help="sform or qform, where a NIfTI file's two disagree.", show_default=False)]
Series = Annotated[
    str, typer.Option("--series", help="Which DICOM series: its UID, number or a part of its description.", show_default=False)
]
VolumeIndex = Annotated[int | None, typer.Option("--volume", min=0, help="Which volume of a 4-D file, from 0.", show_default=False)]
AllowGaps = Annotated[bool, typer.Option("--allow-gaps", help="Interpolate missing slices of a DICOM series.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DEFAULT_WINDOWS = ("head-soft", "bone")


def main() -> None:
    """Entry point of the `medsynth` command."""
    app()


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _add_task(name: str, summary: str) -> None:
    """A command for a task; all tasks share their options."""

    def command(
        source: Scan,
        out: Out,
        model: Model = "",
        device: Device = "auto",
        format_: Annotated[str, typer.Option("--format", help="nifti, dicom (a derived series of a DICOM input) or same.")] = "nifti",
        mask: Mask = None,
        window: Windows = None,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Make again what is there already.")] = False,
        force: Annotated[bool, typer.Option("--force", help="Go on with input that does not look right for the model.")] = False,
        trust: Trust = "",
        series: Series = "",
        volume: VolumeIndex = None,
        allow_gaps: AllowGaps = False,
        allow_burned_in: Annotated[
            bool, typer.Option("--allow-burned-in", help="Accept DICOM whose pixels may show a patient's name.")
        ] = False,
        quiet: Annotated[bool, typer.Option("--quiet", help="Print failures only.")] = False,
    ) -> None:
        with _reported():
            _quiet_threads()
            from medsynth import tasks
            from medsynth.core.windows import parse
            from medsynth.verbs.synthesize import Settings, synthesize

            settings = Settings(
                task=name,
                model=model or tasks.get(name).model,
                source=source,
                out=out,
                device=device,
                format=_one_of("--format", format_, "nifti", "dicom", "same"),
                mask=mask,
                windows=tuple(parse(text) for text in window or DEFAULT_WINDOWS),
                overwrite=overwrite,
                force=force,
                allow_burned_in=allow_burned_in,
                choices=_choices(trust, series, volume, allow_gaps),
            )
            from medsynth.verbs.console import RunPrinter

            printer = RunPrinter(quiet=quiet)
            record = synthesize(settings, printer)
            printer.summary(record)
            raise typer.Exit(record.exit)

    app.command(name, help=summary)(command)


for _name, _summary in TASKS.items():
    _add_task(_name, _summary)


@app.command()
def preview(
    scan: Scan,
    other: Annotated[
        Path | None,
        typer.Argument(metavar="[OTHER]", help="A second scan on the same grid, shown beside it with the difference.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The PNG file. Default: beside the scan.", show_default=False)] = None,
    window: Windows = None,
    at: Annotated[
        str, typer.Option("--at", help="x,y,z in mm (RAS+) of the planes. Default: the middle of the body.", show_default=False)
    ] = "",
    trust: Trust = "",
    series: Series = "",
    volume: VolumeIndex = None,
    allow_gaps: AllowGaps = False,
) -> None:
    """A picture of a scan, or of a pair with its difference, in HU windows."""
    with _reported():
        from medsynth.verbs.preview import preview as verb

        typer.echo(verb(scan, other, out, windows=tuple(window or ()), at=at, choices=_choices(trust, series, volume, allow_gaps)))


@app.command("eval")
def evaluate(
    ref: Annotated[Path, typer.Option("--ref", help="Reference scans: a file or a folder.", show_default=False)],
    pred: Annotated[Path, typer.Option("--pred", help="Predicted scans: a file or a folder.", show_default=False)],
    mask: Mask = None,
    profile: Annotated[
        list[str] | None,
        typer.Option("--profile", help="synthrad2023, synthrad2025 or medsynth. May be repeated. Default: all.", show_default=False),
    ] = None,
    top_hu: Annotated[int, typer.Option("--top-hu", help="Upper end of synthrad2025's range: 3071, or 3000 as before 2025-05-12.")] = 3071,
    json_: Json = False,
) -> None:
    """Measure predicted CTs against references; geometry is compared before any number."""
    with _reported():
        from medsynth.verbs.evaluate import PROFILES, render
        from medsynth.verbs.evaluate import evaluate as verb

        report = verb(ref, pred, mask=mask, profiles=tuple(profile or PROFILES), top_hu=top_hu)
        if json_:
            typer.echo(report.model_dump_json(indent=2))
        else:
            _print(*render(report))
        raise typer.Exit(report.exit)


@models_app.command("list")
def models_list(json_: Json = False) -> None:
    """Name, version, task and summary of each model."""
    with _reported():
        from medsynth.verbs.models import listing, render_listing

        rows = listing()
        typer.echo(json.dumps(rows, indent=2)) if json_ else _print(render_listing(rows))


@models_app.command("show")
def models_show(name: Annotated[str, typer.Argument(help="As for --model.", show_default=False)], json_: Json = False) -> None:
    """Everything that a model's card says, and whether its weights are there and whole."""
    with _reported():
        from medsynth.verbs.models import details, render_details

        shown = details(name)
        typer.echo(json.dumps(shown, indent=2)) if json_ else _print(render_details(shown))


@app.command()
def train(
    card: Annotated[Path, typer.Option("--card", help="A card.toml with a [train] table, or its folder.", show_default=False)],
    data: Annotated[Path, typer.Option("--data", help="The folder that the card's source draws from.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="The folder of the run. A run that is there already goes on.", show_default=False)],
    device: Device = "auto",
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, help="Stop after this step.", show_default=False)] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that draw data ahead, on a CPU.")] = 1,
) -> None:
    """Train a model by its card; a run that was killed goes on from its last checkpoint."""
    with _reported():
        _quiet_threads()
        from medsynth.verbs.train import train as verb

        folder = verb(card, data, out, device=device, max_steps=max_steps, workers=workers, say=typer.echo)
        typer.echo(f"model: {folder}")


@app.command()
def doctor(json_: Json = False) -> None:
    """Versions, devices, caches, models, and what is missing, in one screen."""
    with _reported():
        from medsynth.verbs.doctor import examine, render

        findings = examine()
        typer.echo(json.dumps(findings, indent=2)) if json_ else _print(render(findings))


@contextmanager
def _reported() -> Iterator[None]:
    """Expected failures as code, cause and remedy; others as one line without values, or in full with MEDSYNTH_DEBUG=1."""
    try:
        yield
    except MedsynthError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; run the same command again to go on", err=True)
        raise typer.Exit(Exit.INTERRUPTED) from None
    except (typer.Exit, typer.BadParameter):
        raise
    except Exception as error:
        if os.environ.get("MEDSYNTH_DEBUG"):
            raise
        typer.echo(
            f"E-BUG: {type(error).__name__}\n  remedy: this is a fault of medsynth; MEDSYNTH_DEBUG=1 shows where, please report it",
            err=True,
        )
        raise typer.Exit(Exit.BUG) from None


def _choices(trust: str, series: str, volume: int | None, allow_gaps: bool) -> Any:
    from medsynth.scans.folder import Choices

    return Choices(trust=_one_of("--trust", trust, "", "sform", "qform"), series=series, volume=volume, allow_gaps=allow_gaps)


def _one_of(option: str, value: str, *allowed: str) -> Any:
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(name for name in allowed if name)}", param_hint=option)
    return value


def _print(*renderables: Any) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, markup=False)  # names may hold brackets
    for renderable in renderables:
        console.print(renderable)


def _quiet_threads() -> None:
    """Must precede torch's import: OpenMP threads that wait for each other by spinning starve the stages that work beside them."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
