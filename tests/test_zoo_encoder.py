"""Cards of encoders: found, refused and shown; models that make images and encoders are not taken for each other."""

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
from commandline import medsynth
from monai.networks.nets.segresnet_ds import SegResEncoder
from pydantic import BaseModel
from safetensors.torch import save_file
from test_zoo import OUTCOME

from medsynth import zoo
from medsynth.core.errors import UsageError, WeightsError
from medsynth.nets.encoder import EncoderConfig
from medsynth.nets.frozen import FrozenEncoder, build_network
from medsynth.verbs.encoders import load_encoder, write_encoder

CT_FM = """
kind = "encoder"
name = "ct-fm-small"
version = "0"
summary = "CT-FM's kind of encoder, with fewer filters"
network = "monai:SegResEncoder"
taps = ["layers.0.blocks", "layers.1.blocks", "layers.2.blocks", "layers.3.blocks", "layers.4.blocks"]
windows_hu = [[-1024.0, 2048.0]]
span = [0.0, 1.0]

[config]
blocks_down = [1, 2, 2, 4, 4]
init_filters = 8

[licence]
code = "Apache-2.0"
weights = "Apache-2.0"

[data]
training = "random weights"
validation = "none"
licence = "none"
"""


def test_the_bundled_encoder_is_found_and_can_be_built() -> None:
    model = zoo.find_encoder("encoder-mae3d")
    assert model in zoo.bundled_encoders()
    assert model.card.pretrain is not None
    with torch.device("meta"):
        network = build_network(model.card.network, model.card.config)
        encoder = FrozenEncoder(network, taps=model.card.taps, windows_hu=model.card.windows_hu, span=model.card.span)
        assert len(encoder(torch.zeros(1, 1, 32, 32, 32))) == len(model.card.taps)


def test_bundled_weights_are_small_load_and_run() -> None:
    model = zoo.find_encoder("encoder-mae3d")
    if model.card.weights is None:
        pytest.skip("the bundled encoder has not been trained yet")
    assert model.weights_file().stat().st_size < 15e6
    assert all(stage.isfinite().all() for stage in load_encoder(model)(torch.full((1, 1, 32, 32, 32), -1000.0)))


def test_encoders_are_no_models() -> None:
    assert not {model.card.name for model in zoo.bundled()} & {model.card.name for model in zoo.bundled_encoders()}


def test_a_model_is_no_encoder_and_the_reverse(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="encoder-mae3d is an encoder") as caught:
        zoo.find("encoder-mae3d")
    assert caught.value.code == "E-CARD"
    with pytest.raises(UsageError, match="makes images") as caught:
        zoo.find_encoder(str(tiny.write_card(tmp_path)))
    assert caught.value.code == "E-CARD"


def test_the_commands_that_take_models_say_that_it_is_an_encoder(tmp_path: Path) -> None:
    shown = medsynth("models", "show", "encoder-mae3d")
    assert (shown.exit_code, shown.stderr.partition(":")[0]) == (2, "E-CARD")
    assert "is an encoder" in shown.stderr


def test_an_unknown_encoder_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no encoder named 'none'") as caught:
        zoo.find_encoder("none")
    assert caught.value.code == "E-MODEL"
    assert "encoder-mae3d" in caught.value.remedy


def test_a_monai_encoder_serves_by_a_card_in_a_folder(tmp_path: Path) -> None:
    source = _write_ct_fm(tmp_path)
    encoder = load_encoder(zoo.find_encoder(str(tmp_path)))
    ct_hu = torch.linspace(-1500, 2500, 32**3).reshape(1, 1, 32, 32, 32)
    expected = source.eval()((ct_hu.clamp(-1024, 2048) + 1024) / 3072)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(encoder(ct_hu), expected, strict=True))


def test_a_monai_encoder_serves_from_the_hub(tmp_path: Path) -> None:
    _write_ct_fm(tmp_path / "source")
    repo = fake_hub.Repo(files={path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()})
    code = OUTCOME.replace("zoo.find(", "zoo.find_encoder(").replace("model.weights_file().read_text()", "model.card.name")
    with fake_hub.serve({"owner/ct-fm": repo}) as endpoint:
        settings = {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}
        command = [sys.executable, "-c", code, f"hub:owner/ct-fm@{repo.commit}"]
        done = subprocess.run(command, env={**_environment(), **settings}, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == {"revision": repo.commit, "weights": "ct-fm-small"}


def test_weights_of_other_settings_are_refused(tmp_path: Path) -> None:
    _write_ct_fm(tmp_path, config="init_filters = 16")
    with pytest.raises(WeightsError, match=r"does not hold this network: conv_init.weight has shape 8 x 1 x 3 x 3 x 3, not 16 x") as caught:
        load_encoder(zoo.find_encoder(str(tmp_path)))
    assert caught.value.code == "E-WEIGHTS"


def test_exchanged_weights_are_refused(tmp_path: Path) -> None:
    _write_ct_fm(tmp_path)
    (tmp_path / zoo.WEIGHTS).write_bytes(b"exchanged")
    with pytest.raises(WeightsError, match="not the file that its card describes"):
        load_encoder(zoo.find_encoder(str(tmp_path)))


def test_an_encoder_without_weights_says_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / zoo.CARD).write_text(CT_FM, encoding="utf-8")
    with pytest.raises(WeightsError, match="no trained weights") as caught:
        load_encoder(zoo.find_encoder(str(tmp_path)))
    assert "medsynth pretrain" in caught.value.remedy


