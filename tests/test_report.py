"""The report: whole, self-contained, small, and showing the numbers that were measured."""

import csv
import json
import re
import shutil
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from b4m.errors import B4MError
from b4m.evaluation.evaluate import evaluate
from b4m.evaluation.statistics import Estimate
from b4m.report import write_report
from b4m.report.chart import Axis, Mark, layout
from b4m.report.images import data_uris
from b4m.report.load import ReportData, load
from b4m.report.names import name_of
from b4m.report.page import render
from b4m.report.summary import caveats, headline
from tests.evaluation.conftest import tiny_clip  # noqa: F401
from tests.evaluation.world import METHODS, prepare, sample
from tests.pages import Page, read


def run(root: Path, evaluator: Path | str, contents: list[str], styles: list[str]) -> Path:
    """Prepare, "sample", evaluate; the folder that holds it all."""
    data = prepare(root / "data", contents, styles)
    pairs = [(content, style) for content in contents for style in styles]
    folders = [sample(root / "samples" / label, label, pairs) for label in METHODS]
    evaluate(folders, data, root / "scores", str(evaluator), "cpu", baseline="direct")
    return root


def report(root: Path, out: Path, title: str = "") -> Path:
    folders = [root / "samples" / label for label in METHODS]
    return write_report(folders, root / "scores", root / "data", out, title)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:  # noqa: F811
    return run(tmp_path_factory.mktemp("one"), tiny_clip, ["mushroom"], ["outlined"])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:  # noqa: F811
    contents, styles = ["mushroom", "house"], ["outlined", "stencil"]
    return run(tmp_path_factory.mktemp("many"), tiny_clip, contents, styles)


def test_the_page_loads_nothing_from_anywhere(one: Path, tmp_path: Path) -> None:
    file = report(one, tmp_path / "report.html")
    page = read(file)
    assert all(source.startswith("data:image/webp;base64,") for source in page.loaded)
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import", text)
    assert text.isascii()
    assert file.stat().st_size < 3_000_000


def test_every_image_and_reference_is_shown(one: Path, tmp_path: Path) -> None:
    page = read(report(one, tmp_path / "report.html"))
    # 6 rows x 3 seeds; content, 3 style images, the merged image and the truth on top
    assert len(page.images) == 18 + 6
    assert len(set(page.images)) == 18 + 5
    text = " ".join(page.text)
    for name in ("Base model", "Content adapter", "Style adapter", "Direct merge", "B4M"):
        assert name in text
    assert text.index("Base model") < text.index("Direct merge")


def test_rows_are_baselines_first_and_b4m_last(one: Path) -> None:
    folders = [one / "samples" / label for label in reversed(METHODS)]
    data = load(folders, one / "scores", one / "data")
    assert data.labels == ["base", "content only", "style only", "direct", "nplora", "b4m"]


def test_the_table_shows_the_summary(one: Path, tmp_path: Path) -> None:
    text = " ".join(read(report(one, tmp_path / "report.html")).text)
    data = load([one / "samples" / label for label in METHODS], one / "scores", one / "data")
    rows = list(csv.DictReader((one / "scores" / "summary.csv").open()))
    shown = [row for row in rows if (row["metric"], row["encoder"]) not in data.blind]
    assert len(shown) > len(rows) / 2
    for row in shown:
        places = 1 if row["metric"].startswith("psnr") else 3
        if not row["metric"].endswith("_named"):
            assert f"{float(row['mean']):.{places}f}" in text
            if row["ci_low"]:
                low, high = float(row["ci_low"]), float(row["ci_high"])
                assert f"{low:.{places}f} to {high:.{places}f}" in text


