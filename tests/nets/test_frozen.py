"""Frozen encoders: what reaches the CT and what does not, MONAI's networks by name, and weights that must fit exactly."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.networks.nets.segresnet_ds import SegResEncoder
from monai.transforms.spatial.array import Orientation
from safetensors.torch import save_file
from torch import Tensor, nn

from medsynth.core.errors import UsageError, WeightsError
from medsynth.nets.frozen import FrozenEncoder, build_network, load_weights, turned, turned_back, windowed

OURS = {"in_channels": 2, "channels": [8, 8, 16], "blocks": [1, 1, 1], "groups": 4}
WINDOWS = ((-1024.0, 2048.0), (-160.0, 240.0))
CT_FM = {"blocks_down": [1, 2, 2, 4, 4], "init_filters": 32}
CT_FM_TAPS = tuple(f"layers.{k}.blocks" for k in range(5))
CT_FM_WINDOWS = ((-1024.0, 2048.0),)


def test_gradients_reach_the_ct_and_no_weight() -> None:
    encoder, ct_hu = _ours(), _ct().requires_grad_()
    sum((stage.square().sum() for stage in encoder(ct_hu)), torch.zeros(())).backward()
    assert ct_hu.grad is not None
    assert ct_hu.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in encoder.parameters())


def test_it_stays_in_eval_mode_inside_a_model_that_trains() -> None:
    """Batch normalisation in training mode would drift with every batch."""
    encoder = _monai()
    before = copy.deepcopy(encoder.state_dict())
    nn.ModuleList([encoder]).train()
    encoder.train()
    first = encoder(_ct())
    assert not any(module.training for module in encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(first, encoder(_ct()), strict=True))


def test_windows_become_channels_on_the_span() -> None:
    ct_hu = torch.tensor([-2000.0, -1024, 40, 240, 2048, 4000]).reshape(1, 1, 6, 1, 1)
    wide, soft = windowed(ct_hu, WINDOWS, (-1.0, 1.0))[0, :, :, 0, 0]
    torch.testing.assert_close(wide, torch.tensor([-1, -1, -1 + 2 * 1064 / 3072, -1 + 2 * 1264 / 3072, 1, 1]))
    torch.testing.assert_close(soft, torch.tensor([-1.0, -1, 0, 1, 1, 1]))
    torch.testing.assert_close(windowed(ct_hu, CT_FM_WINDOWS, (0.0, 1.0))[0, 0, :, 0, 0], (wide + 1) / 2)


def test_the_stages_are_the_networks_own() -> None:
    network = build_network("mae3d", OURS).eval()
    encoder = FrozenEncoder(network, taps=("stages.0", "stages.1", "stages.2"), windows_hu=WINDOWS, span=(-1, 1))
    expected = network(windowed(_ct(), WINDOWS, (-1, 1)))
    assert all(torch.equal(a, b) for a, b in zip(encoder(_ct()), expected, strict=True))


def test_stages_come_in_the_order_of_the_taps() -> None:
    shapes = [tuple(stage.shape) for stage in _ours(taps=("stages.2", "stem"))(_ct())]
    assert shapes == [(2, 16, 2, 2, 2), (2, 8, 8, 8, 8)]


def test_an_orientation_is_that_of_monais_transform() -> None:
    x = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    for orientation in ("RAS", "SPL", "LPS", "AIR"):
        expected = Orientation(axcodes=orientation, labels=(("L", "R"), ("P", "A"), ("I", "S")))(MetaTensor(x[0], affine=torch.eye(4)))
        assert torch.equal(turned(x, orientation)[0], torch.as_tensor(expected))
        assert torch.equal(turned_back(turned(x, orientation), orientation), x)


def test_the_network_sees_its_orientation_and_the_maps_come_back() -> None:
    ct_hu = _ct()[..., :8]
    plain, other = _ours(), _ours(orientation="SPL")
    straight = other(ct_hu)
    assert [stage.shape for stage in straight] == [stage.shape for stage in plain(ct_hu)]
    by_hand = [turned_back(stage, "SPL") for stage in plain(turned(ct_hu, "SPL"))]
    assert all(torch.equal(a, b) for a, b in zip(straight, by_hand, strict=True))


def test_a_call_leaves_no_hook_behind() -> None:
    encoder = _ours()
    encoder(_ct())
    assert not any(module._forward_hooks for module in encoder.modules())


@pytest.mark.parametrize("taps", [("stages.7",), ("",)])
def test_a_tap_that_is_not_there_is_refused_with_what_is(taps: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="no module") as caught:
        _ours(taps=taps)
    assert caught.value.code == "E-CARD"
    assert "stages" in caught.value.remedy


def test_a_tap_on_what_gives_no_tensor_is_refused() -> None:
    network = nn.ModuleDict({"all": build_network("mae3d", OURS)})
    network.forward = network["all"].__call__
    with pytest.raises(UsageError, match="no tensor but list"):
        FrozenEncoder(network, taps=("all",), windows_hu=WINDOWS, span=(-1, 1))(_ct())


@pytest.mark.parametrize("kind", ["ours", "monai"])
def test_checkpointing_changes_neither_values_nor_gradients(kind: str) -> None:
    plain = _ours() if kind == "ours" else _monai()
    frugal = _ours(checkpoint=True) if kind == "ours" else _monai(checkpoint=True)
    values, gradients = zip(*(_values_and_gradient(encoder) for encoder in (plain, frugal)), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


def test_checkpointing_keeps_less_in_memory() -> None:
    assert _bytes_kept(_monai(checkpoint=True)) < 0.5 * _bytes_kept(_monai())


def test_a_copy_computes_with_its_own_weights() -> None:
    encoder = _ours(checkpoint=True)
    copied = copy.deepcopy(encoder)
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
    assert all(stage.abs().sum() == 0 for stage in copied(_ct()))
    assert all(stage.abs().sum() > 0 for stage in encoder(_ct()))


def test_ct_fms_own_setting_builds_loads_and_runs(tmp_path: Path) -> None:
    """CT-FM's encoder has 77 million weights; the file is made here, from the network's own definition."""
    torch.manual_seed(0)
    source = SegResEncoder(**CT_FM)
    half = {name: value.half() if value.is_floating_point() else value for name, value in source.state_dict().items()}
    save_file(half, tmp_path / "w")
    network = build_network("monai:SegResEncoder", CT_FM)
    load_weights(network, tmp_path / "w")
    assert all(torch.equal(value, half[name].to(value.dtype)) for name, value in network.state_dict().items())
    encoder = FrozenEncoder(network, taps=CT_FM_TAPS, windows_hu=CT_FM_WINDOWS, span=(0, 1))
    stages = encoder(torch.zeros(1, 1, 32, 32, 32))
    assert [tuple(stage.shape[1:3]) for stage in stages] == [(32, 32), (64, 16), (128, 8), (256, 4), (512, 2)]


@pytest.mark.parametrize("name", ["SegResNetDS", "segresnet_ds.SegResEncoder", "SegResEncoder", "DynUNet"])
def test_monais_networks_are_found_by_name(name: str) -> None:
    config = {
        "DynUNet": {
            "spatial_dims": 3,
            "in_channels": 1,
            "out_channels": 1,
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [4, 4, 4],
        }
    }
    network = build_network(f"monai:{name}", config.get(name, {"init_filters": 8}))
    assert type(network).__name__ == name.rpartition(".")[2]


@pytest.mark.parametrize("name", ["NoNet", "segresnet_ds.NoNet", "nowhere.SegResEncoder", "warnings", "segresnet_ds.np", "Any"])
def test_what_is_no_network_of_monai_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="MONAI has no network") as caught:
        build_network(f"monai:{name}", {})
    assert caught.value.code == "E-CARD"


@pytest.mark.parametrize(
    ("network", "config"),
    [
        ("mae3d", {"width": 8}),
        ("mae3d", {"channels": [8, 9]}),
        ("monai:SegResEncoder", {"width": 8}),
        ("monai:SegResEncoder", {"norm": "x"}),
    ],
)
def test_settings_that_do_not_suit_the_network_are_refused(network: str, config: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        build_network(network, config)
    assert caught.value.code == "E-CARD"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("stem.conv.weight"), "stem.conv.weight is missing"),
        (lambda w: w.update(head=torch.zeros(1)), "head is not part of the network"),
        (lambda w: w.update({"stem.conv.weight": torch.zeros(1, 2)}), "stem.conv.weight has shape 1 x 2, not 8 x 16 x 3 x 3 x 3"),
    ],
)
def test_weights_that_differ_are_refused_by_name(tmp_path: Path, change: Any, said: str) -> None:
    network = build_network("mae3d", OURS)
    weights = dict(network.state_dict())
    change(weights)
    save_file(weights, tmp_path / "w")
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(WeightsError, match=said) as caught:
        load_weights(network, tmp_path / "w")
    assert caught.value.code == "E-WEIGHTS"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_another_networks_weights_name_the_first_that_differ_and_count_the_rest(tmp_path: Path) -> None:
    save_file({f"w{k}": torch.zeros(1) for k in range(9)}, tmp_path / "w")
    with pytest.raises(WeightsError, match=r"stem.conv.weight is missing; .*; and \d+ more"):
        load_weights(build_network("mae3d", OURS), tmp_path / "w")


def test_what_is_no_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"no tensors at all")
    with pytest.raises(WeightsError, match="no safetensors file"):
        load_weights(build_network("mae3d", OURS), tmp_path / "w")


def _ours(
    taps: tuple[str, ...] = ("stages.0", "stages.1", "stages.2"), *, orientation: str = "RAS", checkpoint: bool = False
) -> FrozenEncoder:
    torch.manual_seed(0)
    network = build_network("mae3d", OURS)
    return FrozenEncoder(network, taps=taps, windows_hu=WINDOWS, span=(-1, 1), orientation=orientation, checkpoint=checkpoint)


def _monai(*, checkpoint: bool = False) -> FrozenEncoder:
    torch.manual_seed(0)
    network = build_network("monai:SegResEncoder", CT_FM | {"init_filters": 8})
    return FrozenEncoder(network, taps=CT_FM_TAPS, windows_hu=CT_FM_WINDOWS, span=(0, 1), checkpoint=checkpoint)


def _ct() -> Tensor:
    return 300 * torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def _values_and_gradient(encoder: FrozenEncoder) -> tuple[list[Tensor], Tensor]:
    ct_hu = _ct().requires_grad_()
    stages = encoder(ct_hu)
    (gradient,) = torch.autograd.grad(sum((stage.square().sum() for stage in stages), torch.zeros(())), ct_hu)
    return stages, gradient


def _bytes_kept(encoder: FrozenEncoder) -> int:
    """What autograd holds between the forward and the backward pass, weights left out."""
    weights = {p.data_ptr() for p in encoder.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            held[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stages = encoder(_ct().requires_grad_())
    del stages
    return sum(held.values())
