"""The feature bank: what each level holds, checked against plain sums."""

import pytest
import torch

from medsynth.objectives.bank import feature_maps, tiles

LEVELS = ("global", "local", "spatial")


def stages() -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, 8, 8, 8, generator=rng), torch.randn(3, 6, 4, 4, 4, generator=rng)]


def test_shapes_are_samples_locations_numbers() -> None:
    shapes = {name: tuple(value.shape) for name, value in feature_maps(stages(), LEVELS, locations=100).items()}
    assert shapes == {
        "stage0/global": (3, 1, 8), "stage0/local": (3, 64, 8), "stage0/spatial": (3, 100, 4),
        "stage1/global": (3, 1, 12), "stage1/local": (3, 64, 12), "stage1/spatial": (3, 64, 6),
    }  # fmt: skip


def test_only_the_levels_asked_for_are_made() -> None:
    assert list(feature_maps(stages(), ("local",), locations=8)) == ["stage0/local", "stage1/local"]


def test_global_is_mean_and_deviation_of_each_channel() -> None:
    f = stages()[0]
    made = feature_maps([f], ("global",), locations=1)["stage0/global"][:, 0]
    torch.testing.assert_close(made, torch.cat([f.mean((2, 3, 4)), f.std((2, 3, 4), correction=0)], dim=1), rtol=1e-4, atol=1e-5)


def test_local_is_the_same_in_its_window() -> None:
    f = stages()[0]
    made = feature_maps([f], ("local",), locations=1)["stage0/local"]
    window = f[:, :, 2:4, 4:6, 6:8]
    expected = torch.cat([window.mean((2, 3, 4)), window.std((2, 3, 4), correction=0)], dim=1)
    torch.testing.assert_close(made[:, 1 * 16 + 2 * 4 + 3], expected, rtol=1e-4, atol=1e-5)


def test_locations_are_the_same_for_every_sample_and_step() -> None:
    ramp = torch.arange(512.0).reshape(1, 1, 8, 8, 8).expand(3, 2, 8, 8, 8)
    first, again = (feature_maps([ramp], ("spatial",), locations=50)["stage0/spatial"] for _ in range(2))
    torch.testing.assert_close(first, again)
    torch.testing.assert_close(first[0], first[2])
    assert len(set(first[0, :, 0].tolist())) == 50


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_reach_the_stage_even_where_it_is_constant(level: str) -> None:
    f = torch.ones(2, 3, 8, 8, 8, requires_grad=True)
    feature_maps([f], (level,), locations=10)[f"stage0/{level}"].sum().backward()  # pyright: ignore[reportArgumentType]
    assert f.grad is not None
    assert f.grad.isfinite().all()
    assert f.grad.abs().sum() > 0


def test_tiles_are_the_image_in_pieces_and_repeat_what_is_thin() -> None:
    image = torch.arange(2 * 9 * 4 * 2.0).reshape(2, 1, 9, 4, 2)
    cut = tiles(image, (4, 4, 4))
    assert cut.shape == (4, 1, 4, 4, 4)  # the ninth row is left out
    assert torch.equal(cut[1, 0, :, :, ::2], image[0, 0, 4:8])
    assert torch.equal(cut[2, 0, :, :, 0], cut[2, 0, :, :, 1])
    assert torch.equal(cut[2, 0, :, :, ::2], image[1, 0, :4])


def test_gradients_flow_through_tiles_to_each_voxel_as_often_as_it_is_shown() -> None:
    image = torch.zeros(1, 1, 8, 4, 2, requires_grad=True)
    tiles(image, (4, 4, 4)).sum().backward()
    assert image.grad is not None
    assert (image.grad == 2).all()
