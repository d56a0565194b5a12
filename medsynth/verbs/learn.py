"""What `medsynth train` and `finetune` stand on: from a folder and a card, or a task, to a run of `verbs.train`.

A folder of pairs is checked and packed first; a folder of label maps is drawn from as it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import distributed as dist

from medsynth import tasks, zoo
from medsynth.core.errors import Exit, UsageError
from medsynth.core.recipe import DriftTable
from medsynth.core.task import Task
from medsynth.generators import build
from medsynth.nets import soundness
from medsynth.nets.frozen import FrozenEncoder
from medsynth.objectives.drifting import insist_enough
from medsynth.verbs.checkpoint import make_folder
from medsynth.verbs.encoders import load_encoder
from medsynth.verbs.loader import own_share
from medsynth.verbs.supply import cache_folder, sources
from medsynth.verbs.train import Run, launch, train
from medsynth.zoo import Card, Data, Model, TrainTable

# Pairs of real scans: regression first, then drifting, as GDM is trained; a batch of four, since drifting compares samples.
FROM_PAIRS = TrainTable(
    source="pairs",
    steps=10_000,
    batch=4,
    learning_rate=4e-4,
    warmup_steps=200,
    validate_every=500,
    drift=DriftTable(warmup_steps=5000, ramp_steps=1000),
)
# CTs and their own sinograms: slabs of four slices, regression, and drifting in tiles of them at the end.
FROM_PROJECTIONS = TrainTable(
    source="projected",
    views=(18, 36, 72),
    window=192,
    steps=40_000,
    betas=(0.9, 0.99),
    weight_decay=1e-3,
    warmup_steps=100,
    decay_share=0.9,
    ema=0.999,
    validate_every=1000,
    drift=DriftTable(tile=(64, 64, 16), warmup_steps=36_000, ramp_steps=500),
)
FINETUNED: dict[str, Any] = {"steps": 2000, "batch": 4, "learning_rate": 1e-4, "warmup_steps": 100, "validate_every": 250}
FINETUNED_DRIFT = DriftTable(warmup_steps=100, ramp_steps=400)
FINETUNED_SLABS = FINETUNED_DRIFT.model_copy(update={"tile": (64, 64, 16)})
MOST_VIEWS = 180  # whose matrix of 512 x 512 pixels, which simulates, is kept in memory


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is for the run, not for the model."""

    device: str = "auto"
    max_steps: int | None = None
    workers: int = 1
    say: Callable[[str], None] = print


def recipe_of(task: str, path: Path | None, *, name: str = "model", views: tuple[int, ...] = ()) -> Card:
    """The card at `path`, or one for training the task's default network anew. name: of the new model. views: of projections, if not the
    usual ones.

    Raises UsageError E-CARD if the card has no [train] table.
    """
    if path is None:
        base = zoo.find(tasks.get(task).model).card
        if tasks.get(task).learns_from == "projections":
            return _recipe(base, name, _updated(FROM_PROJECTIONS, {"views": views} if views else {}))
        return _recipe(base, name, FROM_PAIRS)
    card = zoo.read_card(path / zoo.CARD if path.is_dir() else path)
    if card.train is None:
        raise UsageError("E-CARD", f"the card of {card.name} has no [train] table", remedy="add one: docs/cards.md lists its keys")
    return card


def check_data(card: Card, data: Path, say: Callable[[str], None]) -> tuple[list[Any], Exit]:
    """What is wrong with pairs or CTs that a card would learn from, for the terminal, and the exit status.

    Raises UsageError E-CARD if the card draws from label maps.
    """
    from medsynth.verbs import check, checkslices

    table, grid = card.train, card.grid
    if table is not None and table.source == "projected":
        scans = checkslices.check(data, table, cache=cache_folder("slices"), say=say)
        return checkslices.render(scans), Exit.OK
    if table is None or table.source != "pairs":
        raise UsageError("E-CARD", f"{card.name} draws from label maps; only scans are checked", remedy='a card with source = "pairs"')
    share, seed = table.validation_share, table.seed
    report = check.check(data, _task(card), grid.spacing_mm, grid.patch, cache=cache_folder("pairs"), share=share, seed=seed, say=say)
    return check.render(report), report.exit


