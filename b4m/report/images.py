"""Pictures for one file that travels: data URIs within a budget, and the contact sheet."""

import base64
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from b4m.data.images import fit_square, load_image
from b4m.report.read import World, name_of

BUDGET = 2_500_000
_EDGES = (384, 256, 192, 128, 96, 64)
_TILE, _GAP, _LABEL, _COLUMNS = 128, 8, 168, 8


def data_uris(paths: Iterable[Path], budget: int = BUDGET) -> dict[Path, str]:
    """Every picture as a WebP data URI, all of them together below `budget` characters.

    Pictures are never enlarged; the longer side is reduced step by step until they fit.
    """
    images = {path: load_image(path) for path in dict.fromkeys(paths)}
    uris: dict[Path, str] = {}
    for edge in _EDGES:
        uris = {path: _uri(image, edge) for path, image in images.items()}
        if sum(map(len, uris.values())) <= budget:
            break
    return uris


def contact_sheet(world: World) -> Image.Image:
    """Rows of the report as one picture: references above, then every label, named at the left."""
    chosen = _columns(world)
    rows: list[tuple[str, list[Path | None]]] = [
        (kind.capitalize(), _trained(world, kind, [pair for pair, _, _ in chosen]))
        for kind in ("content", "style")
    ]
    by_key = {
        (sample.label, world.pair_of(sample), sample.prompt, sample.seed): sample.path
        for sample in world.samples
    }
    for label in world.labels:
        rows.append((name_of(label)[0], [by_key.get((label, *column)) for column in chosen]))
    truths = [world.prepared.truths.get(pair) for pair, _, _ in chosen]
    if any(truths):
        rows.append(("Ground truth", [truth.path if truth else None for truth in truths]))
    step = _TILE + _GAP
    sheet = Image.new(
        "RGB", (_LABEL + step * len(chosen) + _GAP, step * len(rows) + 3 * _GAP), "white"
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


def _trained(world: World, kind: str, pairs: Sequence[tuple[str, str]]) -> list[Path | None]:
    """For each column a training picture of its own pair's concept, a further one each time."""
    shown: Counter[tuple[str, str]] = Counter()
    found: list[Path | None] = []
    for pair in pairs:
        trained = world.prepared.concept(kind, pair[0 if kind == "content" else 1]).trained
        found.append(trained[shown[pair]] if shown[pair] < len(trained) else None)
        shown[pair] += 1
    return found


def _columns(world: World) -> list[tuple[tuple[str, str], str, int]]:
    """Up to eight columns (pair, prompt, seed), pair by pair in turn."""
    by_pair: Mapping[tuple[str, str], dict[tuple[str, int], None]] = {p: {} for p in world.pairs}
    for sample in world.samples:
        by_pair[world.pair_of(sample)][sample.prompt, sample.seed] = None
    turns = max(len(columns) for columns in by_pair.values())
    found = [
        (pair, *list(columns)[turn])
        for turn in range(turns)
        for pair, columns in by_pair.items()
        if turn < len(columns)
    ][:_COLUMNS]
    return sorted(found, key=lambda column: world.pairs.index(column[0]))


def _uri(image: Image.Image, edge: int) -> str:
    if max(image.size) > edge:
        image = image.copy()
        image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=88, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
