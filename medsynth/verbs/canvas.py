"""Paper and ink of the pictures: panels of one scale in rows and columns, with text around them and never on them.

The font is the one inside Pillow (Aileron), which knows little beyond ASCII.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from medsynth.core import windows
from medsynth.core.windows import DisplayScale
from medsynth.scans.planes import Plane

Colour = tuple[int, int, int]

WIDEST, HIGHEST, NARROWEST = 1320, 1480, 900  # pixels of the whole picture, about: text below the panels comes on top
MARGIN, LETTERS, GAP = 24, 20, 14  # pixels: around the picture; around a panel, for its letters; between columns
TITLE, TEXT, SMALL, LINE = 20, 14, 12, 18  # sizes of type, and from line to line
STRIP = 26  # pixels above a row, for its heading
BAR, BAR_STRIP = (220, 9), 40  # pixels of the colour bar, and of what is kept free for it
INK, FAINT, AMBER, PAPER = (226, 229, 233), (138, 145, 153), (240, 178, 74), (13, 15, 18)
BLUE_WHITE_RED: tuple[Colour, ...] = ((16, 42, 120), (86, 146, 212), (247, 247, 247), (224, 106, 86), (122, 8, 28))
GREYS, SIGNED, INKS = 172, 60, 8  # of the 256 colours in a file


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One slice [down across] in the unit of its scale, shown grey."""

    pixels: np.ndarray
    plane: Plane
    scale: DisplayScale


@dataclass(frozen=True, kw_only=True)
class SignedPanel(Panel):
    """Shown blue below the middle of its scale, white there, red above. unit: written at the colour bar."""

    unit: str


@dataclass(frozen=True, kw_only=True)
class Heading:
    """What stands above a column or a row."""

    title: str
    details: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """All that a picture shows. panels: row by row. badge: at the top right. warnings, notes: below the panels."""

    title: str
    badge: str = ""
    columns: Sequence[Heading]
    rows: Sequence[Heading]
    panels: Sequence[Sequence[Panel]]
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Pixels. lefts, tops: of the cells that panels are centred in, of sizes widths, heights; foot: where the text below begins."""

    scale: float
    lefts: list[int]
    widths: list[int]
    tops: list[int]
    heights: list[int]
    right: int
    foot: int


def draw(sheet: Sheet) -> Image.Image:
    """The picture of a sheet, RGB, about 900 to 1320 pixels wide."""
    layout = _layout(sheet)
    inner = layout.right - 2 * MARGIN
    below = [(line, AMBER) for text in sheet.warnings for line in _wrapped(f"warning: {text}", inner)]
    below += [(line, FAINT) for text in sheet.notes for line in _wrapped(text, inner)]
    image = Image.new("RGB", (layout.right, layout.foot + LINE * len(below) + MARGIN), PAPER)
    ink = ImageDraw.Draw(image)
    _write(ink, (MARGIN, MARGIN), _fitted(sheet.title, inner - _length(sheet.badge, TEXT) - GAP, TITLE), TITLE, INK)
    _write(ink, (layout.right - MARGIN, MARGIN + 4), sheet.badge, TEXT, AMBER, "ra")
    _draw_headings(ink, sheet, layout)
    for panels, top, height in zip(sheet.panels, layout.tops, layout.heights, strict=True):
        for panel, left, width in zip(panels, layout.lefts, layout.widths, strict=True):
            _draw_panel(image, panel, layout.scale, (left + width // 2, top + height // 2))
    for panel, left, width in zip(sheet.panels[-1], layout.lefts, layout.widths, strict=True):
        if isinstance(panel, SignedPanel):
            _draw_bar(image, panel, (left + (width - BAR[0]) // 2, layout.foot - BAR_STRIP))
    for number, (line, colour) in enumerate(below):
        _write(ink, (MARGIN, layout.foot + LINE * number), line, SMALL, colour)
    return image


def with_palette(image: Image.Image) -> Image.Image:
    """The picture in 256 colours, which makes its file a third as large: greys to within one level of 255, colours nearly."""
    ramps = [_ramp((PAPER, colour), INKS) for colour in (INK, FAINT, AMBER)]
    colours = [*_ramp(((0, 0, 0), (255, 255, 255)), GREYS), *_ramp(BLUE_WHITE_RED, SIGNED), *(colour for ramp in ramps for colour in ramp)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for colour in colours for channel in colour])
    rough = image.quantize(palette=palette, dither=Image.Dither.NONE)
    rgb = np.asarray(image)
    grey = (rgb[..., 0] == rgb[..., 1]) & (rgb[..., 1] == rgb[..., 2])
    nearest = np.rint(np.arange(256) * ((GREYS - 1) / 255)).astype(np.uint8)
    exact = Image.fromarray(np.where(grey, nearest[rgb[..., 0]], np.asarray(rough)))
    exact.putpalette(palette.getpalette() or [])
    return exact


def blue_white_red(scale: DisplayScale, values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Colours for signed values: blue at the scale's lower end and below, white in its middle, red at its upper end and above."""
    table = [np.interp(np.arange(256), (0, 64, 128, 192, 255), channel) for channel in zip(*BLUE_WHITE_RED, strict=True)]
    return np.rint(np.stack(table, axis=1)).astype(np.uint8)[windows.apply(scale, values)]


