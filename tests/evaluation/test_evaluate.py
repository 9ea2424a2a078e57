"""`evaluate` against an independent computation, and the rows that it must always give."""

import csv
import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from kfp import dsl
from PIL import Image

from b4m import verbs
from b4m.errors import B4MError
from b4m.evaluation.encoders import ClipEncoder
from b4m.evaluation.evaluate import evaluate
from b4m.evaluation.tables import COPY_OF_CONTENT, COPY_OF_STYLE, GROUND_TRUTH, SCORE_COLUMNS
from b4m.tracking import NullTracker
from components import evaluate as component
from tests.evaluation.world import OTHER_PROMPT, PROMPT, prepare, sample

LABELS = ("base", "direct", "b4m")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """Two contents in two styles, three labels, two prompts, two seeds."""
    root = tmp_path_factory.mktemp("score")
    contents, styles = ("fish", "house"), ("outlined", "stencil")
    data = prepare(root / "data", contents, styles)
    pairs = [(content, style) for content in contents for style in styles]
    folders = [
        sample(root / label, label, pairs, seeds=(0, 7), prompts=(PROMPT, OTHER_PROMPT))
        for label in LABELS
    ]
    return evaluate(folders, data, root / "scores", str(tiny_clip), "cpu", baseline="direct")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_image_has_every_score(scored: Path) -> None:
    rows = table(scored / "scores.csv")
    assert list(rows[0]) == SCORE_COLUMNS
    sampled = [row for row in rows if row["method"] in LABELS]
    metrics = {
        "clip_i_content",
        "clip_i_style",
        "clip_i_harmonic",
        "clip_t",
        "clip_i_truth",
        "clip_i_style_csls",
        "clip_i_nearest_training",
        "clip_i_diversity",
        "content_named",
        "style_named",
        "psnr_truth",
    }
    assert {row["metric"] for row in rows} == metrics
    assert len(sampled) == len(metrics) * len(LABELS) * 4 * 2 * 2
    assert {row["encoder"] for row in rows} == {"tiny-clip", "pixels"}
    assert {row["seed"] for row in sampled} == {"0", "7"}


