"""`b4m compare`: every pair and method once, resumed where it stopped, a folder for each."""

import csv
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from b4m import verbs
from b4m.errors import B4MError
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
    for label in ("base", "content only", "style only", "direct", "klora"):
        assert {(label, "teapot", "stripes"), (label, "teapot", "dots")} <= found

    # as if it had been killed while the last pictures were drawn
    last = out / "samples" / "klora-teapot+dots"
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
