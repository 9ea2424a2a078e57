"""Read EmojiGrid: one drawing of a content, some of a style, partners and ground truth.

`b4m prepare` finds this module by the entry-point group `b4m.sources`. The grid's manifest says of
each cell what the base has seen (`split`): base, content (a held-out content in a style of the
base), style (the other way round), both. Training images of a style and all partners show contents
that the base knows; images of a held-out content in other styles are used only as references and
ground truth.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random

from b4m.data.captions import content_caption, merged_caption, style_caption, with_article
from b4m.data.manifest import MANIFEST, ManifestRow
from b4m.data.sources import Request, Selection
from b4m.errors import B4MError
from b4m.io import read_text
from b4m.settings import CONTENT_TRIGGER, STYLE_TRIGGER

CONTENT_STYLE = "fluent-flat"
_REFERENCES = 5
# trigger of each kind, and the column that holds its class word
_TRIGGERS = {"content": CONTENT_TRIGGER, "style": STYLE_TRIGGER}
_COLUMNS = {"file", "content", "name", "class_word", "style", "style_name", "family", "split"}

Cell = Mapping[str, str]
"""A line of the grid's manifest whose drawing is on disk."""


def reads(folder: Path) -> bool:
    """Whether the folder's manifest has the columns of EmojiGrid's."""
    return set(_manifest(folder).fieldnames or []) >= _COLUMNS


def choose(folder: Path, request: Request) -> Selection:
    """The images that the request needs, with their manifest lines (without file names).

    Raises:
        B4MError: for a content or style that the grid lacks, or too few images of a style.
    """
    if not request.contents and not request.styles:
        raise B4MError("name a content, a style or both: EmojiGrid holds too many to take all")
    cells = [cell for cell in _manifest(folder) if (folder / cell["file"]).is_file()]
    if not cells:
        raise B4MError(f"{folder} holds none of the images of its manifest; run `dvc pull`")
    grid = _Grid(cells, request, request.content_style or CONTENT_STYLE)
    rows = [row for content in request.contents for row in grid.content(content)]
    rows += [row for style in request.styles for row in grid.style(style)]
    rows += grid.style_partners() if request.contents else []
    rows += grid.content_partners() if request.styles else []
    for content, style in product(request.contents, request.styles):
        rows += grid.ground_truth(content, style)
    return [(folder / cell["file"], row) for cell, row in rows]


def _manifest(folder: Path) -> "csv.DictReader[str]":
    return csv.DictReader(io.StringIO(read_text(folder / MANIFEST), newline=""))


_Rows = list[tuple[Cell, ManifestRow]]


