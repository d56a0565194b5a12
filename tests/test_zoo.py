"""Cards and weights: what is refused, what is found, and downloads from a hub on this machine."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import fake_hub
import pytest
import tiny
import torch
from pydantic import BaseModel

from medsynth import tasks, zoo
from medsynth.core.errors import MedsynthError, UsageError, WeightsError
from medsynth.generators import build
from medsynth.generators.gdm import Config

BYTES = b"stands for weights"
OUTCOME = """
import json, sys
from medsynth import zoo
from medsynth.core.errors import MedsynthError
try:
    model = zoo.find(sys.argv[1])
    print(json.dumps({"revision": model.revision, "weights": model.weights_file().read_text()}))
except MedsynthError as error:
    print(json.dumps({"kind": type(error).__name__, "code": error.code, "exit": error.exit, "message": str(error)}))
"""


def test_every_bundled_card_describes_a_generator_that_can_be_built() -> None:
    models = zoo.bundled()
    assert "mri2ct-head" in [model.card.name for model in models]
    for model in models:
        with torch.device("meta"):
            generator = build(model.card.generator, model.card.config)
        x, y, z = model.card.grid.patch
        halved = (x, y) if tasks.get(model.card.task).learns_from == "projections" else (x, y, z)  # slabs are taken slice by slice
        assert all(side % generator.stride == 0 for side in halved)


def test_a_bundled_model_is_found_by_the_name_of_its_folder() -> None:
    for model in zoo.bundled():
        assert model.folder.name == model.card.name
        assert zoo.find(model.card.name) == model


def test_bundled_weights_are_those_of_their_cards() -> None:
    for model in zoo.bundled():
        if model.card.weights is not None:
            assert model.weights_file().is_file()


def test_a_model_is_found_by_its_folder_its_card_and_the_folder_of_its_training(tmp_path: Path) -> None:
    card = _model(tmp_path / "run" / "model")
    found = [zoo.find(str(place)) for place in (card.parent, card, tmp_path / "run")]
    assert {model.folder for model in found} == {card.parent}
    assert {model.revision for model in found} == {"local"}
    assert found[0].weights_file().read_bytes() == BYTES


@pytest.mark.parametrize(
    ("table", "key"),
    [("", "colour"), ("[grid]", "grid.spacing"), ("[licence]", "licence.gate"), ("[data]", "data.test"), ("[train]", "train.epochs")],
)
def test_an_unknown_key_is_named_with_its_table(tmp_path: Path, table: str, key: str) -> None:
    card = tiny.write_card(tmp_path)
    line = f"{table}\n{key.split('.')[-1]} = 1\n"
    text = card.read_text(encoding="utf-8")
    card.write_text(line + text if not table else text.replace(f"{table}\n", line), encoding="utf-8")
    error = _refused(card)
    assert (error.code, error.exit) == ("E-CARD", 2)
    assert f" {key}: " in error.cause


@pytest.mark.parametrize(
    ("title", "table"),
    [
        ("## Top level", zoo.Card),
        ('## `[config]` for `generator = "gdm"`', Config),
        ("## `[grid]`", zoo.Grid),
        ("## `[weights]`", zoo.Weights),
        ("## `[licence]`", zoo.Licence),
        ("## `[data]`", zoo.Data),
        ("## `[[metrics]]`", zoo.Metric),
        ("## `[train]`", zoo.TrainTable),
    ],
)
def test_the_documentation_lists_every_key_and_says_which_are_required(title: str, table: type[BaseModel]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "cards.md").read_text(encoding="utf-8")
    section = text.partition(title + "\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in section.splitlines() if line.startswith("| `")]
    documented = {row[1].strip("`"): row[3] == "" for row in rows}
    assert documented == {name: field.is_required() for name, field in table.model_fields.items()}


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"name": '"Upper Case"'}, "name"),
        ({"version": "1"}, "version"),
        ({"patch": "[32, 32]"}, "grid.patch"),
        ({"steps": "0"}, "train.steps"),
        ({"precision": '"64-true"'}, "train.precision"),
        ({"source": '"paired"'}, "train.source"),
    ],
)
def test_a_value_that_does_not_fit_is_named(tmp_path: Path, changed: dict[str, str], key: str) -> None:
    error = _refused(tiny.write_card(tmp_path, **changed))
    assert error.code == "E-CARD"
    assert f" {key}" in error.cause


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    card = tiny.write_card(tmp_path)
    card.write_text(card.read_text(encoding="utf-8").replace('task = "mri2ct"\n', ""), encoding="utf-8")
    assert " task: " in _refused(card).cause


@pytest.mark.parametrize("content", [b"name = ", b"name = \xff"])
def test_what_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    card = tmp_path / "card.toml"
    card.write_bytes(content)
    assert "not TOML" in _refused(card).cause


def test_a_folder_without_a_card_is_refused_without_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with pytest.raises(UsageError, match=r"there is no card\.toml in empty") as caught:
        zoo.find(str(folder))
    assert caught.value.code == "E-CARD"
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("digest", ["abc", "A" * 64])
def test_a_digest_that_is_none_is_refused(tmp_path: Path, digest: str) -> None:
    error = _refused(_model(tmp_path, digest=digest))
    assert " weights.sha256: " in error.cause


def test_tampered_weights_are_refused(tmp_path: Path) -> None:
    card = _model(tmp_path)
    (tmp_path / zoo.WEIGHTS).write_bytes(BYTES + b"!")
    with pytest.raises(WeightsError, match="not the file that its card describes") as caught:
        zoo.find(str(card)).weights_file()
    assert (caught.value.code, caught.value.exit) == ("E-WEIGHTS", 5)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    card = _model(tmp_path)
    (tmp_path / zoo.WEIGHTS).unlink()
    with pytest.raises(WeightsError, match="is missing beside the card") as caught:
        zoo.find(str(card)).weights_file()
    assert caught.value.code == "E-WEIGHTS"


def test_a_recipe_has_no_weights_yet(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no trained weights") as caught:
        zoo.find(str(tiny.write_card(tmp_path))).weights_file()
    assert caught.value.code == "E-WEIGHTS"


@pytest.mark.parametrize("reference", ["mri2ct-foot", "no/such/folder"])
def test_an_unknown_name_lists_the_known_ones(reference: str) -> None:
    with pytest.raises(UsageError, match=reference) as caught:
        zoo.find(reference)
    assert caught.value.code == "E-MODEL"
    assert "mri2ct-head" in caught.value.remedy


def test_a_hub_model_must_be_pinned() -> None:
    with pytest.raises(UsageError, match="names no revision") as caught:
        zoo.find("hub:owner/name")
    assert caught.value.code == "E-MODEL"


def test_a_hub_model_is_downloaded_once_and_then_works_offline(tmp_path: Path) -> None:
    repo = fake_hub.Repo(files=_hub_files(tmp_path / "source"), tags={"v1": fake_hub.Repo(files={}).commit})
    with fake_hub.serve({"owner/good": repo}) as endpoint:
        by_tag = _find("hub:owner/good@v1", tmp_path, HF_ENDPOINT=endpoint)
        by_commit = _find(f"hub:owner/good@{repo.commit}", tmp_path, HF_ENDPOINT=endpoint)
    offline = _find("hub:owner/good@v1", tmp_path, HF_HUB_OFFLINE="1")
    assert by_tag == by_commit == offline == {"revision": repo.commit, "weights": BYTES.decode()}
    assert not list(tmp_path.glob("cache/**/code.py"))


def test_weights_that_the_hub_exchanged_are_refused(tmp_path: Path) -> None:
    repo = fake_hub.Repo(files=_hub_files(tmp_path / "source") | {zoo.WEIGHTS: b"exchanged"})
    with fake_hub.serve({"owner/bad": repo}) as endpoint:
        outcome = _find(f"hub:owner/bad@{repo.commit}", tmp_path, HF_ENDPOINT=endpoint)
    assert (outcome["code"], outcome["exit"]) == ("E-WEIGHTS", 5)
    assert "not the file that its card describes" in outcome["message"]


def test_a_gated_hub_model_asks_for_its_terms(tmp_path: Path) -> None:
    repo = fake_hub.Repo(files=_hub_files(tmp_path / "source"), gated=True)
    with fake_hub.serve({"owner/gated": repo}) as endpoint:
        outcome = _find(f"hub:owner/gated@{repo.commit}", tmp_path, HF_ENDPOINT=endpoint)
    assert (outcome["kind"], outcome["code"], outcome["exit"]) == ("LicenceError", "E-GATED", 6)
    assert "owner/gated" in outcome["message"]


def test_what_the_hub_does_not_have_is_said_to_be_not_there(tmp_path: Path) -> None:
    with fake_hub.serve({"owner/good": fake_hub.Repo(files={})}) as endpoint:
        outcomes = [_find(f"hub:{name}", tmp_path, HF_ENDPOINT=endpoint) for name in ("owner/none@v1", "owner/good@v9")]
    assert [outcome["code"] for outcome in outcomes] == ["E-WEIGHTS", "E-WEIGHTS"]
    assert all("was not found" in outcome["message"] for outcome in outcomes)


def test_offline_and_not_in_the_cache_says_so(tmp_path: Path) -> None:
    outcome = _find("hub:owner/good@v1", tmp_path, HF_HUB_OFFLINE="1")
    assert (outcome["code"], outcome["exit"]) == ("E-WEIGHTS", 5)
    assert "HF_HUB_OFFLINE" in outcome["message"]


def test_a_hub_that_cannot_be_reached_is_no_crash(tmp_path: Path) -> None:
    with fake_hub.serve({}) as gone:
        pass
    outcome = _find("hub:owner/good@v1", tmp_path, HF_ENDPOINT=gone)
    assert (outcome["code"], outcome["exit"]) == ("E-WEIGHTS", 5)


def test_listing_and_finding_models_imports_no_torch(tmp_path: Path) -> None:
    card = _model(tmp_path)
    code = "import sys; from medsynth import zoo; zoo.bundled(); zoo.find(sys.argv[1]).weights_file(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(card)], check=False).returncode == 0


def _refused(card: Path) -> MedsynthError:
    with pytest.raises(UsageError) as caught:
        zoo.read_card(card)
    return caught.value


def _model(folder: Path, *, digest: str = hashlib.sha256(BYTES).hexdigest()) -> Path:
    """A card with a [weights] table and the file that it names. Returns the card's path."""
    card = tiny.write_card(folder)
    card.write_text(card.read_text(encoding="utf-8") + f'\n[weights]\nsha256 = "{digest}"\n', encoding="utf-8")
    (folder / zoo.WEIGHTS).write_bytes(BYTES)
    return card


def _hub_files(folder: Path) -> dict[str, bytes]:
    """A model as it lies on a hub, beside a file that is none of its parts."""
    card = _model(folder)
    return {path.name: path.read_bytes() for path in (card, folder / zoo.WEIGHTS)} | {
        "README.md": b"# tiny",
        "code.py": b"raise SystemExit",
    }


def _find(reference: str, home: Path, **settings: str) -> dict[str, str]:
    """What `find` and `weights_file` give in a process of its own: the hub's library reads its settings when it is imported."""
    cache = {"HF_HOME": str(home / "hf"), "HF_HUB_CACHE": str(home / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and not key.lower().endswith("_proxy")}
    command = [sys.executable, "-c", OUTCOME, reference]
    done = subprocess.run(command, env=kept | cache | settings, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
