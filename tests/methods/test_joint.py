"""Joint training shows both concepts equally often and makes one adapter."""

from pathlib import Path

import pytest

from b4m.bases.base import Base
from b4m.errors import B4MError
from b4m.training import training_set
from tests import runs

FAST = {"rank": 2, "steps": 10, "batch_size": 1, "accumulation": 1}


def test_both_concepts_are_shown_equally_often(
    base: Base, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    read = training_set.read_training_set

    def watched(folder, rows, *rest):  # type: ignore[no-untyped-def]
        shown.extend(row.kind for row in rows)
        return read(folder, rows, *rest)

    monkeypatch.setattr("b4m.training.plain.read_training_set", watched)
    adapter = runs.train("joint", "joint", prepared, "teapot+stripes", base, tmp_path, **FAST)
    assert shown.count("content") == shown.count("style") == 5
    said = adapter.metadata
    assert (said.stage, said.concept, said.content, said.style) == (
        "joint",
        "teapot+stripes",
        "teapot",
        "stripes",
    )
    assert said.triggers == {"content": "snq", "style": "w@z"}


@pytest.mark.parametrize(
    ("kind", "concept"), [("joint", "teapot"), ("content", "teapot+stripes"), ("joint", "+stripes")]
)
def test_anything_but_a_pair_is_refused(
    base: Base, prepared: Path, tmp_path: Path, kind: str, concept: str
) -> None:
    with pytest.raises(B4MError, match="a concept content"):
        runs.train("joint", kind, prepared, concept, base, tmp_path, **FAST)
