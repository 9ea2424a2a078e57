"""Prepared folders: who gets which role, and what bad input says."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from PIL import Image

from b4m.data import sources
from b4m.data.manifest import ManifestRow, read_manifest
from b4m.data.prepare import prepare
from b4m.data.sources import Request, Selection
from b4m.errors import B4MError
from tests.data.worlds import write_user_folder


def rows_of(folder: Path, kind: str, role: str) -> list[ManifestRow]:
    return [row for row in read_manifest(folder) if (row.kind, row.role) == (kind, role)]


def test_every_row_states_licence_and_source(tmp_path: Path) -> None:
    rows = read_manifest(prepare(write_user_folder(tmp_path / "own"), tmp_path / "data"))
    assert all(row.licence == "CC0-1.0" and row.source for row in rows)


def test_user_folder_gets_captions_from_its_names(tmp_path: Path) -> None:
    own = write_user_folder(tmp_path / "own")
    (own / "content/teapot").rename(own / "content/tea_pot")
    out = prepare(own, tmp_path / "data", "tea_pot", "stripes")
    assert rows_of(out, "content", "train")[0].caption == "a snq tea pot"
    assert "a ball in w@z stripes style" in {row.caption for row in rows_of(out, "style", "train")}
    assert {row.concept for row in rows_of(out, "content", "partner")} == {
        "vase",
        "cone",
        "tea_pot",
    }


def test_caption_file_is_taken_as_it_is(tmp_path: Path) -> None:
    own = write_user_folder(tmp_path / "own")
    (own / "content/teapot/teapot-0.txt").write_text("a photo of snq teapot\non a table")
    out = prepare(own, tmp_path / "data", "teapot", "stripes")
    assert rows_of(out, "content", "train")[0].caption == "a photo of snq teapot on a table"


def test_one_of_four_content_pictures_is_held_back(tmp_path: Path) -> None:
    for count, held in ((3, 0), (4, 1)):
        own = write_user_folder(tmp_path / f"own-{count}", contents=count)
        out = prepare(own, tmp_path / f"data-{count}", "teapot", "stripes")
        assert len(rows_of(out, "content", "reference")) == held
        assert len(rows_of(out, "content", "train")) == count - held


def break_png(own: Path) -> None:
    path = own / "content/teapot/teapot-0.png"
    path.write_bytes(path.read_bytes()[:-40])


def empty_folder(own: Path) -> None:
    for path in (own / "style/stripes").iterdir():
        path.unlink()


def forget_trigger(own: Path) -> None:
    (own / "style/stripes/a-ball-0.txt").write_text("a ball in striped style")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_png, r"teapot-0\.png is damaged"),
        (empty_folder, r"style/stripes holds no image"),
        (forget_trigger, r"a-ball-0\.txt: the caption .* lacks the trigger word 'w@z'"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, spoil: object, message: str
) -> None:
    own = write_user_folder(tmp_path / "own")
    spoil(own)  # type: ignore[operator]
    with pytest.raises(B4MError, match=message):
        prepare(own, tmp_path / "out/data", "teapot", "stripes")
    left = list((tmp_path / "out").rglob("*")) if (tmp_path / "out").exists() else []
    assert left == []


def test_a_failed_preparation_keeps_the_earlier_folder(tmp_path: Path) -> None:
    own = write_user_folder(tmp_path / "own")
    out = prepare(own, tmp_path / "data", "teapot", "stripes")
    before = (out / "manifest.csv").read_bytes()
    break_png(own)
    with pytest.raises(B4MError, match="damaged"):
        prepare(own, out, "teapot", "stripes")
    assert (out / "manifest.csv").read_bytes() == before


def test_a_folder_with_other_things_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("words")
    with pytest.raises(B4MError, match="no prepared folder"):
        prepare(write_user_folder(tmp_path / "own"), tmp_path / "thesis")
    assert (tmp_path / "thesis/chapter.txt").read_text() == "words"


def test_source_without_pictures_or_missing_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(B4MError, match="neither content/<name>/ nor style/<name>/"):
        prepare(tmp_path / "own", tmp_path / "data")
    with pytest.raises(B4MError, match="does not exist"):
        prepare(tmp_path / "nowhere", tmp_path / "data")


class _Album:
    """A reader of another package: one image of everything that is asked for."""

    def reads(self, folder: Path) -> bool:
        return (folder / "manifest.csv").read_text().startswith("album")

    def choose(self, folder: Path, request: Request) -> Selection:
        row = ManifestRow(
            "", "content", request.contents[0], "a snq", "snq", "cup", "train", "", ""
        )
        return [(folder / "one.png", row)]


def _collection(folder: Path) -> Path:
    folder.mkdir()
    (folder / "manifest.csv").write_text("album\n")
    Image.new("RGB", (32, 32), "teal").save(folder / "one.png")
    return folder


def test_a_package_can_bring_a_reader_of_its_own_collections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("album", "tests.data.test_prepare:_Album", sources.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: _Album())
    monkeypatch.setattr(sources, "entry_points", lambda group: [point])
    out = prepare(_collection(tmp_path / "album"), tmp_path / "data", "cup")
    (row,) = read_manifest(out)
    assert (row.concept, row.role) == ("cup", "train")
    with Image.open(out / row.file) as image:
        assert image.getpixel((0, 0)) == (0, 128, 128)


@pytest.mark.parametrize("installed", [(), ("album",)])
def test_a_collection_that_nobody_reads_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...]
) -> None:
    points = [EntryPoint(name, "nowhere", sources.GROUP) for name in installed]
    monkeypatch.setattr(EntryPoint, "load", lambda self: _Album())
    monkeypatch.setattr(sources, "entry_points", lambda group: points)
    folder = _collection(tmp_path / "grid")
    (folder / "manifest.csv").write_text("file,content,style\n")
    known = ", ".join(installed) or "none"
    with pytest.raises(B4MError, match=rf"manifest.csv \(installed: {known}\); .*pip install"):
        prepare(folder, tmp_path / "data", "octopus")