def test_scores_are_those_of_a_plain_loop(scored: Path, tiny_clip: Path) -> None:
    import open_clip
    import torch
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")
    model.eval()

    @torch.no_grad()
    def look(path: Path) -> torch.Tensor:
        return model.encode_image(transform(Image.open(path))[None], normalize=True)[0]

    root = scored.parent
    references = {
        (row["kind"], row["concept"]): root / "data" / row["file"]
        for row in table(root / "data" / "manifest.csv")
        if row["role"] == "reference"
    }
    both = [
        row
        for row in table(root / "data" / "manifest.csv")
        if row["role"] == "reference" and row["kind"] != "truth"
    ]
    rows = [row for row in table(scored / "scores.csv") if row["method"] == "direct"]
    for row in rows[:: len(rows) // 25]:
        image = look(root / "direct" / row["file"])
        name = {"clip_i_content": row["content"], "clip_i_style": row["style"]}.get(row["metric"])
        if name:
            files = [root / "data" / other["file"] for other in both if other["concept"] == name]
            expected = sum(float(image @ look(file)) for file in files) / len(files)
        elif row["metric"] == "clip_t":
            words = "two of" if row["prompt"] == OTHER_PROMPT else ""
            text = f"{words} a thing in {row['style']} comic style".strip()
            with torch.no_grad():
                expected = float(image @ model.encode_text(tokenizer([text]), normalize=True)[0])
        elif row["metric"] == "clip_i_truth":
            expected = float(image @ look(references["truth", f"{row['content']}+{row['style']}"]))
        else:
            continue
        assert float(row["value"]) == pytest.approx(expected, abs=2e-5), row


def test_copies_of_the_references_stand_beside_the_methods(scored: Path) -> None:
    rows = [
        row
        for row in table(scored / "scores.csv")
        if row["method"] == COPY_OF_STYLE and row["metric"] == "clip_i_style"
    ]
    assert len(rows) == 3 * 4 * 2  # training images, pairs, prompts
    names = {row["method"] for row in table(scored / "summary.csv")}
    assert names == {*LABELS, COPY_OF_CONTENT, COPY_OF_STYLE, GROUND_TRUTH}


def test_a_copy_of_a_training_image_is_seen_as_a_copy(scored: Path) -> None:
    nearest = [row for row in table(scored / "scores.csv") if "nearest_training" in row["metric"]]
    copies = [float(r["value"]) for r in nearest if r["method"] in (COPY_OF_CONTENT, COPY_OF_STYLE)]
    assert copies == pytest.approx([1.0] * len(copies))
    assert all(float(row["value"]) < 1.0 for row in nearest if row["method"] in LABELS)


def test_the_gap_of_every_style_is_that_of_its_references(scored: Path, tiny_clip: Path) -> None:
    gaps = json.loads((scored / "provenance.json").read_text())["encoders"][0]["style_gaps"]
    assert list(gaps) == ["outlined", "stencil"]
    encoder = ClipEncoder(str(tiny_clip))
    (a, b), (c, d) = (
        encoder.encode_images([Image.open(file) for file in sorted(files)])
        for files in (
            (scored.parent / "data").glob(f"style-{style}-reference-*.png") for style in gaps
        )
    )
    across = np.mean([x @ y for x in (a, b) for y in (c, d)])
    assert list(gaps.values()) == pytest.approx([a @ b - across, c @ d - across], abs=1e-5)


def test_the_summary_is_over_pairs(scored: Path) -> None:
    rows = table(scored / "scores.csv")
    for line in table(scored / "summary.csv"):
        own = [r for r in rows if (r["method"], r["metric"]) == (line["method"], line["metric"])]
        pairs = {(r["content"], r["style"]) for r in own}
        means = [
            np.mean([float(r["value"]) for r in own if (r["content"], r["style"]) == pair])
            for pair in pairs
        ]
        assert float(line["mean"]) == pytest.approx(np.mean(means), abs=2e-6)
        assert (line["n"], line["unit"]) == ("4", "pairs")
        assert float(line["ci_low"]) <= float(line["mean"]) <= float(line["ci_high"])


def test_differences_are_against_the_direct_merge(scored: Path) -> None:
    summary = {(r["method"], r["metric"]): float(r["mean"]) for r in table(scored / "summary.csv")}
    lines = table(scored / "differences.csv")
    assert {line["method"] for line in lines} == {"base", "b4m"}
    for line in lines:
        assert line["baseline"] == "direct"
        expected = summary[line["method"], line["metric"]] - summary["direct", line["metric"]]
        assert float(line["mean"]) == pytest.approx(expected, abs=5e-6)


def test_the_right_drawing_beats_the_blurred_one_in_pixels(scored: Path) -> None:
    means = {
        row["method"]: float(row["mean"])
        for row in table(scored / "summary.csv")
        if row["metric"] == "psnr_truth"
    }
    assert means["b4m"] > means["direct"] > means["base"]


def test_provenance_says_how_to_repeat_the_numbers(scored: Path, tiny_clip: Path) -> None:
    provenance = json.loads((scored / "provenance.json").read_text())
    weights = hashlib.sha256((tiny_clip / "open_clip_model.safetensors").read_bytes()).hexdigest()
    assert provenance["encoders"][0]["weights_sha256"] == weights
    assert {entry["role"] for entry in provenance["references"]} == {"reference"}
    assert all(len(file["sha256"]) == 64 for r in provenance["references"] for file in r["files"])
    plain = {(e["style"], e["prompt"]): e["plain"] for e in provenance["prompts_for_clip_t"]}
    assert plain["stencil", PROMPT] == "a thing in stencil comic style"
    assert provenance["seeds"] == [0, 7]
    assert {run["label"] for run in provenance["samples"]} == set(LABELS)
    assert "/" not in "".join(e["id"] for e in provenance["encoders"])


def test_each_image_is_encoded_once(
    tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare(tmp_path / "data", ["fish"], ["outlined"])
    folders = [sample(tmp_path / label, label, [("fish", "outlined")]) for label in LABELS]
    counted: list[int] = []
    original = ClipEncoder.encode_images

    def counting(self: ClipEncoder, images: list) -> np.ndarray:
        counted.append(len(images))
        return original(self, images)

    monkeypatch.setattr(ClipEncoder, "encode_images", counting)
    evaluate(folders, data, tmp_path / "scores", str(tiny_clip), "cpu")
    # 3 labels x 3 seeds, 2 + 2 references, 1 + 3 training images, 1 truth
    assert sum(counted) == 9 + 4 + 4 + 1
    units = {row["unit"] for row in table(tmp_path / "scores" / "summary.csv")}
    assert "images" in units
    assert "pairs" not in units


def test_an_evaluators_own_names_are_the_choices(tmp_path: Path, tiny_clip: Path) -> None:
    evaluator = tmp_path / "taught-clip"
    evaluator.mkdir()
    for file in tiny_clip.iterdir():
        (evaluator / file.name).symlink_to(file)
    others = {name: name for name in ("owl", "fox", "cat", "castle", "rocket")}
    names = {
        "content": {"template": "a {}", "words": {"fish": "big fish", **others}},
        "style": {"template": "in {} style", "words": {"outlined": "outlined comic"}},
    }
    (evaluator / "names.json").write_text(json.dumps(names))
    data = prepare(tmp_path / "data", ["fish"], ["outlined"])
    folder = sample(tmp_path / "b4m", "b4m", [("fish", "outlined")])
    out = evaluate([folder], data, tmp_path / "scores", str(evaluator), "cpu")
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["prompts_for_clip_t"][0]["plain"] == "a big fish in outlined comic style"
    metrics = {row["metric"] for row in table(out / "scores.csv")}
    assert {"content_named", "content_named_top5"} <= metrics
    assert "style_named" not in metrics  # one name is no choice


@pytest.fixture
def two_clips(tmp_path: Path, tiny_clip: Path) -> str:
    """Two evaluators that measure the same metrics."""
    other = tmp_path / "other-clip"
    shutil.copytree(tiny_clip, other)
    return f"{tiny_clip},{other}"


@pytest.fixture
def one_pair(tmp_path: Path) -> tuple[Path, Path]:
    """A prepared folder and samples of one method."""
    data = prepare(tmp_path / "data", ["fish"], ["outlined"])
    return data, sample(tmp_path / "b4m", "b4m", [("fish", "outlined")])


def test_the_tracker_gets_a_name_for_every_encoder(
    tmp_path: Path,
    one_pair: tuple[Path, Path],
    two_clips: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded: list[tuple[str, float]] = []

    class Recorder(NullTracker):
        def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
            recorded.extend(values.items())

    def open_recorder(*args: object, **kwargs: object) -> nullcontext[NullTracker]:
        return nullcontext(Recorder())

    monkeypatch.setattr("b4m.tracking.open_tracker", open_recorder)
    out = verbs.evaluate([one_pair[1]], one_pair[0], tmp_path / "scores", two_clips)
    assert len(dict(recorded)) == len(recorded) == len(table(out / "summary.csv"))
    for encoder in ("tiny-clip", "other-clip"):
        assert f"eval/b4m/{encoder}/clip_i_content" in dict(recorded)


def test_the_dashboard_gets_a_name_for_every_encoder(
    tmp_path: Path,
    one_pair: tuple[Path, Path],
    two_clips: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("B4M_TRACKING", "off")
    data = dsl.Dataset(uri=str(one_pair[0]))
    (tmp_path / "shard").mkdir()
    one_pair[1].rename(tmp_path / "shard" / "b4m")
    merged, scores = dsl.Dataset(uri=str(tmp_path / "shard")), dsl.Dataset(uri=f"{tmp_path}/scores")
    metrics = dsl.Metrics()
    component.evaluate.python_func(two_clips, data, [], [merged], [], scores, metrics)
    assert len(metrics.metadata) == len(table(tmp_path / "scores" / "summary.csv"))
    for encoder in ("tiny-clip", "other-clip"):
        assert f"b4m/{encoder}/clip_i_content" in metrics.metadata


def test_two_evaluators_of_one_name_are_refused(
    tmp_path: Path, one_pair: tuple[Path, Path], tiny_clip: Path
) -> None:
    twin = tmp_path / "elsewhere" / "tiny-clip"
    shutil.copytree(tiny_clip, twin)
    with pytest.raises(B4MError, match="two evaluators are called 'tiny-clip'"):
        evaluate([one_pair[1]], one_pair[0], tmp_path / "scores", f"{tiny_clip},{twin}", "cpu")


def test_nothing_is_written_when_an_image_is_damaged(tmp_path: Path, tiny_clip: Path) -> None:
    data = prepare(tmp_path / "data", ["fish"], ["outlined"])
    folder = sample(tmp_path / "b4m", "b4m", [("fish", "outlined")])
    image = folder / "images" / "001.png"
    image.write_bytes(image.read_bytes()[:500])
    with pytest.raises(B4MError, match=r"001\.png"):
        evaluate([folder], data, tmp_path / "scores", str(tiny_clip), "cpu")
    assert not (tmp_path / "scores").exists()
