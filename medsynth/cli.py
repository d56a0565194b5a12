"""The command line: a command parses, imports one verb, prints. Imports no torch, so that help answers at once."""

import errno
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
from medsynth.tasks import TASKS, VOLUME_TASKS

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
Format = Annotated[str, typer.Option("--format", help="nifti, dicom (a derived series of a DICOM input) or same.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make again what is there already.")]
BurnedIn = Annotated[bool, typer.Option("--allow-burned-in", help="Accept DICOM whose pixels may show a patient's name.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print failures only.")]
Views = Annotated[
    int | None,
    typer.Option("--views", min=1, help="Views to project a CT with, equally spaced over 360 degrees of a fan beam.", show_default=False),
]
GeometryFile = Annotated[
    Path | None,
    typer.Option("--geometry", help="A geometry file (docs/geometry.md). Of a sinogram: default, the one beside it.", show_default=False),
]
Photons = Annotated[
    float | None, typer.Option("--i0", min=10, help="Photons that a cell counts without an object. Default: 1e6.", show_default=False)
]
Noiseless = Annotated[bool, typer.Option("--noiseless", help="Project without noise.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Of the noise. Default: 0.", show_default=False)]
Windows = Annotated[
    list[str] | None, typer.Option("--window", help="HU window of the picture: a name or W,L. May be repeated.", show_default=False)
]
Trust = Annotated[str, typer.Option("--trust", help="sform or qform, where a NIfTI file's two disagree.", show_default=False)]
Series = Annotated[
    str, typer.Option("--series", help="Which DICOM series: its UID, number or a part of its description.", show_default=False)
]
VolumeIndex = Annotated[int | None, typer.Option("--volume", min=0, help="Which volume of a 4-D file, from 0.", show_default=False)]
AllowGaps = Annotated[bool, typer.Option("--allow-gaps", help="Interpolate missing slices of a DICOM series.")]
Data = Annotated[
    Path, typer.Option("--data", help="Pairs of scans (docs/training-data.md), or the label maps of a card.", show_default=False)
]
RunFolder = Annotated[
    Path | None, typer.Option("--out", help="The folder of the run. A run that is there already goes on.", show_default=False)
]
Recipe = Annotated[Path | None, typer.Option("--card", help="A card.toml with a [train] table, or its folder.", show_default=False)]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", min=1, help="Stop after this step.", show_default=False)]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Processes that draw data ahead, on a CPU.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DEFAULT_WINDOWS = ("head-soft", "bone")
DEFAULT_BODY_WINDOWS = ("abdomen",)


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
        format_: Format = "nifti",
        mask: Mask = None,
        window: Windows = None,
        overwrite: Overwrite = False,
        force: Annotated[bool, typer.Option("--force", help="Go on with input that does not look right for the model.")] = False,
        trust: Trust = "",
        series: Series = "",
        volume: VolumeIndex = None,
        allow_gaps: AllowGaps = False,
        allow_burned_in: BurnedIn = False,
        quiet: Quiet = False,
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


for _name in VOLUME_TASKS:
    _add_task(_name, TASKS[_name])


