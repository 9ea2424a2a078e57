"""`b4m compare`: every pair and method once, resumed where it stopped, a folder for each."""

import csv
import re
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from b4m import verbs
from b4m.errors import B4MError
from b4m.plan import Comparison, plan
from b4m.presets import PRESETS, preset
from b4m.settings import parse_pairs
from b4m.verbs.compare import job_settings
from tests.data.worlds import write_user_folder

FAST = ["steps=2", "rank=4", "batch_size=1", "accumulation=1"]


@pytest.fixture(scope="module")
def asked(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One content in two styles, two methods, one seed."""
    source = write_user_folder(tmp_path_factory.mktemp("own"))
    return {
        "source": source,
        "out": tmp_path_factory.mktemp("compare") / "out",
        "content": ["teapot"],
        "style": ["stripes", "dots"],
        "method": ["direct", "klora"],
        "seed": [3],
        "base": str(tiny_base),
        "evaluator": "efficientnet-lite0",
        "train_with": FAST,
        "sample_with": ["steps=2", "guidance=1"],
        "strength": [0.4],
    }


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("B4M_WORK", str(tmp_path_factory.mktemp("work")))
    monkeypatch.setenv("B4M_TRACKING", "off")


def test_every_pair_has_every_row_and_nothing_is_made_twice(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = verbs.compare(**asked)
    out = asked["out"]
    assert page == out / "report.html"
    with (out / "scores" / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {(row["method"], row["content"], row["style"]) for row in rows}
    for label in ("base", "content only", "style only", "direct", "klora", "klora style+0.4"):
        assert {(label, "teapot", "stripes"), (label, "teapot", "dots")} <= found

    # as if it had been killed while the last pictures were drawn
    last = out / "samples" / "klora-style+0.4-teapot+dots"
    before = (last / "images" / "000-s3.png").read_bytes()
    shutil.rmtree(last)
    shutil.rmtree(out / "scores")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    module = import_module("b4m.verbs.compare")  # the package's attribute is the verb itself
    monkeypatch.setattr(module, "train", never)
    monkeypatch.setattr(module, "merge", never)
    verbs.compare(**asked)
    assert (last / "images" / "000-s3.png").read_bytes() == before


def test_the_direct_merge_at_a_strength_is_the_direct_merge_with_those_weights(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    if not asked["out"].exists():
        verbs.compare(**asked)
    adapters = asked["out"] / "adapters"
    keys = ("content-teapot-lora", "style-dots-lora", "merged-teapot+dots-direct")
    content, style, direct = (adapters / f"{key}.safetensors" for key in keys)
    both, weights = [content, style], {"weights": (0.6, 1.4)}
    merged = verbs.merge(both, tmp_path / "merged.safetensors", settings=weights)

    def drawn(name: str, *files: Path, weights: Sequence[float] = ()) -> np.ndarray:
        # two steps teach little
        settings = {"steps": "2", "guidance": "1", "scale": "100", "weights": weights}
        data, base = asked["out"] / "data", asked["base"]
        folder = verbs.sample(
            tmp_path / name, files, data, base=base, settings=settings, style="dots"
        )
        return np.asarray(Image.open(folder / "images/000-s0.png"), np.int16)

    expected = drawn("expected", merged)
    leaning = drawn("leaning", direct, style, content, weights=(1.0, 0.4, -0.4))
    apart = np.abs(drawn("plain", direct) - expected).mean()
    assert apart > 0.3
    assert np.abs(leaning - expected).mean() < 0.1 * apart  # the sum is made in another order


def test_a_dry_run_says_what_there_is_to_do_and_writes_nothing(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs.compare(**{**asked, "out": tmp_path / "out", "dry_run": True})
    printed = capsys.readouterr().out
    assert re.search(r"trainings lora +3 +0 ", printed)
    assert re.search(r"merges direct +2 +0 ", printed)
    assert "14 images" in printed
    assert not (tmp_path / "out").exists()


def test_contest_and_tuning_share_no_content_and_no_style() -> None:
    contest, tuning = preset("contest"), preset("tuning")
    assert not {*contest.contents} & {*tuning.contents}
    assert not {*contest.styles} & {*tuning.styles}
    assert len(contest.contents) * len(contest.styles) >= 24
    for known in PRESETS.values():
        jobs = plan(Comparison(known.contents, known.styles, known.methods))
        job_settings(jobs, *map(parse_pairs, (known.train, known.merge, known.sample)))


def test_a_folder_holds_one_comparison(asked: dict[str, Any]) -> None:
    if not asked["out"].exists():
        verbs.compare(**asked)
    with pytest.raises(B4MError, match="holds another comparison"):
        verbs.compare(**{**asked, "seed": [4]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": ["magic"]}, "unknown method 'magic'"),
        ({"style": []}, "no styles were given"),
        ({"pairing": "matching"}, "1 contents do not match 2 styles"),
        ({"pairing": "some"}, "unknown pairing 'some'"),
        ({"preset": "cup"}, "unknown preset 'cup'; known: contest, tuning, ablations"),
        ({"source": ""}, "there are no images to compare with"),
        ({"method": ["svd:rnak=3"]}, "svd has no setting 'rnak'; the nearest is rank"),
        ({"strength": [2.0]}, "strength 2.0 must be between -1 and 1"),
        ({"train_with": ["stepz=3"]}, "no setting 'stepz'"),
        ({"merge_with": ["rank"]}, "write NAME=VALUE"),
    ],
)
def test_wrong_comparisons_leave_nothing(
    asked: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(B4MError, match=message):
        verbs.compare(**{**asked, "out": tmp_path / "out", **change})
    assert not (tmp_path / "out").exists()
