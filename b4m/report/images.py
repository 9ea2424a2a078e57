"""Images of the report: data URIs within a budget, and the contact sheet."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from b4m.data.images import fit_square, load_image
from b4m.report.load import Pair, ReportData
from b4m.report.names import name_of

BUDGET = 2_500_000
_EDGES = (384, 256, 192, 128, 96, 64)
_TILE, _GAP, _LABEL, _COLUMNS = 128, 8, 168, 8


def data_uris(paths: Iterable[Path], budget: int = BUDGET) -> dict[Path, str]:
    """Every image as a WebP data URI, all of them together below `budget` characters.

    Images are never enlarged; the longer side is reduced step by step until they fit.
    """
    images = {path: load_image(path) for path in dict.fromkeys(paths)}
    uris: dict[Path, str] = {}
    for edge in _EDGES:
        uris = {path: _uri(image, edge) for path, image in images.items()}
        if sum(map(len, uris.values())) <= budget:
            break
    return uris


def contact_sheet(data: ReportData) -> Image.Image:
    """Rows of the report as one image: references above, then every label, named at the left."""
    columns = _columns(data)
    rows: list[tuple[str, list[Path | None]]] = [
        (kind.capitalize(), _trained(data, kind, [pair for pair, _, _ in columns]))
        for kind in ("content", "style")
    ]
    by_key = {
        (sample.label, data.pair_of(sample), sample.prompt, sample.seed): sample.path
        for sample in data.samples
    }
    for label in data.labels:
        rows.append((name_of(label)[0], [by_key.get((label, *column)) for column in columns]))
    truths = [data.prepared.ground_truths.get(pair) for pair, _, _ in columns]
    if any(truths):
        rows.append(("Ground truth", [truth.path if truth else None for truth in truths]))
    step = _TILE + _GAP
    sheet = Image.new(
        "RGB", (_LABEL + step * len(columns) + _GAP, step * len(rows) + 3 * _GAP), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for number, (label, paths) in enumerate(rows):
        top = _GAP + number * step + (2 * _GAP if number >= 2 else 0)
        pen.text((_GAP * 2, top + _TILE // 2), label, "#20211f", font, anchor="lm")
        for place, path in enumerate(paths):
            if path is not None:
                tile = fit_square(load_image(path), _TILE)
                sheet.paste(tile, (_LABEL + place * step, top))
    pen.line((_GAP * 2, 2 * step + _GAP, sheet.width - _GAP * 2, 2 * step + _GAP), "#d9d6ce", 1)
    return sheet


def _trained(data: ReportData, kind: str, pairs: Sequence[Pair]) -> list[Path | None]:
    """For each column a training image of its own pair's concept, a further one each time."""
    shown: Counter[Pair] = Counter()
    images: list[Path | None] = []
    for pair in pairs:
        trained = data.prepared.concept(kind, pair[0 if kind == "content" else 1]).trained
        images.append(trained[shown[pair]] if shown[pair] < len(trained) else None)
        shown[pair] += 1
    return images


def _columns(data: ReportData) -> list[tuple[Pair, str, int]]:
    """Up to eight columns (pair, prompt, seed), pair by pair in turn."""
    by_pair: Mapping[Pair, dict[tuple[str, int], None]] = {p: {} for p in data.pairs}
    for sample in data.samples:
        by_pair[data.pair_of(sample)][sample.prompt, sample.seed] = None
    turns = max(len(columns) for columns in by_pair.values())
    columns = [
        (pair, *list(columns)[turn])
        for turn in range(turns)
        for pair, columns in by_pair.items()
        if turn < len(columns)
    ][:_COLUMNS]
    return sorted(columns, key=lambda column: data.pairs.index(column[0]))


def _uri(image: Image.Image, edge: int) -> str:
    if max(image.size) > edge:
        image = image.copy()
        image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=88, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