@app.command("sparse-ct", help=TASKS["sparse-ct"])
def sparse_ct(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="CTs, which are projected first, or what was measured: a file, a series or a folder.", show_default=False
        ),
    ],
    out: Out,
    views: Views = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="network, fbp, sirt, tv, or fdk for a cone beam.",
        ),
    ] = "network",
    passes: Annotated[
        int | None,
        typer.Option("--passes", min=1, help="Evaluations of the network. Default: what its card says.", show_default=False),
    ] = None,
    geometry: GeometryFile = None,
    counts: Annotated[bool, typer.Option("--counts", help="The sinograms hold counts, not line integrals.")] = False,
    i0: Photons = None,
    noiseless: Noiseless = False,
    seed: Seed = None,
    model: Model = "",
    device: Device = "auto",
    format_: Format = "nifti",
    window: Windows = None,
    overwrite: Overwrite = False,
    force: Annotated[bool, typer.Option("--force", help="Go on with input that does not look right.")] = False,
    trust: Trust = "",
    series: Series = "",
    volume: VolumeIndex = None,
    allow_gaps: AllowGaps = False,
    allow_burned_in: BurnedIn = False,
    quiet: Quiet = False,
) -> None:
    with _reported():
        _quiet_threads()
        chosen = _one_of("--method", method, "network", "fbp", "sirt", "tv", "fdk")
        as_written = _one_of("--format", format_, "nifti", "dicom", "same")
        choices = _choices(trust, series, volume, allow_gaps)
        from medsynth.core.windows import parse
        from medsynth.verbs import conebeam, reconstruct
        from medsynth.verbs.console import RunPrinter
        from medsynth.verbs.intake import Measuring

        settings = reconstruct.Settings(
            source=source,
            out=out,
            measuring=Measuring(views=views, geometry=geometry, counts=counts, i0=i0, noiseless=noiseless, seed=seed),
            method=chosen,
            model=model,
            passes=passes,
            device=device,
            format=as_written,
            windows=tuple(parse(text) for text in window or DEFAULT_BODY_WINDOWS),
            overwrite=overwrite,
            force=force,
            allow_burned_in=allow_burned_in,
            choices=choices,
        )
        printer = RunPrinter(quiet=quiet)
        record = (conebeam if chosen == "fdk" else reconstruct).reconstruct(settings, printer)
        printer.summary(record)
        raise typer.Exit(record.exit)


@app.command()
def project(
    source: Scan,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder for the sinograms.", show_default=False)],
    views: Views = None,
    geometry: GeometryFile = None,
    i0: Photons = None,
    noiseless: Noiseless = False,
    seed: Seed = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    force: Annotated[bool, typer.Option("--force", help="Go on with input that does not look right.")] = False,
    trust: Trust = "",
    series: Series = "",
    volume: VolumeIndex = None,
    allow_gaps: AllowGaps = False,
    quiet: Quiet = False,
) -> None:
    """Simulate few-view scans of CTs: sinograms, and the geometry files that sparse-ct reads."""
    with _reported():
        _quiet_threads()
        choices = _choices(trust, series, volume, allow_gaps)
        from medsynth.verbs.console import RunPrinter
        from medsynth.verbs.intake import Measuring
        from medsynth.verbs.project import Settings
        from medsynth.verbs.project import project as verb

        settings = Settings(
            source=source,
            out=out,
            measuring=Measuring(views=views, geometry=geometry, i0=i0, noiseless=noiseless, seed=seed),
            device=device,
            overwrite=overwrite,
            force=force,
            choices=choices,
        )
        printer = RunPrinter(quiet=quiet)
        record = verb(settings, printer)
        printer.summary(record)
        raise typer.Exit(record.exit)


@app.command()
def preview(
    scan: Scan,
    other: Annotated[
        Path | None,
        typer.Argument(metavar="[OTHER]", help="A second scan on the same grid, shown beside it with the difference.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The PNG file. Default: beside the scan.", show_default=False)] = None,
    window: Windows = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--beside", help="A further scan on the same grid, between the two. May be repeated.", show_default=False),
    ] = None,
    map_: Annotated[
        Path | None, typer.Option("--map", help="The map of expected errors that a run left beside its CT.", show_default=False)
    ] = None,
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

        choices = _choices(trust, series, volume, allow_gaps)
        shown = verb(scan, other, out, windows=tuple(window or ()), at=at, choices=choices, beside=tuple(beside or ()), uncertainty=map_)
        typer.echo(shown)


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
    data: Data,
    out: RunFolder = None,
    task: Annotated[str, typer.Option("--task", help="Train this task's default network anew on pairs of scans.", show_default=False)] = "",
    card: Recipe = None,
    check: Annotated[bool, typer.Option("--check", help="Only read all scans and say what is wrong with them.")] = False,
    device: Device = "auto",
    max_steps: MaxSteps = None,
    workers: Workers = 1,
    views: Annotated[
        str, typer.Option("--views", help="Numbers of views to learn, for --task sparse-ct: 18,36,72.", show_default=False)
    ] = "",
) -> None:
    """Train a model on pairs of scans or on CTs (--task), or by a card; a run that was killed goes on from its last checkpoint."""
    with _reported():
        _quiet_threads()
        if bool(task) == bool(card):
            raise typer.BadParameter("give one of them: a task, or a card with a [train] table", param_hint="--task, --card")
        if task:
            _one_of("--task", task, *TASKS)
        if views and task != "sparse-ct":
            raise typer.BadParameter("it is for --task sparse-ct; a card names its own in [train]", param_hint="--views")
        special: dict[str, Any] = {"views": _numbers("--views", views)} if task == "sparse-ct" else {}
        from medsynth.verbs import learn

        if check:
            _check(learn.recipe_of(task, card, **special), data)
        if out is None:
            raise typer.BadParameter("a run needs a folder", param_hint="--out")
        options = learn.Options(device=device, max_steps=max_steps, workers=workers, say=typer.echo)
        folder = learn.learn(learn.recipe_of(task, card, name=out.name, **special), data, out, options)
        typer.echo(f"model: {folder}")


