"""The scores folder: what is written is what is read, whatever things are called."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b4m.errors import B4MError
from b4m.evaluation.tables import SCORE_COLUMNS, mean_scores, read_scores, write_scores

ROWS = [
    ("direct", "fish", "007", "a fish", 0, "0.png", "clip_i_content", 0.25, "one"),
    ("direct", "NA", "007", "a fish", 0, "1.png", "clip_i_content", 0.75, "one"),
    ("b4m", "fish", "007", "a fish", 0, "0.png", "clip_i_content", 0.5, "one"),
    ("b4m", "NA", "007", "a fish", 0, "1.png", "clip_i_content", 1.0, "one"),
    ("b4m", "fish", "007", "a fish", 0, "0.png", "clip_i_content", 0.125, "two"),
]


def table(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=SCORE_COLUMNS)


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    out = write_scores(tmp_path / "scores", table(ROWS), "direct", {"seeds": [0]})
    scores = read_scores(out)
    pd.testing.assert_frame_equal(scores.table, table(ROWS), check_dtype=False)
    assert scores.provenance == {"seeds": [0]}
    assert list(scores.summary) == [
        ("direct", "clip_i_content", "one"),
        ("b4m", "clip_i_content", "one"),
        ("b4m", "clip_i_content", "two"),
    ]
    both = scores.summary["b4m", "clip_i_content", "one"]
    assert (both.mean, both.low, both.high, both.n, both.unit) == (0.75, 0.5, 1.0, 2, "pairs")
    single = scores.summary["b4m", "clip_i_content", "two"]
    assert (single.mean, single.n, single.unit, single.bounded) == (0.125, 1, "none", False)
    assert list(scores.differences) == [("b4m", "clip_i_content", "one")]
    assert scores.differences["b4m", "clip_i_content", "one"].mean == 0.25
    assert sorted(file.name for file in out.iterdir()) == [
        "differences.csv",
        "provenance.json",
        "scores.csv",
        "summary.csv",
    ]


def test_two_encoders_have_two_names_in_mean_scores(tmp_path: Path) -> None:
    out = write_scores(tmp_path, table(ROWS), "", {})
    assert mean_scores(out) == {
        "direct/one/clip_i_content": 0.5,
        "b4m/one/clip_i_content": 0.75,
        "b4m/two/clip_i_content": 0.125,
    }
    assert read_scores(out).differences == {}


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(NAMES, NAMES, NAMES)
def test_every_name_survives_the_files(
    tmp_path_factory: pytest.TempPathFactory, content: str, style: str, prompt: str
) -> None:
    row = ("b4m", content, style, f'{prompt},"\n{prompt}', 3, "a.png", "clip_t", 0.5, "one")
    out = write_scores(tmp_path_factory.mktemp("scores"), table([row]), "", {})
    assert tuple(read_scores(out).table.iloc[0]) == row


def test_a_damaged_scores_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(B4MError, match=r"scores\.csv is missing; run b4m evaluate first"):
        read_scores(tmp_path)
    out = write_scores(tmp_path / "scores", table(ROWS), "direct", {})
    lines = (out / "summary.csv").read_text().splitlines()
    for wrong, message in (
        ("method,metric\nb4m,clip_t\n", "lacks the columns encoder, mean"),
        ("", "cannot be read"),
        ("\n".join([lines[0], "b4m,clip_t,many,,,1,none,one"]), "cannot be read"),
    ):
        (out / "summary.csv").write_text(wrong)
        with pytest.raises(B4MError, match=message):
            read_scores(out)