@dataclass(frozen=True)
class _Grid:
    """The cells, and what is asked of them; contents are drawn in the style `drawn_in`."""

    cells: Sequence[Cell]
    request: Request
    drawn_in: str

    def content(self, content: str) -> _Rows:
        """One training image, and the same content in the base's other styles to compare with."""
        own = self._of("content", content)
        train = [cell for cell in own if cell["style"] == self.drawn_in]
        if not train:
            raise _unknown(f"style of the content {content}", self.drawn_in, own, "style")
        others = [c for c in own if _knows_style(c) and _is_drawn(c) and c not in train]
        rows = _rows(train[:1], "content", "train", _content_caption)
        return rows + _rows(others[:_REFERENCES], "content", "reference", _content_caption)

    def style(self, style: str) -> _Rows:
        """Training images and references of known contents, in the seed's order."""
        cells = [cell for cell in self._of("style", style) if _knows_content(cell)]
        shuffled = self._shuffled(cells, "style")
        if not shuffled:
            raise B4MError(f"EmojiGrid here has no image of a known content in the style {style}")
        count = self.request.style_images
        # from the end, so that one, five or twenty training images meet the same references
        references = shuffled[count:][-_REFERENCES:]
        rows = _rows(shuffled[:count], "style", "train", _style_caption)
        return rows + _rows(references, "style", "reference", _style_caption)

    def style_partners(self) -> _Rows:
        """Partners of contents: known contents in other styles, each of another style."""
        avoided = {self.drawn_in, *self.request.styles}
        cells = [c for c in self.cells if c["split"] == "base" and _is_drawn(c)]
        others = [cell for cell in cells if cell["style"] not in avoided]
        partners = self._distinct(self._shuffled(others, "style partners"), "style")
        return _rows(partners, "style", "partner", _partner_caption)

    def content_partners(self) -> _Rows:
        """Partners of styles: other contents, drawn as the request's contents are."""
        cells = [c for c in self.cells if c["style"] == self.drawn_in and _knows_content(c)]
        partners = self._distinct(self._shuffled(cells, "content partners"), "content")
        return _rows(partners, "content", "partner", _content_caption)

    def ground_truth(self, content: str, style: str) -> _Rows:
        """What a perfect merge would draw; exact if it shares the drawing of the training image."""
        drawings = {cell["style"]: cell for cell in self._of("content", content)}
        if style == self.drawn_in or style not in drawings:
            return []
        cell = drawings[style]
        exact = cell["family"] and cell["family"] == drawings[self.drawn_in]["family"]
        row = ManifestRow(
            file="",
            kind="truth",
            concept=f"{content}+{style}",
            caption=merged_caption(cell["class_word"], _style_words(cell)),
            trigger=f"{CONTENT_TRIGGER} {STYLE_TRIGGER}",
            class_word=cell["class_word"],
            role="reference",
            licence=cell.get("licence", ""),
            source=cell.get("source", ""),
            alignment="exact" if exact else "meaning",
        )
        return [(cell, row)]

    def _of(self, kind: str, name: str) -> list[Cell]:
        own = [cell for cell in self.cells if cell[kind] == name]
        if not own:
            raise _unknown(kind, name, self.cells, kind)
        return own

    def _shuffled(self, cells: Iterable[Cell], use: str) -> list[Cell]:
        """In the order that the seed gives to this use; the manifest's order has no say."""
        others = (cell for cell in cells if cell["content"] not in self.request.contents)
        ordered = sorted(others, key=lambda cell: (cell["content"], cell["style"]))
        Random(f"{self.request.seed} {use}").shuffle(ordered)
        return ordered

    def _distinct(self, cells: Iterable[Cell], column: str) -> list[Cell]:
        """As many partners as are asked for, the first cells that differ in the column."""
        seen: dict[str, Cell] = {}
        for cell in cells:
            seen.setdefault(cell[column], cell)
        return list(seen.values())[: self.request.partners]


def _knows_content(cell: Cell) -> bool:
    """Whether the base has seen this content, in whatever style."""
    return cell["split"] in ("base", "style")


def _knows_style(cell: Cell) -> bool:
    """Whether the base has seen this style, of whatever content."""
    return cell["split"] in ("base", "content")


def _is_drawn(cell: Cell) -> bool:
    return cell.get("kind", "drawn") == "drawn"


def _content_caption(cell: Cell) -> str:
    """Caption that names the style as far as the base knows it; a held-out style has no name."""
    return content_caption(cell["class_word"], cell["style_name"] if _knows_style(cell) else "")


def _style_caption(cell: Cell) -> str:
    return style_caption(with_article(cell["name"]), _style_words(cell))


def _style_words(cell: Cell) -> str:
    """The style's name where the base knows it, else what anyone would say who looks at it."""
    return cell["style_name"] if _knows_style(cell) else cell.get("style_description", "")


def _partner_caption(cell: Cell) -> str:
    return style_caption(with_article(cell["name"]), cell["style_name"])


def _rows(cells: Iterable[Cell], kind: str, role: str, caption: Callable[[Cell], str]) -> _Rows:
    return [
        (
            cell,
            ManifestRow(
                file="",
                kind=kind,
                concept=cell[kind],
                caption=caption(cell),
                trigger=_TRIGGERS[kind],
                class_word=cell["class_word"] if kind == "content" else _style_words(cell),
                role=role,
                licence=cell.get("licence", ""),
                source=cell.get("source", ""),
            ),
        )
        for cell in cells
    ]


def _unknown(what: str, name: str, cells: Iterable[Cell], column: str) -> B4MError:
    names = sorted({cell[column] for cell in cells})
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return B4MError(f"EmojiGrid here has no {what} {name!r}; it has: {shown}")
