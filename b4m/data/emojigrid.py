"""Choose from EmojiGrid: one drawing of a content, some of a style, partners and ground truth.

The grid's manifest says of each cell what the base has seen (`split`): base, content (a held-out
content in a style of the base), style (the other way round), both. Training pictures of a style and
all partners show contents that the base knows; pictures of a held-out content in other styles are
used only as references and ground truth.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from b4m.settings import CONTENT_TRIGGER, STYLE_TRIGGER
from b4m.data.captions import content_caption, merged_caption, style_caption, with_article
from b4m.data.manifest import MANIFEST, ManifestRow
from b4m.data.request import Request
from b4m.errors import B4MError

CONTENT_STYLE = "fluent-flat"
_REFERENCES = 5
_COLUMNS = ("file", "content", "name", "class_word", "style", "style_name", "family", "split")

Chosen = list[tuple[Path, ManifestRow]]


@dataclass(frozen=True)
class Cell:
    """One drawing of the grid that is on disk."""

    path: Path
    content: str
    name: str
    class_word: str
    style: str
    style_words: str
    drawn: bool
    family: str
    split: str
    licence: str
    source: str

    @property
    def known_content(self) -> bool:
        """Whether the base has seen this content, in whatever style."""
        return self.split in ("base", "style")

    @property
    def known_style(self) -> bool:
        """Whether the base has seen this style, of whatever content."""
        return self.split in ("base", "content")


def choose(source: Path, request: Request) -> Chosen:
    """The pictures that the request needs, with their manifest lines (without file names).

    Raises:
        B4MError: for a content or style that the grid lacks, or too few pictures of a style.
    """
    cells = _read(source)
    if not request.contents and not request.styles:
        raise B4MError("name a content, a style or both: EmojiGrid holds too many to take all")
    chosen: Chosen = []
    for content in request.contents:
        chosen += _content(cells, content, request)
    for style in request.styles:
        chosen += _style(cells, style, request)
    if request.contents:
        chosen += _style_partners(cells, request)
    if request.styles:
        chosen += _content_partners(cells, request)
    chosen += [
        truth
        for content in request.contents
        for style in request.styles
        for truth in _truth(cells, content, style, request)
    ]
    return chosen


def _read(source: Path) -> list[Cell]:
    path = source / MANIFEST
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise B4MError(f"{path} is no manifest of EmojiGrid: it lacks the column {missing[0]}")
        lines = list(reader)
    cells = [
        Cell(
            path=source / line["file"],
            content=line["content"],
            name=line["name"],
            class_word=line["class_word"],
            style=line["style"],
            style_words=line["style_name"],
            drawn=line.get("kind", "drawn") == "drawn",
            family=line["family"],
            split=line["split"],
            licence=line.get("licence", ""),
            source=line.get("source", ""),
        )
        for line in lines
        if (source / line["file"]).is_file()
    ]
    if not cells:
        raise B4MError(f"{source} holds none of the pictures of its manifest; run `dvc pull`")
    return cells


def _content(cells: Sequence[Cell], content: str, request: Request) -> Chosen:
    """One training picture, and the same content in the base's other styles to compare with."""
    own = [cell for cell in cells if cell.content == content]
    if not own:
        raise _unknown("content", content, (cell.content for cell in cells))
    train = [cell for cell in own if cell.style == request.content_style]
    if not train:
        styles = (cell.style for cell in own)
        raise _unknown(f"style of the content {content}", request.content_style, styles)
    others = [cell for cell in own if cell.known_style and cell.drawn and cell not in train]
    return [
        (cell.path, _row(cell, "content", role, _of_content(cell)))
        for role, members in (("train", train[:1]), ("reference", others[:_REFERENCES]))
        for cell in members
    ]


