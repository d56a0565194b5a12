"""Pictures: what is written on them, where things stand, true proportions, equal bytes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from medsynth.core.volume import Origin, Volume
from medsynth.core.windows import WINDOWS, parse
from medsynth.verbs import canvas, picture

BRAIN, BONE = parse("brain"), parse("bone")


def ball(spacing_mm: tuple[float, float, float], *, modality: str = "CT") -> Volume:
    """A ball of 40 HU and 40 mm radius in air, with a bone of 900 HU to the patient's right, front and top."""
    shape = tuple(int(120 / step) for step in spacing_mm)
    x, y, z = np.meshgrid(*(np.arange(n) * step - 60 for n, step in zip(shape, spacing_mm, strict=True)), indexing="ij")
    array = np.where(x**2 + y**2 + z**2 < 40**2, 40, -1000).astype(np.float32)
    array[(x > 10) & (x < 22) & (y > 10) & (y < 22) & (z > 10) & (z < 22)] = 900
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -60
    return Volume(array=array, affine_ras=affine, origin=Origin(kind="nifti", case="ball", files=(), modality=modality))


def mr_of(ct: Volume, *, modality: str = "MR") -> Volume:
    return replace(ct, array=ct.array + 1000, origin=replace(ct.origin, modality=modality))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every piece of text that is drawn."""
    texts: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def spy(self: ImageDraw.ImageDraw, at: tuple[float, float], text: str, **options: object) -> None:
        texts.append(text)
        draw(self, at, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return texts


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def panels(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom of the panels of pictures whose panels hold black or white air, by columns of the picture, then rows."""
    rgb = pixels(image)
    air = (rgb == 0).all(axis=2) | (rgb == 247).all(axis=2)
    bands = _runs(air.sum(axis=1) > 50)
    cells = [(top, bottom, left, right) for top, bottom in bands for left, right in _runs(air[top:bottom].sum(axis=0) > 10)]
    rows = [_runs(air[top:bottom, left:right].sum(axis=1) > 10)[0] for top, bottom, left, right in cells]
    return [(left, top + start, right, top + end) for (top, _, left, right), (start, end) in zip(cells, rows, strict=True)]


def _runs(marked: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 20]


