"""How adapters meet, as an image: one row for each block, from the facts of `b4m inspect A B`.

Bars of norms beside one another, then for every two adapters a bar of their cosine from -1 to 1 and
two of what they read and write in common from 0 to 1, each with a line where chance lies. Drawn
with Pillow alone, since inspecting files needs no more than reading them.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_SCALE = 2  # pixels of a unit, for sharp text
_ADAPTERS = ("#4c5c96", "#c0724a", "#5b9279", "#a55a8d", "#8a8a3c", "#3c8a94")
_COSINE, _READS, _WRITES = "#55606e", "#2a6f8f", "#7fb3a6"
_INK, _PALE, _GROUND = "#222222", "#d9d9d9", "#ffffff"
_MARGIN, _BAR, _GAP, _HEAD, _LINE = 16, 7, 9, 46, 17
_PANEL, _BETWEEN = 150, 50
_SHORT = 30  # letters of a file's name that are shown

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class _Axis:
    """A panel's place and the values that it spans."""

    left: float
    low: float
    high: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.left + _PANEL * share


def picture(facts: Facts) -> bytes:
    """The image as PNG.

    Args:
        facts: of `b4m.files.compare_files`.
    """
    rows = _rows(facts)
    pairs = list(facts["together"]["pairs"])
    font = ImageFont.load_default(12 * _SCALE)
    names = max(font.getlength(name) for name in [*rows, "block"]) / _SCALE
    row_height = _GAP + _BAR * max(2, len(facts["files"]))
    left = _MARGIN + names + 12
    width = left + (1 + 2 * len(pairs)) * (_PANEL + _BETWEEN) + _MARGIN
    said = [
        line
        for text in facts["advice"]
        for line in textwrap.wrap(text, int((width - 2 * _MARGIN) / 6.3))
    ]
    top = _MARGIN + _LINE * len(facts["files"]) + _HEAD
    height = top + row_height * len(rows) + _GAP + _LINE * (len(said) + 1) + _MARGIN
    sheet = _Sheet(int(width), int(height), font)
    for number, file in enumerate(facts["files"]):
        y = _MARGIN + _LINE * number
        sheet.bar(_MARGIN, y + 3, _MARGIN + 10, 10, _colour(number))
        sheet.text(_MARGIN + 16, y, f"{number + 1}  {_named(file)}")
    _norms(sheet, rows, left, top, row_height)
    for number, pair in enumerate(pairs):
        x = left + (1 + 2 * number) * (_PANEL + _BETWEEN)
        _pair(sheet, rows, pair if len(pairs) > 1 else "", pair, x, top, row_height)
    for number, line in enumerate(said):
        below = top + row_height * len(rows) + _GAP + _LINE * (number + 0.5)
        sheet.text(_MARGIN, below, line)
    return sheet.png()


class _Sheet:
    """A white sheet on which lengths are in units of a few pixels."""

    def __init__(self, width: int, height: int, font: "ImageFont.FreeTypeFont | Any") -> None:
        self.width, self.font = width, font
        self.image = Image.new("RGB", (width * _SCALE, height * _SCALE), _GROUND)
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, words: str, anchor: str = "la", ink: str = _INK) -> None:
        place = (x * _SCALE, y * _SCALE)
        self.draw.text(place, words, ink, self.font, anchor=anchor)

    def bar(self, start: float, top: float, end: float, height: float, colour: str) -> None:
        left, right = sorted((start, end))
        if right - left > 0:
            box = (left * _SCALE, top * _SCALE, right * _SCALE - 1, (top + height) * _SCALE - 1)
            self.draw.rectangle((box[0], box[1], max(box[0], box[2]), box[3]), colour)

    def line(self, x: float, top: float, bottom: float, colour: str) -> None:
        self.draw.line((x * _SCALE, top * _SCALE, x * _SCALE, bottom * _SCALE), colour, _SCALE)

    def png(self) -> bytes:
        stream = BytesIO()
        self.image.save(stream, "png", optimize=True)
        return stream.getvalue()


