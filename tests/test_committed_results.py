"""A comparison's results: the page of many pairs, files to be committed, the README's table."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file

from b4m.errors import B4MError
from b4m.evaluation.tables import COPY_OF_STYLE, GROUND_TRUTH, SCORE_COLUMNS, write_scores
from b4m.evaluation.times import Time, note_time
from b4m.plan import Comparison, plan, row_and_strength
from b4m.verbs.folder import LOCK
from b4m.verbs.report import report
from docs.contest import ROOT, current, table
from tests.evaluation.world import PROMPT, prepare, sample
from tests.pages import read

COMPARISON = Comparison(
    ("mushroom", "house", "fish"),
    ("flat", "outlined", "stencil"),
    ("b4m", "nplora"),
    strengths=(-0.4, 0.4),
)
SEEDS = (0, 1)
# content, style of each row; a strength moves one up and the other down
ROWS = {
    "base": (0.3, 0.3),
    "content only": (0.8, 0.3),
    "style only": (0.3, 0.7),
    "direct": (0.6, 0.5),
    "nplora": (0.62, 0.5),
    "b4m": (0.75, 0.65),
    COPY_OF_STYLE: (0.3, 0.85),
    GROUND_TRUTH: (0.9, 0.8),
}


def scores() -> pd.DataFrame:
    """Scores with noise that all rows of a pair and seed share, as the same noise would make it."""
    rng = np.random.default_rng(0)
    noise = {(*pair, seed): rng.normal(0, 0.03, 2) for pair in COMPARISON.pairs for seed in SEEDS}
    labels = [*dict.fromkeys(job.label for job in plan(COMPARISON).samples)]
    lines = []
    for label in (*labels, COPY_OF_STYLE, GROUND_TRUTH):
        row, strength = row_and_strength(label)
        for (*pair, seed), (first, second) in noise.items():
            content = ROWS[row][0] - 0.3 * strength + first
            style = ROWS[row][1] + 0.3 * strength + second
            values = {
                "clip_i_content": content,
                "clip_i_style": style,
                "clip_i_harmonic": 2 * content * style / (content + style),
                "clip_i_truth": (content + style) / 2 if row != GROUND_TRUTH else 1.0,
                "content_named": float(content > 0.55),
                "style_named": float(style > 0.55),
            }
            known = (label, *pair, PROMPT, seed, "images/000.png")
            lines += [(*known, metric, value, "tiny") for metric, value in values.items()]
    return pd.DataFrame(lines, columns=SCORE_COLUMNS)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that was carried out, with scores that are made up."""
    home = tmp_path_factory.mktemp("compared")
    spec = {"comparison": asdict(COMPARISON), "seeds": SEEDS, "style_images": 3}
    (home / LOCK).write_text(json.dumps(spec))
    prepare(home / "data", COMPARISON.contents, COMPARISON.styles)
    jobs = plan(COMPARISON)
    for job in jobs.samples:
        sample(home / "samples" / job.key, job.label, [(job.content, job.style)], SEEDS)
        note_time(home, Time(job.key, "images", job.label, 1.5))
    for trained in jobs.trainings:
        note_time(home, Time(trained.key, "training", trained.training, 40.0))
    for merged in jobs.merges:
        note_time(home, Time(merged.key, "merge", merged.method, 20.0))
    encoder = {
        "id": "tiny",
        "metric": "clip_i",
        "weights_sha256": "0" * 64,
        "preprocessing": "none",
        "style_gaps": {style: 0.2 for style in COMPARISON.styles},
    }
    about = {
        "created": "2026-11-25T00:00:00+00:00",
        "b4m_version": "0",
        "git_commit": "c0ffee",
        "data_md5": "",
        "encoders": [encoder],
        "references": [],
        "prompts_for_clip_t": [],
        "seeds": list(SEEDS),
        "samples": [],
        "statistics": {"unit": "pairs"},
    }
    write_scores(home / "scores", scores(), "direct", about)
    (home / "adapters").mkdir()
    for merged in jobs.merges:
        tensors = {"up": np.zeros((4, 2), np.float32), "down": np.zeros((2, 3), np.float32)}
        save_file(tensors, home / "adapters" / f"{merged.key}.safetensors")
    return home


