"""Prepared folders: who gets which role, and what bad input says."""

from pathlib import Path

import pytest
from PIL import Image

from b4m.data.manifest import ManifestRow, partner_rows, read_manifest, training_rows
from b4m.data.prepare import prepare
from b4m.errors import B4MError
from tests.data.worlds import write_grid, write_user_folder


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
    assert content.caption == "a snq object in bold flat style", "the known look is named"
    style = training_rows(read_manifest(out), "style", "ink")
    assert len(style) == 4
    assert all("in w@z style" in row.caption for row in style)
    references = rows_of(out, "style", "reference")
    assert len(references) == 5
    shown = {row.caption for row in style + references}
    assert len(shown) == 9, "a picture is either trained on or compared with"
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


def test_every_row_states_licence_and_source(grid: Path, tmp_path: Path) -> None:
    own = prepare(write_user_folder(tmp_path / "own"), tmp_path / "a")
    for folder in (own, prepare(grid, tmp_path / "b", "thing-00", "ink")):
        assert all(row.licence == "CC0-1.0" and row.source for row in read_manifest(folder))


def test_user_folder_gets_captions_from_its_names(tmp_path: Path) -> None:
    own = write_user_folder(tmp_path / "own")
    (own / "content/teapot").rename(own / "content/tea_pot")
    out = prepare(own, tmp_path / "data", "tea_pot", "stripes")
    assert rows_of(out, "content", "train")[0].caption == "a snq tea pot"
    assert "a ball in w@z style" in {row.caption for row in rows_of(out, "style", "train")}
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


def test_a_failed_preparation_keeps_the_earlier_folder(tmp_path: Path) -> None:
    own = write_user_folder(tmp_path / "own")
    out = prepare(own, tmp_path / "data", "teapot", "stripes")
    before = (out / "manifest.csv").read_bytes()
    break_png(own)
    with pytest.raises(B4MError, match="damaged"):
        prepare(own, out, "teapot", "stripes")
    assert (out / "manifest.csv").read_bytes() == before


def test_a_folder_with_other_things_is_not_overwritten(grid: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("words")
    with pytest.raises(B4MError, match="no prepared folder"):
        prepare(grid, tmp_path / "thesis", "thing-00", "ink")
    assert (tmp_path / "thesis/chapter.txt").read_text() == "words"


def test_source_without_pictures_or_missing_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    with pytest.raises(B4MError, match="neither content/<name>/ nor style/<name>/"):
        prepare(tmp_path / "own", tmp_path / "data")
    with pytest.raises(B4MError, match="does not exist"):
        prepare(tmp_path / "nowhere", tmp_path / "data")


def test_prepared_pictures_equal_their_sources(grid: Path, tmp_path: Path) -> None:
    out = prepare(grid, tmp_path / "data", "thing-00", "ink")
    (row,) = rows_of(out, "content", "train")
    with (
        Image.open(out / row.file) as ours,
        Image.open(grid / "fluent-flat/thing-00.png") as theirs,
    ):
        assert ours.convert("RGB").tobytes() == theirs.convert("RGB").tobytes()