def test_provenance_and_adapters_are_on_the_page(one: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(one, root)
    metadata = {"stage": "merged", "method": "b4m", "config": {"make_lr": 0.125}}
    about = {"ada9" * 16: {"files": [metadata]}}
    (root / "samples" / "b4m" / "adapters.json").write_text(json.dumps(about))
    text = " ".join(read(report(root, tmp_path / "report.html")).text)
    provenance = json.loads((root / "scores" / "provenance.json").read_text())
    for shown in (
        provenance["encoders"][0]["weights_sha256"],
        provenance["created"],
        provenance["references"][0]["files"][0]["sha256"][:12],
        "a thing in outlined comic style",
        "config.make_lr",
        "0.125",
    ):
        assert shown in text


@pytest.mark.parametrize("entry", ["samples", "encoders", "references", "created", "statistics"])
def test_scores_of_another_version_are_one_sentence(one: Path, tmp_path: Path, entry: str) -> None:
    file = Path(shutil.copytree(one, tmp_path / "a")) / "scores/provenance.json"
    others = {n: value for n, value in json.loads(file.read_text()).items() if n != entry}
    for wrong in ({}, {entry: 7}, {entry: [{}]}):
        file.write_text(json.dumps(others | wrong))
        with pytest.raises(B4MError, match="run b4m evaluate again"):
            report(tmp_path / "a", tmp_path / "report.html")


def test_many_pairs_have_a_matrix_and_a_grid_each(many: Path, tmp_path: Path) -> None:
    page = read(report(many, tmp_path / "report.html"))
    text = " ".join(page.text)
    assert "2 contents in 2 styles" in text
    for name in ("Mushroom in outlined comic style", "House in stencil comic style"):
        assert name in text
    assert len(page.images) == 6 * 4 * 3 + 4 + 4


ATTACK = "<script>alert(1)</script> \"'><img src=x onerror=y> {{ 7 * 7 }} & more"


def test_text_of_users_is_escaped_wherever_it_comes_from(many: Path) -> None:
    """Every text of samples, scores, manifest, adapters and title is an attack."""
    folders = [many / "samples" / label for label in METHODS]
    data = load(folders, many / "scores", many / "data")
    data = replace(data, adapters={"ada9": [{"method": "b4m"}]})
    page, calm = Page(), Page()
    page.feed(render(attacked(data), ATTACK))
    calm.feed(render(data, "calm"))
    assert page.open == []
    assert all(source.startswith("data:image/webp;base64,") for source in page.loaded)
    text = " ".join(page.text)
    assert ATTACK in text
    assert text.count(ATTACK) > 50
    # Only hashes, which are set as code, are none any more.
    assert [tag for tag in page.tags if tag != "code"] == [
        tag for tag in calm.tags if tag != "code"
    ]


def attacked(data: ReportData) -> ReportData:
    """The same results with an attack at the end of every text that comes from outside."""
    pairs = {pair: tuple(f"{name}{ATTACK}" for name in pair) for pair in data.pairs}
    concepts = {
        (kind, f"{name}{ATTACK}"): replace(
            concept, name=f"{name}{ATTACK}", class_word=f"{concept.class_word}{ATTACK}"
        )
        for (kind, name), concept in data.prepared.concepts.items()
    }
    truths = {pairs[pair]: truth for pair, truth in data.prepared.ground_truths.items()}
    samples = [
        replace(
            sample,
            content=f"{sample.content}{ATTACK}",
            style=f"{sample.style}{ATTACK}",
            prompt=f"{sample.prompt}{ATTACK}",
        )
        for sample in data.samples
    ]
    table = data.scores.table
    table = table.assign(content=table["content"] + ATTACK, style=table["style"] + ATTACK)
    scores = replace(data.scores, table=table, provenance=tainted(data.scores.provenance))
    prepared = replace(data.prepared, concepts=concepts, ground_truths=truths)
    return ReportData(samples, prepared, scores, tainted(data.adapters))


def tainted(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        suffix = ATTACK if key == "style_gaps" else ""
        return {f"{name}{suffix}": tainted(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [tainted(entry, key) for entry in value]
    # These are looked up elsewhere or are hashes.
    lookups = ("label", "metric", "id", "role", "sha256", "base_hash", "adapter_hash")
    return f"{value}{ATTACK}" if isinstance(value, str) and key not in lookups else value


def test_the_contact_sheet_has_a_tile_for_every_image(one: Path, tmp_path: Path) -> None:
    assert report(one, tmp_path) == tmp_path / "report.html"
    assert report(one, tmp_path / "new" / "page").read_text().startswith("<!doctype html>")
    with Image.open(tmp_path / "new" / "contact.png") as sheet:
        rows = 2 + len(METHODS) + 1  # references, labels, ground truth
        assert sheet.height >= rows * 128
        assert sheet.width >= 3 * 128
        left_column = sheet.convert("L").crop((176, 3 * 136, 304, 3 * 136 + 128))
        assert left_column.getextrema()[0] < 200


def test_scores_of_other_samples_are_refused(one: Path, tmp_path: Path) -> None:
    stranger = sample(tmp_path / "stranger", "b4m", [("mushroom", "outlined")])
    table = stranger / "samples.csv"
    table.write_text(table.read_text().replace(",b4m,b4m,", ",other,b4m,"))
    with pytest.raises(B4MError, match="no score of 'other'"):
        write_report([stranger], one / "scores", one / "data", tmp_path / "r.html")
    with pytest.raises(B4MError, match="run b4m evaluate first"):
        write_report([stranger], tmp_path, one / "data", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_images_fit_their_budget(tmp_path: Path) -> None:
    files = []
    for number in range(6):
        files.append(tmp_path / f"{number}.png")
        Image.effect_noise((400, 300), 90).convert("RGB").save(files[-1])
    uris = data_uris(files, budget=60_000)
    assert set(uris) == set(files)
    assert sum(map(len, uris.values())) <= 60_000
    assert sum(map(len, data_uris(files, budget=10**9).values())) > 60_000


def mark(name: str, content: float, style: float) -> Mark:
    return Mark(
        name,
        "merged",
        Estimate(content, content - 0.01, content + 0.01, 5, "pairs"),
        Estimate(style, style - 0.01, style + 0.01, 5, "pairs"),
    )


def test_marks_stand_where_their_numbers_say() -> None:
    chart = layout([mark("low", 0.4, 0.5), mark("middle", 0.6, 0.55), mark("high", 0.8, 0.7)])
    x1, x2, x3 = (chart.x(one.content.mean) for one in chart.marks)
    y1, y2, y3 = (chart.y(one.style.mean) for one in chart.marks)
    assert 0 < x1 < x2 < x3 < chart.width
    assert chart.height > y1 > y2 > y3 > 0  # up is better
    assert x2 - x1 == pytest.approx(x3 - x2)
    assert (y1 - y2) * 3 == pytest.approx(y2 - y3)


def test_curves_join_equal_harmonic_means() -> None:
    chart = layout([mark("low", 0.2, 0.3), mark("high", 0.9, 0.8)])
    assert len(chart.curves) > 10
    levels = []
    for curve in chart.curves:
        values = [(back(chart.x, left), back(chart.y, top)) for left, top in curve]
        means = [2 * c * s / (c + s) for c, s in values]
        assert max(means) == pytest.approx(min(means))
        levels.append(means[0])
    assert np.diff(levels) == pytest.approx(0.05)


def back(axis: Axis, place: float) -> float:
    """The value at a place."""
    return axis.low + (place - axis.start) / (axis.end - axis.start) * (axis.high - axis.low)


SIMILARITIES = st.floats(-1, 1)


@given(st.lists(st.tuples(SIMILARITIES, SIMILARITIES), min_size=1, max_size=8))
def test_any_scores_can_be_drawn(values: list[tuple[float, float]]) -> None:
    chart = layout([mark("x", content, style) for content, style in values])
    assert len(chart.labels) == len(values)
    for one in chart.marks:
        for axis, estimate in ((chart.x, one.content), (chart.y, one.style)):
            for value in (estimate.low, estimate.mean, estimate.high):
                assert min(axis.start, axis.end) <= axis(value) <= max(axis.start, axis.end)
    assert 2 <= len(chart.x.ticks) <= 8


def test_a_row_without_an_interval_is_drawn_without_bars(one: Path) -> None:
    folders = [one / "samples" / label for label in METHODS]
    data = load(folders, one / "scores", one / "data")
    bars = render(data).count('class="bar')
    assert bars == 2 * (
        len(METHODS) + 1
    )  # the only copy of the content and the ground truth have none
    single = {key: replace(e, low=nan, high=nan) for key, e in data.scores.summary.items()}
    without = render(replace(data, scores=replace(data.scores, summary=single)))
    assert 'class="bar' not in without
    assert without.count('class="dot') == len(METHODS) + 3


def with_means(root: Path, means: dict[tuple[str, str], float]) -> ReportData:
    """The same results with other means, by label and part of the primary metric."""
    folders = [root / "samples" / label for label in METHODS]
    data = load(folders, root / "scores", root / "data")
    changed = {data.key(*key): mean for key, mean in means.items()}
    summary = {
        key: replace(estimate, mean=changed.get(key, estimate.mean))
        for key, estimate in data.scores.summary.items()
    }
    assert changed.keys() <= summary.keys()
    return replace(data, scores=replace(data.scores, summary=summary))


def test_the_ground_truth_decides_and_not_the_double_exposure(one: Path) -> None:
    means = {(label, part): 0.1 for label in METHODS for part in ("truth", "harmonic")}
    means |= {("direct", "harmonic"): 0.9, ("nplora", "truth"): 0.9}
    data = with_means(one, means)
    assert data.primary_metric == "truth"
    assert (data.best(), data.best("harmonic")) == ("nplora", "direct")
    sentences = headline(data)
    assert sentences[0].startswith("NP-LoRA comes closest to the ground truth here: 0.90 out of 1")
    assert sentences[-1].startswith("Direct merge has the higher score for content and style")
    without = replace(data, prepared=replace(data.prepared, ground_truths={}))
    assert (without.primary_metric, without.best()) == ("harmonic", "direct")
    assert "holds content and style together best" in headline(without)[0]


def test_a_row_that_merges_nothing_and_scores_best_is_named(one: Path) -> None:
    means = {(label, "truth"): 0.3 for label in METHODS}
    means |= {("copy of the style", "truth"): 0.1, ("copy of the content", "truth"): 0.0}
    means[("style only", "truth")] = 0.8
    sentences = headline(with_means(one, means))
    assert any("style adapter reaches 0.80 although it merges nothing" in s for s in sentences)
    means |= {(label, "truth"): 0.2 for label in ("base", "content only", "style only")}
    assert not any("merges nothing" in text for text in headline(with_means(one, means)))


def test_a_style_that_the_evaluator_does_not_see_is_named(many: Path) -> None:
    folders = [many / "samples" / label for label in METHODS]
    data = load(folders, many / "scores", many / "data")
    seen, blind = ({"outlined": 0.2, "stencil": gap} for gap in (0.1, -0.1))
    for gaps, named in ((seen, False), (blind, True)):
        encoders = [{**data.evaluator, "style_gaps": gaps}]
        provenance = {**data.scores.provenance, "encoders": encoders}
        changed = replace(data, scores=replace(data.scores, provenance=provenance))
        sentence_part = "does not tell these styles from the others here: stencil comic."
        assert any(sentence_part in sentence for sentence in caveats(changed)) is named
        assert f"stencil comic {gaps['stencil']:+.2f}" in " ".join(render(changed).split())


def test_a_second_encoder_has_a_table_of_its_own(
    tmp_path: Path,
    tiny_clip: Path,  # noqa: F811
) -> None:
    other = tmp_path / "other-clip"
    shutil.copytree(tiny_clip, other)
    root = run(tmp_path / "run", f"{tiny_clip},{other}", ["mushroom"], ["outlined"])
    text = " ".join(read(report(root, tmp_path / "report.html")).text)
    assert text.count("Checked by other-clip") == 1
    assert "Checked by tiny-clip" not in text
    assert text.count("PSNR, dB") == 3  # in the primary table, the glossary and the checks
    assert "clip_i_" not in text  # every metric has words, whoever measured it


@pytest.mark.parametrize(
    ("label", "name"),
    [("b4m", "B4M"), ("b4m rank 4", "B4M rank 4"), ("direct", "Direct merge"), ("mine", "Mine")],
)
def test_rows_have_names_that_people_know(label: str, name: str) -> None:
    assert name_of(label)[0] == name