@pytest.fixture(scope="module")
def results(compared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "results" / "2026-11-25"
    monkey = pytest.MonkeyPatch()
    monkey.setenv("B4M_TRACKING", "off")
    report([compared], results=out)
    monkey.undo()
    return out


def record(results: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((results / "run.json").read_text())
    return loaded


def test_the_page_of_many_pairs_shows_every_method_whole_and_stays_small(
    compared: Path, results: Path
) -> None:
    file = compared / "report.html"
    page = read(file)
    text = " ".join(" ".join(page.text).split())
    for words in (
        "How much of the plane is reached, named right by tiny",
        "B4M beats the direct merge",
        "What a pair costs",
        "B4M at its best and at its worst",
        "the ground truth is highest",
    ):
        assert words in text
    rows = 6 + 1  # sampled rows and the ground truth
    shown = [image for image in page.images if image.startswith("data:")]
    assert len(shown) >= rows * len(COMPARISON.pairs)
    assert file.stat().st_size < 6_000_000


def test_claims_are_decided_by_paired_differences_of_hypervolumes(results: Path) -> None:
    (likeness,) = [one for one in record(results)["frontiers"] if one["axes"] == "likeness by tiny"]
    answers = {one["claim"]: one["answer"] for one in likeness["verdicts"]}
    assert answers["B4M beats the direct merge"] == "yes"
    assert "B4M beats joint training" not in answers  # it was not among the rows
    ranked = [one["row"] for one in likeness["rows"]]
    assert ranked.index(GROUND_TRUTH) < ranked.index("b4m") < ranked.index("direct")
    b4m = next(one for one in likeness["rows"] if one["row"] == "b4m")
    assert [strength for strength, *_ in b4m["points"]] == [-0.4, 0.0, 0.4]
    assert all(check["holds"] for check in record(results)["checks"])


def test_results_are_a_row_for_each_pair_and_a_line_of_images_for_each_pair(results: Path) -> None:
    with (results / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    own = [row for row in rows if row["method"] == "b4m style+0.4"]
    assert {(row["content"], row["style"]) for row in own} == set(COMPARISON.pairs)
    means = scores().query("method == 'b4m' and metric == 'clip_i_truth'").groupby("content")
    mean = np.mean([float(r["clip_i_truth:tiny"]) for r in rows if r["method"] == "b4m"])
    assert mean == pytest.approx(means["value"].mean().mean(), abs=1e-3)
    sheets = {file.name for file in results.glob("*.webp")}
    assert sheets == {"sheet-baselines.webp", "sheet-learned.webp", "sheet-training-free.webp"}
    with Image.open(results / "sheet-learned.webp") as sheet:
        assert sheet.height > 64 * len(COMPARISON.pairs)
    assert sum(file.stat().st_size for file in results.iterdir()) < 1_000_000


def test_costs_of_a_pair_count_both_trainings_and_the_numbers_of_its_file(results: Path) -> None:
    assert record(results)["costs"]["b4m"] == [80.0, 20.0, 1.5, 14]


def test_the_tables_say_what_run_json_says(results: Path) -> None:
    text = (results / "table.md").read_text()
    b4m = record(results)["rows"]["b4m"]["clip_i_truth"]
    assert f"{b4m[0]:.2f} ({b4m[1]:.2f} to {b4m[2]:.2f})" in text
    assert "| B4M beats the direct merge |" in text
    assert all(line in text for line in table(results).splitlines() if line.startswith("| b4m"))


def test_results_of_loose_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(B4MError, match="is no folder of b4m compare"):
        report([tmp_path], results=tmp_path / "results")
    with pytest.raises(B4MError, match="give the folder of b4m compare"):
        report(["a"], "scores", "data", tmp_path / "page.html", results=tmp_path / "results")


def test_the_readme_shows_the_newest_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == current(readme, ROOT / "docs" / "results")


def test_newer_results_change_the_readme_between_its_marks_alone(results: Path) -> None:
    readme = "before\n<!-- contest -->\nold\n<!-- /contest -->\nafter\n"
    new = current(readme, results.parent)
    assert new.startswith("before\n<!-- contest -->\n")
    assert new.endswith("<!-- /contest -->\nafter\n")
    assert table(results) in new
    assert "old" not in new
    assert current(new, results.parent) == new