def bright(image: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    return pixels(image.crop(box))[..., 0]


def test_a_pair_says_what_it_shows(written: list[str]) -> None:
    ct = ball((2.0, 2.0, 2.0))
    picture.draw_pair(mr_of(ct), ct, (BRAIN, BONE), footer="model head 1.0", warnings=("below the chin",))
    for text in (
        "ball",
        "input",
        "output",
        "axial",
        "coronal",
        "sagittal",
        "synthetic, for research",
        "model head 1.0",
        "warning: below the chin",
    ):
        assert text in written
    assert written.count("brain window: W 80 L 40 HU") == 1
    assert written.count("bone window: W 1800 L 400 HU") == 1
    assert sum("percentiles 0.5 to 99.5" in text and "no HU" in text for text in written) == 1
    assert "MR, as the file says" in written
    assert all(written.count(letter) == 3 * count for letter, count in (("R", 2), ("L", 2), ("A", 2), ("P", 2), ("S", 2), ("I", 2)))
    assert any(text.startswith("z = ") and text.endswith(" mm") for text in written)


def test_a_result_is_a_ct_by_its_values_although_it_carries_the_origin_of_an_mr(written: list[str]) -> None:
    mr = mr_of(ball((2.0, 2.0, 2.0)))
    picture.draw_pair(mr, mr.with_array(mr.array - 1000), (BRAIN,), footer="", warnings=())
    assert "CT, by its values" in written
    assert "brain window: W 80 L 40 HU" in written


def test_input_and_output_stand_side_by_side_at_one_height_and_size() -> None:
    ct = ball((2.0, 2.0, 2.0))
    boxes = panels(picture.draw_pair(ct, ct, (BRAIN,), footer="", warnings=()))
    assert len(boxes) == 6
    for left, right in (boxes[:2], boxes[2:4], boxes[4:]):
        assert (left[1], left[3], left[2] - left[0]) == (right[1], right[3], right[2] - right[0])
        assert left[2] < right[0]


def test_right_is_left_and_front_and_head_are_up_in_every_panel_with_letters_at_the_borders() -> None:
    image = picture.draw_scan(ball((2.0, 2.0, 2.0)), (BONE,), at_mm=(16.0, 16.0, 16.0))
    boxes = panels(image)
    assert len(boxes) == 3
    for box, letters in zip(boxes, ("RLAP", "RLSI", "APSI"), strict=True):
        grey = bright(image, box)
        down, across = np.argwhere(grey > 150).mean(0) / grey.shape
        assert down < 0.45
        assert across < 0.45
        left, top, right, bottom = box
        middle, centre = (top + bottom) // 2, (left + right) // 2
        margins = ((left - 22, middle - 12), (right + 2, middle - 12), (centre - 12, top - 20), (centre - 12, bottom + 1))
        for letter, (x, y) in zip(letters, margins, strict=True):
            assert holds(image.crop((x, y, x + 24, y + 24)), letter)


def holds(part: Image.Image, letter: str) -> bool:
    """Whether the letter's own pixels are found in a part of the picture, and no other letter's."""
    masks = {}
    for name in "RLAPSI":
        glyph = Image.new("RGB", (24, 24), canvas.PAPER)
        ImageDraw.Draw(glyph).text((4, 4), name, font=ImageFont.load_default(size=canvas.TEXT), fill=canvas.FAINT)
        masks[name] = _ink(glyph)
    found = _ink(part)
    return found.shape == masks[letter].shape and np.abs(found - masks[letter]).mean() < 12


def _ink(part: Image.Image) -> np.ndarray:
    grey = pixels(part)[..., 0] - canvas.PAPER[0]
    rows, columns = np.flatnonzero((grey > 20).any(axis=1)), np.flatnonzero((grey > 20).any(axis=0))
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if rows.size else grey[:0, :0]


@pytest.mark.parametrize("spacing_mm", [(0.8, 0.8, 3.0), (3.0, 1.0, 0.7), (1.0, 2.5, 1.0)])
def test_a_ball_is_round_whatever_the_voxels(spacing_mm: tuple[float, float, float]) -> None:
    image = picture.draw_scan(ball(spacing_mm), (BRAIN,), at_mm=(0.0, 0.0, 0.0))
    for box in panels(image):
        rows, columns = np.nonzero(bright(image, box) > 60)
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), rel=0.07)
        assert rows.size == pytest.approx(np.pi / 4 * np.ptp(rows) * np.ptp(columns), rel=0.05)


def test_no_text_lies_on_a_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    ct = ball((2.0, 2.0, 2.0))
    arguments = (ct, ct.with_array(ct.array + 30), (BRAIN,))
    with_text = pixels(picture.draw_comparison(*arguments))
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *_, **__: None)
    without = pixels(picture.draw_comparison(*arguments))
    text = (with_text != without).any(axis=2)
    assert text.sum() > 1000
    assert np.all(without[text] == canvas.PAPER)