def _style(cells: Sequence[Cell], style: str, request: Request) -> Chosen:
    """Training pictures and references of known contents, drawn with the seed."""
    own = [cell for cell in cells if cell.style == style]
    if not own:
        raise _unknown("style", style, (cell.style for cell in cells))
    known = [c for c in own if c.known_content and c.content not in request.contents]
    if not known:
        raise B4MError(f"EmojiGrid here has no picture of a known content in the style {style}")
    drawn = _shuffled(known, request, "style")
    train = drawn[: request.style_images]
    # from the end, so that one, five or twenty training pictures meet the same references
    references = drawn[request.style_images :][-_REFERENCES:]
    return [
        (cell.path, _row(cell, "style", role, style_caption(with_article(cell.name))))
        for role, members in (("train", train), ("reference", references))
        for cell in members
    ]


def _style_partners(cells: Sequence[Cell], request: Request) -> Chosen:
    """Partners of contents: known contents in other styles, each of another style."""
    avoided = {request.content_style, *request.styles}
    possible = [
        cell
        for cell in cells
        if cell.split == "base" and cell.drawn and cell.style not in avoided
        if cell.content not in request.contents
    ]
    chosen = _distinct(_shuffled(possible, request, "style partners"), "style", request.partners)
    return [(cell.path, _row(cell, "style", "partner", _partner_caption(cell))) for cell in chosen]


def _content_partners(cells: Sequence[Cell], request: Request) -> Chosen:
    """Partners of styles: other contents, drawn as the request's contents are."""
    possible = [
        cell
        for cell in cells
        if cell.style == request.content_style and cell.known_content
        if cell.content not in request.contents
    ]
    drawn = _shuffled(possible, request, "content partners")
    chosen = _distinct(drawn, "content", request.partners)
    return [(cell.path, _row(cell, "content", "partner", _of_content(cell))) for cell in chosen]


def _of_content(cell: Cell) -> str:
    """Caption that names the look as far as the base knows it; a held-out look has no name."""
    return content_caption(cell.class_word, cell.style_words if cell.known_style else "")


def _partner_caption(cell: Cell) -> str:
    return style_caption(with_article(cell.name), cell.style_words)


def _truth(cells: Sequence[Cell], content: str, style: str, request: Request) -> Chosen:
    """What a perfect merge would draw; exact if it shares the drawing of the training picture."""
    if style == request.content_style:
        return []
    source = next(c for c in cells if (c.content, c.style) == (content, request.content_style))
    found = [cell for cell in cells if (cell.content, cell.style) == (content, style)]
    return [
        (
            cell.path,
            ManifestRow(
                file="",
                kind="truth",
                concept=f"{content}+{style}",
                caption=merged_caption(cell.class_word),
                trigger=f"{CONTENT_TRIGGER} {STYLE_TRIGGER}",
                class_word=cell.class_word,
                role="reference",
                licence=cell.licence,
                source=cell.source,
                alignment="exact" if cell.family and cell.family == source.family else "meaning",
            ),
        )
        for cell in found[:1]
    ]


def _row(cell: Cell, kind: str, role: str, caption: str) -> ManifestRow:
    content = kind == "content"
    return ManifestRow(
        file="",
        kind=kind,
        concept=cell.content if content else cell.style,
        caption=caption,
        trigger=CONTENT_TRIGGER if content else STYLE_TRIGGER,
        class_word=cell.class_word if content else cell.style_words,
        role=role,
        licence=cell.licence,
        source=cell.source,
    )


def _shuffled(cells: Sequence[Cell], request: Request, use: str) -> list[Cell]:
    """The cells in the order that the seed gives to this use; the manifest's order has no say."""
    drawn = sorted(cells, key=lambda cell: (cell.content, cell.style))
    Random(f"{request.seed} {use}").shuffle(drawn)
    return drawn


def _distinct(cells: Iterable[Cell], attribute: str, count: int) -> list[Cell]:
    """The first `count` cells that differ in the attribute."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        seen.setdefault(getattr(cell, attribute), cell)
    return list(seen.values())[:count]


def _unknown(what: str, name: str, known: Iterable[str]) -> B4MError:
    names = sorted(set(known))
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return B4MError(f"EmojiGrid here has no {what} {name!r}; it has: {shown}")