@pytest.mark.parametrize(
    ("line", "other", "key"),
    [
        ('network = "monai:SegResEncoder"', 'network = "os:system"', "network"),
        ("span = [0.0, 1.0]", "spans = [0.0, 1.0]", "spans"),
        ("windows_hu = [[-1024.0, 2048.0]]", "windows_hu = []", "windows_hu"),
        ('kind = "encoder"', 'kind = "decoder"', "kind"),
        ('training = "random weights"', 'learned = "?"', "data.training"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_by_its_key(tmp_path: Path, line: str, other: str, key: str) -> None:
    assert line in CT_FM
    (tmp_path / zoo.CARD).write_text(CT_FM.replace(line, other), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"card.toml: {key}") as caught:
        zoo.find_encoder(str(tmp_path))
    assert caught.value.code == "E-CARD"
    assert "docs/encoders.md" in caught.value.remedy


@pytest.mark.parametrize("orientation", ["RA", "RLS", "ras", "RASI"])
def test_an_orientation_that_is_none_is_refused(tmp_path: Path, orientation: str) -> None:
    (tmp_path / zoo.CARD).write_text(f'orientation = "{orientation}"\n' + CT_FM, encoding="utf-8")
    with pytest.raises(UsageError, match=r"card\.toml: orientation"):
        zoo.find_encoder(str(tmp_path))


@pytest.mark.parametrize("window", ["[240.0, -160.0]", "[40.0, 40.0]"])
def test_an_empty_window_is_refused(tmp_path: Path, window: str) -> None:
    (tmp_path / zoo.CARD).write_text(CT_FM.replace("[-1024.0, 2048.0]", window), encoding="utf-8")
    with pytest.raises(UsageError, match="windows_hu"):
        zoo.find_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("title", "table"),
    [
        ("## Top level", zoo.EncoderCard),
        ('## `[config]` for `network = "mae3d"`', EncoderConfig),
        ("## `[pretrain]`", zoo.PretrainTable),
    ],
)
def test_the_documentation_lists_every_key_and_says_which_are_required(title: str, table: type[BaseModel]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "encoders.md").read_text(encoding="utf-8")
    section = text.partition(title + "\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in section.splitlines() if line.startswith("| `")]
    assert {row[1].strip("`"): row[3] == "" for row in rows} == {name: field.is_required() for name, field in table.model_fields.items()}


def test_finding_an_encoder_imports_no_torch() -> None:
    code = "import sys; from medsynth import zoo; zoo.find_encoder('encoder-mae3d'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _write_ct_fm(folder: Path, config: str = "init_filters = 8") -> SegResEncoder:
    """CT_FM's card with a file of random weights made here, of eight filters whatever the card says."""
    torch.manual_seed(0)
    network = SegResEncoder(blocks_down=(1, 2, 2, 4, 4), init_filters=8)
    folder.mkdir(exist_ok=True)
    save_file(network.state_dict(), folder / zoo.WEIGHTS)
    digest = hashlib.sha256((folder / zoo.WEIGHTS).read_bytes()).hexdigest()
    text = CT_FM.replace("init_filters = 8", config) + f'\n[weights]\nsha256 = "{digest}"\n'
    (folder / zoo.CARD).write_text(text, encoding="utf-8")
    return network


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("HF_") and not key.lower().endswith("_proxy")}


def test_writing_and_loading_are_inverse(tmp_path: Path) -> None:
    card = zoo.find_encoder("encoder-mae3d").card.model_copy(update={"config": {"channels": [8, 8, 8, 8], "blocks": [1, 1, 1, 1]}})
    network = build_network(card.network, card.config)
    write_encoder(card, network, tmp_path)
    loaded = load_encoder(zoo.find_encoder(str(tmp_path))).network.state_dict()
    assert all(torch.equal(loaded[name], value.half().float()) for name, value in network.state_dict().items())
    assert not list(tmp_path.glob(".*"))