def finetune(reference: str, data: Path, out: Path, options: Options, *, card: Path | None = None) -> Path:
    """Trains a model further, with drifting, on pairs, on the label maps that its card names, or on CTs and their own projections.

    card: a recipe for it, with the model's generator, configuration and grid; by default short, with a small learning rate.
    Raises UsageError E-CARD if the recipe is for another network.
    """
    model = zoo.find(reference)
    base = model.card
    if card is not None:
        recipe = recipe_of("", card)
        if (recipe.generator, recipe.config, recipe.grid) != (base.generator, base.config, base.grid):
            raise UsageError("E-CARD", f"the recipe is for another network than {base.name}", remedy="copy generator, config and grid")
    elif base.train is not None and _holds(data, base.train):
        table = base.train.model_copy(update=FINETUNED | {"texture": True, "drift": FINETUNED_DRIFT})
        recipe = _recipe(base, out.name, table, base.data)
    elif _task(base).learns_from == "projections":
        learned = base.train if base.train is not None and base.train.source == "projected" else FROM_PROJECTIONS
        own: dict[str, Any] = {"training": (), "validation": (), "batch": 1, "drift": FINETUNED_SLABS}
        recipe = _recipe(base, out.name, _updated(learned, FINETUNED | own))
    else:
        recipe = _recipe(base, out.name, FROM_PAIRS.model_copy(update=FINETUNED | {"drift": FINETUNED_DRIFT}))
    return learn(recipe, data, out, options, start=model)


def learn(card: Card, data: Path, out: Path, options: Options, *, start: Model | None = None) -> Path:
    """Trains a card, which has a [train] table, on `data`. start: the model whose weights to begin with. Returns the model's folder.

    What can be wrong with card, encoder and folder is found before the data is touched. Raises UsageError E-CARD, E-DRIFT, E-OUTPUT, and
    what the data and training raise.
    """
    table = card.train
    assert table is not None
    _task(card)
    weights = None if start is None else {name: value.float() for name, value in load_file(start.weights_file()).items()}
    encoder, encoder_hash = _encoder(card)
    _try(card, encoder)
    fabric = launch(options.device, table)
    _insist_sound(card, table, fabric.device.type)
    own_share(table, fabric)
    make_folder(out)
    say = options.say if fabric.is_global_zero else _nothing
    training, validation, digest = sources(card, data, fabric, say)
    started_from = start.card.weights.sha256 if start is not None and start.card.weights is not None else ""
    run = Run(
        fabric=fabric,
        training=training,
        validation=validation,
        data="|".join((digest, encoder_hash, started_from)),
        start=weights,
        encoder=encoder,
        max_steps=options.max_steps,
        workers=options.workers,
        say=say,
    )
    folder = train(card, run, out)
    if dist.is_initialized():  # else threads of gloo may still run when Python ends, which aborts the process after all was well
        fabric.barrier()
        dist.destroy_process_group()
    return folder


def _task(card: Card) -> Task:
    if card.task not in tasks.TASKS:
        raise UsageError("E-CARD", f"there is no task {card.task!r}", remedy=f"one of: {', '.join(tasks.TASKS)}")
    return tasks.get(card.task)


def _encoder(card: Card) -> tuple[FrozenEncoder | None, str]:
    """The encoder that the card drifts with, and its hash; the batch is checked at once."""
    table = card.train
    if table is None or table.drift is None:
        return None, ""
    insist_enough(table.drift, table.batch)
    model = zoo.find_encoder(table.drift.encoder)
    return load_encoder(model, checkpoint=table.drift.checkpoint), model.card.weights.sha256 if model.card.weights else ""


