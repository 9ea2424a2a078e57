"""The manifest is read strictly and written back as it was."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from b4m.data.manifest import ManifestRow, data_hash, read_manifest, training_rows, write_manifest
from b4m.errors import B4MError

ROW = ManifestRow(
    file="a.png",
    kind="content",
    concept="teapot",
    caption="a snq teapot, on a table",
    trigger="snq",
    class_word="teapot",
    role="train",
    licence="CC0-1.0",
    source="drawn, by hand",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return tmp_path


def test_written_rows_are_read_back(folder: Path) -> None:
    rows = [ROW, replace(ROW, role="reference", alignment="", source='says "free"')]
    write_manifest(folder, rows)
    assert read_manifest(folder) == rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "object"}, "line 2: kind 'object' is none of content, style, truth"),
        ({"role": "test"}, "line 2: role 'test' is none of train, reference, partner"),
        ({"file": "b.png"}, "line 2: the picture 'b.png' is not in the folder"),
        ({"file": "../a.png"}, "line 2: the picture '../a.png' is not in the folder"),
        ({"caption": "a teapot"}, r"line 2 \(a.png\): the caption 'a teapot' lacks .* 'snq'"),
        ({"concept": ""}, "line 2: concept: the name .* is empty"),
    ],
)
def test_a_bad_line_is_named(folder: Path, change: dict[str, str], message: str) -> None:
    write_manifest(folder, [replace(ROW, **change)])
    with pytest.raises(B4MError, match=message):
        read_manifest(folder)


def test_missing_and_empty_manifests_are_errors(folder: Path) -> None:
    with pytest.raises(B4MError, match="has no manifest.csv"):
        read_manifest(folder)
    write_manifest(folder, [])
    with pytest.raises(B4MError, match="lists no picture"):
        read_manifest(folder)
    (folder / "manifest.csv").write_text("file,kind\na.png,content\n")
    with pytest.raises(B4MError, match="lacks the columns concept, caption"):
        read_manifest(folder)


def test_a_missing_concept_is_answered_with_those_there(folder: Path) -> None:
    with pytest.raises(B4MError, match="no content 'cup' to train on; it has: teapot"):
        training_rows([ROW], "content", "cup")


def test_data_hash_changes_with_pixels_and_captions(folder: Path) -> None:
    before = data_hash(folder, [ROW])
    assert data_hash(folder, [replace(ROW, caption="a snq pot")]) != before
    Image.new("RGB", (4, 4), "white").save(folder / "a.png")
    assert data_hash(folder, [ROW]) != before
