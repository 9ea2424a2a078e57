"""The report: whole, self-contained, small, and showing the numbers that were measured."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from b4m.errors import B4MError
from b4m.evaluate.score import evaluate
from b4m.report import write_report
from b4m.report.chart import Dot, scatter
from b4m.report.images import data_uris
from b4m.report.read import Line, name_of, read_world
from b4m.report.words import lead
from tests.evaluate.conftest import tiny_clip  # noqa: F401
from tests.evaluate.world import METHODS, prepare, sample

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags are balanced and collects what a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.images: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        values = dict(attrs)
        self.loaded += [values[name] or "" for name in ("src", "href") if name in values]
        if tag == "img":
            assert values["alt"]
            self.images.append(values["src"] or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def run(root: Path, evaluator: Path, contents: list[str], styles: list[str]) -> Path:
    """Prepare, "sample", evaluate; the folder that holds it all."""
    data = prepare(root / "data", contents, styles)
    pairs = [(content, style) for content in contents for style in styles]
    folders = [sample(root / "samples" / label, label, pairs) for label in METHODS]
    evaluate(folders, data, root / "scores", str(evaluator), "cpu")
    return root


def report(root: Path, out: Path, title: str = "") -> Path:
    folders = [root / "samples" / label for label in METHODS]
    return write_report(folders, root / "scores", root / "data", out, title)


def read(file: Path) -> Page:
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


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


def test_every_picture_and_reference_is_shown(one: Path, tmp_path: Path) -> None:
    page = read(report(one, tmp_path / "report.html"))
    # 6 rows x 3 seeds; content, 3 style pictures, the merged picture and the truth on top
    assert len(page.images) == 18 + 6
    assert len(set(page.images)) == 18 + 5
    text = " ".join(page.text)
    for name in ("Base model", "Content adapter", "Style adapter", "Direct merge", "B4M"):
        assert name in text
    assert text.index("Base model") < text.index("Direct merge")


def test_rows_are_identity_first_and_b4m_last(one: Path) -> None:
    folders = [one / "samples" / label for label in reversed(METHODS)]
    world = read_world(folders, one / "scores", one / "data")
    assert world.labels == ["base", "content only", "style only", "direct", "nplora", "b4m"]


def test_the_table_shows_the_summary(one: Path, tmp_path: Path) -> None:
    text = " ".join(read(report(one, tmp_path / "report.html")).text)
    rows = list(csv.DictReader((one / "scores" / "summary.csv").open()))
    assert rows
    for row in rows:
        places = 1 if row["metric"].startswith("psnr") else 3
        if not row["metric"].endswith("_named"):
            assert f"{float(row['mean']):.{places}f}" in text
            if row["ci_low"]:
                low, high = float(row["ci_low"]), float(row["ci_high"])
                assert f"{low:.{places}f} to {high:.{places}f}" in text


def test_provenance_and_adapters_are_on_the_page(one: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(one, root)
    about = {"ada9" * 16: {"stage": "merged", "method": "b4m", "config": {"make_lr": 0.125}}}
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


def test_many_pairs_have_a_matrix_and_a_grid_each(many: Path, tmp_path: Path) -> None:
    page = read(report(many, tmp_path / "report.html"))
    text = " ".join(page.text)
    assert "2 contents in 2 styles" in text
    for name in ("Mushroom in outlined comic style", "House in stencil comic style"):
        assert name in text
    assert len(page.images) == 6 * 4 * 3 + 4 + 4


def test_text_of_users_is_escaped(one: Path, tmp_path: Path) -> None:
    file = report(one, tmp_path / "report.html", title="<script>alert(1)</script> $body & more")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $body &amp; more" in file.read_text()
    read(file)


def test_the_contact_sheet_has_a_tile_for_every_picture(one: Path, tmp_path: Path) -> None:
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


def test_pictures_fit_their_budget(tmp_path: Path) -> None:
    files = []
    for number in range(6):
        files.append(tmp_path / f"{number}.png")
        Image.effect_noise((400, 300), 90).convert("RGB").save(files[-1])
    uris = data_uris(files, budget=60_000)
    assert set(uris) == set(files)
    assert sum(map(len, uris.values())) <= 60_000
    assert sum(map(len, data_uris(files, budget=10**9).values())) > 60_000


def test_dots_stand_where_their_numbers_say() -> None:
    def dot(name: str, content: float, style: float) -> Dot:
        return Dot(
            name,
            "merged",
            Line(content, content - 0.01, content + 0.01, 5, "pairs"),
            Line(style, style - 0.01, style + 0.01, 5, "pairs"),
        )

    svg = scatter([dot("low", 0.4, 0.5), dot("middle", 0.6, 0.55), dot("high", 0.8, 0.7)])
    found = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    (x1, y1), (x2, y2), (x3, y3) = [(float(x), float(y)) for x, y in found]
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert (y1 - y2) * 3 == pytest.approx(y2 - y3, abs=0.4)  # up is better
    assert svg.count('class="bar merged"') == 6


def test_one_dot_without_an_interval_is_drawn() -> None:
    line = Line(0.5, None, None, 1, "none")
    svg = scatter([Dot("alone <b>", "best", line, line)])
    assert "alone &lt;b&gt;" in svg
    assert 'class="bar' not in svg


def with_means(root: Path, copy: Path, means: dict[tuple[str, str], float]) -> Path:
    """The same results with other means in summary.csv."""
    shutil.copytree(root, copy)
    table = copy / "scores" / "summary.csv"
    rows = list(csv.DictReader(table.open()))
    for row in rows:
        row["mean"] = str(means.get((row["method"], row["metric"]), row["mean"]))
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return copy


def test_the_ground_truth_decides_and_not_the_double_exposure(one: Path, tmp_path: Path) -> None:
    means = {(label, f"clip_i_{part}"): 0.1 for label in METHODS for part in ("truth", "harmonic")}
    means |= {("direct", "clip_i_harmonic"): 0.9, ("nplora", "clip_i_truth"): 0.9}
    root = with_means(one, tmp_path / "truth", means)
    folders = [root / "samples" / label for label in METHODS]
    world = read_world(folders, root / "scores", root / "data")
    assert (world.deciding, world.best(), world.best("harmonic")) == ("truth", "nplora", "direct")
    said = lead(world)
    assert said[0].startswith("NP-LoRA comes closest to the ground truth here: 0.90 out of 1")
    assert said[-1].startswith("Direct merge has the higher score for content and style together")
    manifest = root / "data" / "manifest.csv"
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(line for line in lines if ",truth," not in line))
    without = read_world(folders, root / "scores", root / "data")
    assert (without.deciding, without.best()) == ("harmonic", "direct")


def test_a_row_that_merges_nothing_and_scores_best_is_told(one: Path, tmp_path: Path) -> None:
    means = {(label, "clip_i_truth"): 0.3 for label in METHODS}
    means |= {
        ("copy of the style", "clip_i_truth"): 0.1,
        ("copy of the content", "clip_i_truth"): 0,
    }
    means[("style only", "clip_i_truth")] = 0.8
    root = with_means(one, tmp_path / "idle", means)
    folders = [root / "samples" / label for label in METHODS]
    said = lead(read_world(folders, root / "scores", root / "data"))
    assert any("the style adapter reaches 0.80 although it merges nothing" in text for text in said)
    means[("style only", "clip_i_truth")] = 0.2
    means |= {(label, "clip_i_truth"): 0.2 for label in ("base", "content only")}
    root = with_means(one, tmp_path / "busy", means)
    said = lead(read_world(folders, root / "scores", root / "data"))
    assert not any("merges nothing" in text for text in said)


@pytest.mark.parametrize(
    ("label", "name"),
    [("b4m", "B4M"), ("b4m rank 4", "B4M rank 4"), ("direct", "Direct merge"), ("mine", "Mine")],
)
def test_rows_have_names_that_people_know(label: str, name: str) -> None:
    assert name_of(label)[0] == name