def _try(card: Card, encoder: FrozenEncoder | None) -> None:
    """Raises UsageError E-CARD if the card's patch does not suit its network or its encoder, or the encoder lacks a stage."""
    assert card.train is not None
    stride = build(card.generator, card.config).stride
    if card.train.source == "projected":
        _try_slabs(card, card.train, stride)
    elif any(side % stride for side in card.grid.patch):
        raise UsageError("E-CARD", f"grid.patch {card.grid.patch} does not suit the network", remedy=f"multiples of {stride}")
    if encoder is None:
        return
    assert card.train.drift is not None
    shape = card.train.drift.tile or card.grid.patch
    try:
        with torch.no_grad():
            stages = encoder(torch.zeros(1, 1, *shape))
    except (RuntimeError, ValueError) as error:
        name = "train.drift.tile" if card.train.drift.tile else "grid.patch"
        cause = f"{name} {shape} does not suit the encoder: {str(error).splitlines()[0]}"
        raise UsageError("E-CARD", cause, remedy="sides that the encoder can halve at each of its stages") from None
    if any(stage >= len(stages) for stage in card.train.drift.stages):
        raise UsageError("E-CARD", f"the encoder has {len(stages)} stages", remedy=f"train.drift.stages from 0 to {len(stages) - 1}")


def _try_slabs(card: Card, table: TrainTable, stride: int) -> None:
    """Raises UsageError E-CARD if slab, window or views cannot be learned from."""
    from medsynth.sources.projected import MARGIN

    width, height, _ = card.grid.patch
    if width != height or width % stride:
        remedy = f"a square whose sides are multiples of {stride}, and a number of slices"
        raise UsageError("E-CARD", f"grid.patch {card.grid.patch} is no slab of this network", remedy=remedy)
    if table.window and (table.window % stride or not 2 * MARGIN < table.window <= width):
        remedy = f"0, or a multiple of {stride} above {2 * MARGIN} and up to {width}"
        raise UsageError("E-CARD", f"train.window {table.window} does not suit the network", remedy=remedy)
    if max(table.views) > MOST_VIEWS:
        raise UsageError("E-CARD", f"{max(table.views)} views are too many to simulate", remedy=f"train.views up to {MOST_VIEWS}")


def _insist_sound(card: Card, table: TrainTable, device: str) -> None:
    """Raises UsageError E-PRECISION if this CPU would get the coarsest maps' gradients wrong in bfloat16."""
    stride = build(card.generator, card.config).stride
    if device != "cpu" or table.precision != "bf16-mixed" or table.source == "projected":
        return
    if any(side // stride == soundness.UNSAFE_SIDE for side in card.grid.patch) and not soundness.small_maps_are_sound():
        cause = f"with grid.patch {card.grid.patch} the coarsest maps are 2 voxels wide: this CPU gets their gradients wrong in bfloat16"
        raise UsageError("E-PRECISION", cause, remedy=f'precision = "32-true" in [train], or sides of {3 * stride} voxels or more')


def _updated(table: TrainTable, changes: dict[str, Any]) -> TrainTable:
    """The table with other values, checked. Raises UsageError E-CARD."""
    try:
        return TrainTable.model_validate({**{name: getattr(table, name) for name in TrainTable.model_fields}, **changes})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["train", *(str(part) for part in first["loc"])])
        raise UsageError("E-CARD", f"{where}: {first['msg']}", remedy="docs/cards.md lists the settings") from None


def _recipe(base: Card, name: str, table: TrainTable, data: Data | None = None) -> Card:
    """A card for a new model on the network of another; what the other one's weights were measured and licensed for does not carry over."""
    given = Data(training="scans given by the user", validation="patients set aside by the [train] table", licence="the user's own")
    return base.model_copy(
        update={
            "name": _slug(name),
            "version": "0",
            "summary": f"{base.task}, trained by the user",
            "weights": None,
            "metrics": (),
            "data": data or given,
            "train": table,
        }
    )


def _slug(name: str) -> str:
    """A folder's name as a card may have it."""
    letters = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in name.lower()).strip(".-")
    return letters or "model"


def _holds(data: Path, table: TrainTable) -> bool:
    """Whether a folder has the label maps of a card."""
    endings = (".nii", ".nii.gz", ".npz")
    stems = {path.name.split(".")[0].split("-")[0] for path in data.glob("*") if path.name.endswith(endings)}
    return table.source == "labels" and all(any(stem == n or stem.rsplit("_", 1)[-1] == n for stem in stems) for n in table.training)


def _nothing(line: str) -> None:
    """For processes that are not the first."""