def _layout(sheet: Sheet) -> _Layout:
    sizes_mm = np.array([[panel.plane.size_mm for panel in panels] for panels in sheet.panels])
    heights_mm, widths_mm = sizes_mm[..., 0].max(axis=1), sizes_mm[..., 1].max(axis=0)
    across = 2 * MARGIN + len(widths_mm) * (2 * LETTERS + GAP) - GAP
    bar = BAR_STRIP if any(isinstance(panel, SignedPanel) for panel in sheet.panels[-1]) else 0
    down = 2 * MARGIN + TITLE + 5 * LINE + len(heights_mm) * (STRIP + 2 * LETTERS) + bar
    scale = min((WIDEST - across) / widths_mm.sum(), (HIGHEST - down) / heights_mm.sum())
    spare = max(0.0, NARROWEST - across - scale * widths_mm.sum()) / len(widths_mm)
    widths = [max(1, round(scale * width + spare)) for width in widths_mm]
    heights = [max(1, round(scale * height)) for height in heights_mm]
    lefts = [MARGIN + LETTERS + sum(widths[:n]) + n * (2 * LETTERS + GAP) for n in range(len(widths))]
    details = max(len(_details(heading, width)) for heading, width in zip(sheet.columns, widths, strict=True))
    head = MARGIN + TITLE + LINE * (details + 2)
    tops = [head + STRIP + LETTERS + sum(heights[:n]) + n * (STRIP + 2 * LETTERS) for n in range(len(heights))]
    foot = tops[-1] + heights[-1] + 2 * LETTERS + bar
    right = lefts[-1] + widths[-1] + LETTERS + MARGIN
    return _Layout(scale=scale, lefts=lefts, widths=widths, tops=tops, heights=heights, right=right, foot=foot)


def _draw_headings(ink: ImageDraw.ImageDraw, sheet: Sheet, layout: _Layout) -> None:
    for heading, left, width in zip(sheet.columns, layout.lefts, layout.widths, strict=True):
        top = MARGIN + TITLE + LINE
        _write(ink, (left + width // 2, top), heading.title, TEXT, INK, "ma")
        for number, line in enumerate(_details(heading, width)):
            _write(ink, (left + width // 2, top + LINE * (number + 1)), line, SMALL, FAINT, "ma")
    for heading, top in zip(sheet.rows, layout.tops, strict=True):
        start, level = MARGIN + _length(heading.title, TEXT) + GAP, top - LETTERS - STRIP
        details = _fitted("   ".join(heading.details), layout.right - MARGIN - start, SMALL)
        _write(ink, (MARGIN, level + 6), heading.title, TEXT, INK)
        _write(ink, (start, level + 8), details, SMALL, FAINT)


def _details(heading: Heading, width: int) -> list[str]:
    return [line for text in heading.details for line in _wrapped(text, width + LETTERS)]


def _draw_panel(image: Image.Image, panel: Panel, scale: float, centre: tuple[int, int]) -> None:
    """The panel around a point of the picture, with its letters."""
    # Interpolated in the scan's unit, before the window clips it; linearly, since a cubic would draw a bright rim around the skin.
    high, wide = (max(1, round(scale * side)) for side in panel.plane.size_mm)
    values = Image.fromarray(np.ascontiguousarray(panel.pixels, dtype=np.float32)).resize((wide, high), Image.Resampling.BILINEAR)
    show = blue_white_red if isinstance(panel, SignedPanel) else windows.apply
    left, top = centre[0] - wide // 2, centre[1] - high // 2
    image.paste(Image.fromarray(show(panel.scale, np.asarray(values))), (left, top))
    ink, (x, y) = ImageDraw.Draw(image), centre
    borders = ((left - 5, y, "rm"), (left + wide + 5, y, "lm"), (x, top - 4, "mb"), (x, top + high + 4, "mt"))
    for letter, (at_x, at_y, anchor) in zip(panel.plane.letters, borders, strict=True):
        _write(ink, (at_x, at_y), letter, TEXT, FAINT, anchor)


def _draw_bar(image: Image.Image, panel: SignedPanel, corner: tuple[int, int]) -> None:
    left, top = corner
    values = np.linspace(panel.scale.low, panel.scale.high, BAR[0], dtype=np.float32)
    image.paste(Image.fromarray(np.tile(blue_white_red(panel.scale, values), (BAR[1], 1, 1))), corner)
    ink = ImageDraw.Draw(image)
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = panel.scale.low + share * (panel.scale.high - panel.scale.low)
        x = left + round(share * (BAR[0] - 1))
        ink.line((x, top + BAR[1], x, top + BAR[1] + 3), fill=FAINT)
        _write(ink, (x, top + BAR[1] + 6), f"{value:+.4g}" if value else f"0 {panel.unit}", SMALL, FAINT, "ma")


def _ramp(anchors: Sequence[Colour], count: int) -> list[Colour]:
    at = np.linspace(0, len(anchors) - 1, count)
    channels = [np.rint(np.interp(at, np.arange(len(anchors)), channel)).astype(int).tolist() for channel in zip(*anchors, strict=True)]
    return list(zip(*channels, strict=True))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _write(ink: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: Colour, anchor: str = "la") -> None:
    ink.text(at, _printable(text), font=_font(size), fill=colour, anchor=anchor)


def _length(text: str, size: int) -> int:
    return round(_font(size).getlength(_printable(text)))


def _printable(text: str) -> str:
    """Letters without their accents; a question mark for what the font cannot draw."""
    plain = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" or c in "°·±" else "?" for c in plain)


def _fitted(text: str, width: int, size: int) -> str:
    """The text, cut at its end to what fits."""
    if _length(text, size) <= width:
        return text
    fitting = next((n for n in range(len(text), 0, -1) if _length(text[:n] + "...", size) <= width), 0)
    return text[:fitting] + "..."


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of small type that fit, broken at spaces; a word that is too long alone is cut."""
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _length(longer, SMALL) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_fitted(line, width, SMALL) for line in lines if line]
