"""EmojiGrid as a source of prepared folders: who gets which role."""

from pathlib import Path

import pytest
from PIL import Image

from b4m.data.manifest import ManifestRow, partner_rows, read_manifest, training_rows
from b4m.data.prepare import prepare
from b4m.errors import B4MError
from b4m_mini import emojigrid
from tests.data.worlds import write_grid


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(tmp_path_factory.mktemp("grid"))


def rows_of(folder: Path, kind: str, role: str) -> list[ManifestRow]:
    return [row for row in read_manifest(folder) if (row.kind, row.role) == (kind, role)]


def test_grid_trains_content_on_one_drawing_and_style_on_known_contents(
    grid: Path, tmp_path: Path
) -> None:
    out = prepare(grid, tmp_path / "data", "thing-00", "ink", style_images=4)
    (content,) = training_rows(read_manifest(out), "content", "thing-00")
    assert content.caption == "a snq object in bold flat style", "the known style is named"
    style = training_rows(read_manifest(out), "style", "ink")
    assert len(style) == 4
    assert all("in w@z style" in row.caption for row in style)
    references = rows_of(out, "style", "reference")
    assert len(references) == 5
    shown = {row.caption for row in style + references}
    assert len(shown) == 9, "an image is either trained on or compared with"
    assert not shown & {"a thing 0 in w@z style", "a thing 1 in w@z style"}, "held-out contents"


def test_partners_are_of_the_other_kind_and_of_other_concepts(grid: Path, tmp_path: Path) -> None:
    rows = read_manifest(prepare(grid, tmp_path / "data", "thing-00", "ink"))
    of_content, of_style = partner_rows(rows, "content"), partner_rows(rows, "style")
    assert {row.kind for row in of_content} == {"style"}
    assert {row.concept for row in of_content} == {"noto", "twemoji"}
    assert all("w@z" in row.caption for row in of_content)
    assert {row.kind for row in of_style} == {"content"}
    assert len({row.concept for row in of_style}) == 3
    assert "thing-00" not in {row.concept for row in of_style}


@pytest.mark.parametrize(("style", "alignment"), [("fluent-contrast", "exact"), ("ink", "meaning")])
def test_ground_truth_is_exact_within_the_family_of_the_drawing(
    grid: Path, tmp_path: Path, style: str, alignment: str
) -> None:
    out = prepare(grid, tmp_path / "data", "thing-01", style)
    (truth,) = rows_of(out, "truth", "reference")
    assert (truth.concept, truth.alignment) == (f"thing-01+{style}", alignment)
    assert truth.caption == "a snq object in w@z style"


def test_choices_follow_the_seed_alone(grid: Path, tmp_path: Path) -> None:
    chosen = [
        [
            (row.caption, row.role)
            for row in read_manifest(
                prepare(grid, tmp_path / str(index), "thing-00", "ink", seed=seed)
            )
        ]
        for index, seed in enumerate((0, 0, 1))
    ]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


def test_several_concepts_share_one_folder(grid: Path, tmp_path: Path) -> None:
    out = prepare(grid, tmp_path / "data", "thing-00,thing-01", "ink, fluent-contrast")
    truths = {row.concept for row in rows_of(out, "truth", "reference")}
    assert truths == {
        f"{content}+{style}"
        for content in ("thing-00", "thing-01")
        for style in ("ink", "fluent-contrast")
    }


@pytest.mark.parametrize(
    ("content", "style", "message"),
    [
        ("unicorn", "ink", "no content 'unicorn'; it has: thing-00"),
        ("thing-00", "oil", "no style 'oil'; it has: fluent-contrast"),
        ("", "", "name a content, a style or both"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(
    grid: Path, tmp_path: Path, content: str, style: str, message: str
) -> None:
    with pytest.raises(B4MError, match=message):
        prepare(grid, tmp_path / "data", content, style)


def test_prepared_images_equal_the_drawings(grid: Path, tmp_path: Path) -> None:
    out = prepare(grid, tmp_path / "data", "thing-00", "ink")
    (row,) = rows_of(out, "content", "train")
    with (
        Image.open(out / row.file) as ours,
        Image.open(grid / "fluent-flat/thing-00.png") as theirs,
    ):
        assert ours.convert("RGB").tobytes() == theirs.convert("RGB").tobytes()


def test_every_row_states_licence_and_source(grid: Path, tmp_path: Path) -> None:
    rows = read_manifest(prepare(grid, tmp_path / "data", "thing-00", "ink"))
    assert all(row.licence == "CC0-1.0" and row.source for row in rows)


def test_contents_may_be_drawn_in_another_style(grid: Path, tmp_path: Path) -> None:
    out = prepare(grid, tmp_path / "data", "thing-00", content_style="noto")
    (row,) = training_rows(read_manifest(out), "content", "thing-00")
    assert row.caption == "a snq object in soft shaded style"
    with pytest.raises(B4MError, match="no style of the content thing-00 'oil'; it has: fluent"):
        prepare(grid, tmp_path / "data", "thing-00", content_style="oil")


def test_a_grid_without_its_images_says_what_brings_them(grid: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_bytes((grid / "manifest.csv").read_bytes())
    assert emojigrid.reads(tmp_path)
    with pytest.raises(B4MError, match="holds none of the images .* `dvc pull`"):
        prepare(tmp_path, tmp_path / "data", "thing-00", "ink")
