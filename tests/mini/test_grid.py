"""Drawing the grid, from archives made here in the form of the real ones."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("resvg_py")

from b4m.errors import B4MError  # noqa: E402
from b4m_mini import archives, grid  # noqa: E402
from b4m_mini.catalog import DRAWN, PACKAGES, STYLES, Package  # noqa: E402

CODES = {
    "1f408": ("cat", "animals-nature", "animal-mammal"),
    "1f419": ("octopus", "animals-nature", "animal-marine"),
}


def _pack(folder: Path, package: Package, files: dict[str, bytes]) -> None:
    with tarfile.open(folder / package.archive, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("npm")
    icons = {
        name: {"body": f'<rect width="{8 + 4 * i}" height="12" fill="currentColor"/>'}
        for i, (name, _, _) in enumerate(CODES.values())
    }
    for key, package in PACKAGES.items():
        if key in ("fluent-3d", "openmoji"):
            continue
        codes = {code: name for code, (name, _, _) in CODES.items()}
        chars = {} if key in ("noto-v1", "emojione") else codes
        _pack(
            folder,
            package,
            {
                "icons.json": json.dumps({"icons": icons, "width": 24, "height": 24}).encode(),
                "chars.json": json.dumps(chars).encode(),
            },
        )
    render = io.BytesIO()
    Image.new("RGBA", (40, 40), (0, 0, 255, 128)).save(render, "WEBP", lossless=True)
    _pack(
        folder, PACKAGES["fluent-3d"], {f"assets/{code}.webp": render.getvalue() for code in CODES}
    )
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><circle r="20"/></svg>'
    table = "hexcode,group,subgroups,annotation,tags,skintone\n" + "".join(
        f"{code.upper()},{group},{subgroup},{name},a,\n"
        for code, (name, group, subgroup) in CODES.items()
    )
    files = {f"{kind}/svg/{code.upper()}.svg": svg for kind in ("color", "black") for code in CODES}
    _pack(folder, PACKAGES["openmoji"], {**files, "data/openmoji.csv": table.encode()})
    return folder


def test_every_content_exists_in_every_style(npm: Path) -> None:
    cells = grid.Drawings(npm).cells
    assert len(cells) == len(CODES) * len(STYLES)


def test_a_drawing_is_put_on_white_at_its_place(npm: Path) -> None:
    opened = grid.Drawings(npm)
    cell = next(c for c in opened.cells if _file(c) == "twemoji/cat.png")
    tile = np.asarray(opened.render(cell))
    assert tile.shape == (128, 128, 3)
    side = 128 * 8 // 24  # the rectangle is 8 of 24 units wide
    assert (tile[2, 2] == 0).all()
    assert (tile[2, side + 3] == 255).all()
    half = next(c for c in opened.cells if _file(c) == "fluent-3d/cat.png")
    assert np.asarray(opened.render(half))[64, 64] == pytest.approx([127, 127, 255], abs=1)


def test_two_drawings_of_the_grid_are_the_same_bytes(npm: Path, tmp_path: Path) -> None:
    first = _rendered(npm, tmp_path / "a", workers=1)
    assert first == _rendered(npm, tmp_path / "b", workers=2)
    assert "twemoji/octopus.png" in first


def _file(cell: grid.Cell) -> str:
    return cell.row()["file"]


def _rendered(npm: Path, out: Path, workers: int) -> dict[str, bytes]:
    drawn = [cell for cell in grid.Drawings(npm).cells if cell.style.kind == DRAWN]
    tiles = (tile for chunk in grid.render(npm, drawn, workers) for tile in chunk)
    return {_file(cell): tile.tobytes() for cell, tile in zip(drawn, tiles, strict=True)}


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(B4MError, match=r"twemoji.*is missing"):
        archives.read_archive(tmp_path, PACKAGES["twemoji"])