def test_a_comparison_shows_what_is_too_high_red_what_is_too_low_blue_and_the_rest_white(written: list[str]) -> None:
    reference = ball((2.0, 2.0, 2.0))
    off = np.where(reference.array == 900, 1100, np.where(reference.array == 40, -160, reference.array)).astype(np.float32)
    image = picture.draw_comparison(reference, reference.with_array(off), (BRAIN,), at_mm=(16.0, 16.0, 16.0))
    rgb = pixels(image)[:, image.width * 2 // 3 :].reshape(-1, 3)
    for colour in (canvas.BLUE_WHITE_RED[0], canvas.BLUE_WHITE_RED[2], canvas.BLUE_WHITE_RED[4]):
        assert (rgb == colour).all(axis=1).sum() > 500
    assert {"reference", "prediction", "difference", "prediction - reference", "error window: W 400 L 0 HU"} <= set(written)
    assert [text for text in written if text in ("-200", "-100", "0 HU", "+100", "+200")] == ["-200", "-100", "0 HU", "+100", "+200"]


def test_scans_without_unit_are_compared_in_percent_of_their_own_grey_levels(written: list[str]) -> None:
    mr = mr_of(ball((2.0, 2.0, 2.0)))
    image = picture.draw_comparison(mr, mr.with_array(mr.array * 7), ())
    third = pixels(image)[150:-150, image.width * 2 // 3 : -60].reshape(-1, 3)
    assert not (np.ptp(third, axis=1) > 30).any()  # no blue, no red: only the gain differs
    assert "0 %" in written


def test_a_ct_and_an_mr_have_no_difference_and_the_picture_says_so(written: list[str]) -> None:
    ct = ball((2.0, 2.0, 2.0))
    picture.draw_comparison(mr_of(ct), ct, (BRAIN,))
    assert "difference" not in written
    assert f"warning: {picture.MIXED}" in written


def test_a_map_is_grey_in_a_scale_of_its_own(written: list[str]) -> None:
    ct = ball((2.0, 2.0, 2.0))
    expected = ct.with_array(np.where(ct.array > -500, 100, 0).astype(np.float32))
    columns = (picture.Column("reference", ct), picture.Column("result", ct, ("PSNR 40.0 dB",)))
    image = picture.draw_results(columns, (BRAIN,), title="ball", differing=True, uncertainty=expected, warnings=("few views",))
    assert {"reference", "result", "difference", "expected error", "PSNR 40.0 dB", "0 to 200 HU", "warning: few views"} <= set(written)
    boxes = panels(image)
    assert len(boxes) == 12
    last = boxes[3::4] if boxes[0][1] == boxes[1][1] else boxes[-3:]
    for box in last:
        grey = bright(image, box)
        assert abs(int(grey[grey > 60].mean()) - 128) < 6


def test_an_mr_among_the_results_has_no_difference_to_a_ct(written: list[str]) -> None:
    ct = ball((2.0, 2.0, 2.0))
    picture.draw_results((picture.Column("a", ct), picture.Column("b", mr_of(ct))), (BRAIN,), title="", differing=True)
    assert "difference" not in written
    assert f"warning: {picture.MIXED}" in written


def test_a_ct_has_a_row_for_each_window() -> None:
    assert len(panels(picture.draw_scan(ball((2.0, 2.0, 2.0)), (BRAIN, WINDOWS["stroke"], BONE)))) == 9


@pytest.mark.parametrize("shape", [(64, 64, 1), (1, 48, 48), (1, 1, 1), (400, 20, 20), (20, 20, 400)])
@pytest.mark.parametrize("fill", [0.0, -1024.0, 40.0])
def test_thin_long_and_empty_scans_are_drawn(shape: tuple[int, int, int], fill: float) -> None:
    scan = Volume(array=np.full(shape, fill, dtype=np.float32), affine_ras=np.eye(4))
    image = picture.draw_pair(scan, scan, (BRAIN,), footer="", warnings=())
    assert 800 <= image.width <= 1400
    assert image.height <= 1700


def test_a_large_noisy_ct_makes_a_small_file_of_equal_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = 60 * rng.standard_normal((512, 512, 16), dtype=np.float32) + 40
    ct = Volume(array=noise, affine_ras=np.diag([0.8, 0.8, 20.0, 1.0]), origin=Origin(kind="nifti", case="noise", files=(), modality="CT"))
    for name in ("a.png", "b.png"):
        picture.save(picture.draw_pair(ct, ct, (BRAIN, BONE), footer="", warnings=()), tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert len(first) < 1.5e6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_saved_picture_keeps_grey_levels_and_colours(tmp_path: Path) -> None:
    ramp = np.arange(256, dtype=np.uint8)
    grey = np.repeat(ramp[None, :, None], 3, axis=2)
    signed = canvas.blue_white_red(WINDOWS["error"], np.linspace(-200, 200, 256, dtype=np.float32))[None]
    picture.save(Image.fromarray(np.concatenate([grey, signed])), tmp_path / "ramp.png")
    kept = pixels(Image.open(tmp_path / "ramp.png").convert("RGB"))
    assert np.abs(kept[0] - grey[0]).max() <= 1
    assert np.abs(kept[1] - signed[0]).max() <= 16


def test_names_that_the_font_cannot_draw_and_names_without_end_do_not_break_the_picture(written: list[str]) -> None:
    ct = ball((4.0, 4.0, 4.0))
    named = replace(ct, origin=replace(ct.origin, case="Schädel_東京_" + "x" * 300))
    picture.draw_scan(named, (BRAIN,))
    assert written[0].startswith("Schadel_??_xxx")
    assert written[0].endswith("...")


def test_no_grey_level_is_invented_between_the_levels_of_the_scan() -> None:
    image = picture.draw_scan(ball((3.0, 3.0, 3.0)), (BRAIN,), at_mm=(0.0, 0.0, 0.0))
    for box in panels(image):
        assert bright(image, box).max() == 128