def _rows(facts: Facts) -> dict[str, Facts]:
    """The denoiser's blocks, then all of them together and the text encoders."""
    text = {name: row for name, row in facts["blocks"].items() if name.startswith("text_encoder")}
    own = {name: row for name, row in facts["blocks"].items() if name not in text}
    return {**own, "together": facts["together"], **text}


def _norms(
    sheet: _Sheet,
    rows: Mapping[str, Facts],
    left: float,
    top: float,
    row_height: float,
) -> None:
    """Names of blocks, and the first panel; whole networks, at its end, have their own scale."""
    blocks = list(rows).index("together")
    norms = [row["norms"] for row in rows.values()]
    axes = [
        _Axis(left, 0.0, max((n for row in part for n in row), default=0.0) * room or 1.0)
        for part, room in ((norms[:blocks], 1.0), (norms[blocks:], 2.0))
    ]
    sheet.text(left, top - 38, "norm")
    _ticks(sheet, axes[0], [0.0, axes[0].high], top, row_height * blocks)
    for number, (name, row) in enumerate(rows.items()):
        y, axis = top + row_height * number, axes[number >= blocks]
        if number == blocks:
            sheet.bar(_MARGIN, y - _GAP / 2 - 1, sheet.width - _MARGIN, 1, _PALE)
        sheet.text(left - 10, y + (row_height - _GAP) / 2, name, "rm")
        for adapter, norm in enumerate(row["norms"]):
            sheet.bar(left, y + _BAR * adapter, axis(norm), _BAR - 1, _colour(adapter))
        if number >= blocks:
            told = ", ".join(f"{norm:.3g}" for norm in row["norms"])
            place = axis(max(row["norms"])) + 5, y + (row_height - _GAP) / 2
            sheet.text(*place, told, "lm")


def _pair(
    sheet: _Sheet,
    rows: Mapping[str, Facts],
    label: str,
    pair: str,
    left: float,
    top: float,
    row_height: float,
) -> None:
    """The two panels of a pair of adapters."""
    cosine = _Axis(left, -1.0, 1.0)
    overlap = _Axis(left + _PANEL + _BETWEEN, 0.0, 1.0)
    sheet.text(left, top - 38, f"cosine {label}")
    x = overlap.left
    title = f"overlap {label}".strip()
    words = ((f"{title}:", _INK), ("reads", _READS), ("writes", _WRITES), ("| chance", _INK))
    for word, ink in words:
        sheet.text(x, top - 38, word, ink=ink)
        x += sheet.font.getlength(f"{word} ") / _SCALE
    high = row_height * len(rows)
    _ticks(sheet, cosine, [-1.0, 0.0, 1.0], top, high)
    _ticks(sheet, overlap, [0.0, 1.0], top, high)
    for number, row in enumerate(rows.values()):
        found, y = row["pairs"].get(pair), top + row_height * number
        if found is None:
            continue
        middle = y + (row_height - _GAP - 1.5 * _BAR) / 2
        sheet.bar(cosine(0.0), middle, cosine(found["cosine"]), 1.5 * _BAR, _COSINE)
        tall = (row_height - _GAP) / 2
        for k, (way, colour) in enumerate((("in", _READS), ("out", _WRITES))):
            above = y + tall * k
            sheet.bar(overlap(0.0), above, overlap(found[f"overlap_{way}"]), tall - 1, colour)
            sheet.line(overlap(found[f"chance_{way}"]), above - 1, above + tall, _INK)


def _ticks(sheet: _Sheet, axis: _Axis, values: Sequence[float], top: float, height: float) -> None:
    for value in values:
        sheet.line(axis(value), top - _GAP / 2, top + height - _GAP / 2, _PALE)
        sheet.text(axis(value), top - 8, f"{value:.3g}", "ms", "#777777")


def _colour(adapter: int) -> str:
    return _ADAPTERS[adapter % len(_ADAPTERS)]


def _named(file: str) -> str:
    """A file's name, of which a long one loses its middle."""
    name = Path(file).name
    return name if len(name) <= 2 * _SHORT else f"{name[:_SHORT]}...{name[-_SHORT:]}"