@app.command()
def finetune(
    model: Annotated[str, typer.Option("--from", help="The model to start from: as for --model.", show_default=False)],
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="The folder of the run. A run that is there already goes on.", show_default=False)],
    card: Recipe = None,
    device: Device = "auto",
    max_steps: MaxSteps = None,
    workers: Workers = 1,
) -> None:
    """Train a model further, drifting towards real images, on pairs of scans or on the label maps that its card names."""
    with _reported():
        _quiet_threads()
        from medsynth.verbs import learn

        options = learn.Options(device=device, max_steps=max_steps, workers=workers, say=typer.echo)
        typer.echo(f"model: {learn.finetune(model, data, out, options, card=card)}")


@app.command()
def pretrain(
    data: Annotated[
        list[Path], typer.Option("--data", help="A folder of CTs, or of head label maps. May be repeated.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder of the run. A run that is there already goes on.", show_default=False)],
    card: Annotated[
        Path | None,
        typer.Option("--card", help="An encoder's card.toml with a [pretrain] table. Default: encoder-mae3d's.", show_default=False),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Pattern of scan names to leave out. May be repeated.", show_default=False)
    ] = None,
    device: Device = "auto",
    max_steps: Annotated[int | None, typer.Option("--max-steps", min=1, help="Stop after this step.", show_default=False)] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes that draw data ahead.")] = 1,
) -> None:
    """Train an encoder on CTs without labels; a run that was killed goes on from its last checkpoint."""
    with _reported():
        _quiet_threads()
        from medsynth import zoo
        from medsynth.verbs.packct import pack
        from medsynth.verbs.pretrain import cache_folder, recipe
        from medsynth.verbs.pretrain import pretrain as verb

        path = card or zoo.bundled_folder() / "encoder-mae3d"
        table = recipe(path)[1]
        patterns = (*table.exclude, *(exclude or ()))
        items = pack(data, table.spacing_mm[0], cache_folder(), exclude=patterns, say=typer.echo)
        folder = verb(path, items, out, device=device, max_steps=max_steps, workers=workers, say=typer.echo)
        typer.echo(f"encoder: {folder}")


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
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            typer.echo("E-DISK: no space is left on the disk\n  remedy: free some and run the command again: it goes on", err=True)
            raise typer.Exit(Exit.INPUT) from None
        typer.echo(
            f"E-BUG: {type(error).__name__}\n  remedy: this is a fault of medsynth; MEDSYNTH_DEBUG=1 shows where, please report it",
            err=True,
        )
        raise typer.Exit(Exit.BUG) from None


def _check(card: Any, data: Path) -> None:
    from medsynth.verbs.learn import check_data

    shown, status = check_data(card, data, typer.echo)
    _print(*shown)
    raise typer.Exit(status)


def _choices(trust: str, series: str, volume: int | None, allow_gaps: bool) -> Any:
    from medsynth.scans.folder import Choices

    return Choices(trust=_one_of("--trust", trust, "", "sform", "qform"), series=series, volume=volume, allow_gaps=allow_gaps)


def _one_of(option: str, value: str, *allowed: str) -> Any:
    if value not in allowed:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(name for name in allowed if name)}", param_hint=option)
    return value


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """`18,36,72` as numbers; none for an empty text."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of whole numbers, such as 18,36,72", param_hint=option)
    return tuple(int(part) for part in parts)


def _print(*renderables: Any) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, markup=False)  # names may hold brackets
    for renderable in renderables:
        console.print(renderable)


def _quiet_threads() -> None:
    """Must precede torch's import: OpenMP threads that wait for each other by spinning starve the stages that work beside them."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
