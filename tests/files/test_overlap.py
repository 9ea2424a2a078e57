"""Claims of the comparison of two adapters: the numbers are those of the dense matrices."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from key_styles import DOWN, MID, TEXT, UP, adapter, pair
from scipy.linalg import subspace_angles

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.errors import B4MError
from b4m.files import write_adapter
from b4m.files.overlap import Overlap, advice, compare_files, overlap_of
from b4m.verbs import inspect


def drawn(seed: int, rank: int, rows: int = 9, columns: int = 7) -> LowRank:
    return pair(seed, rows, columns, rank).to(torch.float64)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_numbers_are_those_of_the_dense_matrices(one: int, two: int, seed: int) -> None:
    """scipy's subspace angles of the dense rows and columns are the oracle."""
    first, second = drawn(seed, one), drawn(seed + 100, two)
    found = overlap_of(first, second)
    a, b = (p.dense().numpy() for p in (first, second))
    norms = np.linalg.norm(a), np.linalg.norm(b)
    assert found.cosine == pytest.approx(float((a * b).sum() / norms[0] / norms[1]))
    assert [square**0.5 for square in found.squares] == pytest.approx(norms)
    scaled = found.strength * np.linalg.norm(a + b)
    assert scaled == pytest.approx(max(norms))
    for space, left, right in ((0, first.down.T, second.down.T), (1, first.up, second.up)):
        angles = subspace_angles(left.numpy(), right.numpy())
        assert found.spaces[space] == pytest.approx(float((np.cos(angles) ** 2).mean()), abs=1e-9)


def test_one_layer_against_itself_its_negative_and_an_orthogonal_one() -> None:
    first = drawn(0, 2)
    same, against = overlap_of(first, first.scale(3)), overlap_of(first, -first)
    assert (same.cosine, *same.spaces) == pytest.approx((1, 1, 1))
    assert (against.cosine, against.strength) == pytest.approx((-1, 1))
    basis = torch.eye(7, dtype=torch.float64)
    one, two = (LowRank(basis[:, k : k + 2], basis[k : k + 2]) for k in (0, 3))
    apart = overlap_of(one, two)
    assert (apart.cosine, apart.spaces) == (0, (0, 0))
    assert apart.chance == pytest.approx((2 / 7, 2 / 7))


def test_random_spaces_overlap_as_chance_says() -> None:
    found = [overlap_of(drawn(k, 2, 40, 30), drawn(k + 500, 3, 40, 30)) for k in range(200)]
    for space in (0, 1):
        mean = sum(one.spaces[space] for one in found) / len(found)
        assert mean == pytest.approx(found[0].chance[space], rel=0.1)


def test_two_files_are_compared_in_the_layers_that_both_have(tmp_path: Path) -> None:
    one = adapter(text=True)
    two = Adapter({DOWN: pair(50), UP: one.layers[UP].scale(2)}, text_layers={TEXT: pair(60)})
    files = [
        write_adapter(tmp_path / "one.safetensors", one, "kohya"),
        write_adapter(tmp_path / "two.safetensors", two, "diffusers"),
    ]
    facts = compare_files(files)
    assert facts["layers"] == [6, 3]
    assert facts["shared"]["layers"] == 3
    assert set(facts["blocks"]) == {
        "down_blocks.1.attentions.0",
        "up_blocks.0.attentions.2",
        "text_encoder",
    }
    block = facts["blocks"]["up_blocks.0.attentions.2"]
    assert block["cosine"] == pytest.approx(1, abs=1e-4)
    assert block["norms"][1] == pytest.approx(2 * block["norms"][0], rel=1e-3)
    assert json.loads(json.dumps(facts)) == facts

    text = inspect(*files, table=True, plot=tmp_path / "meeting.svg")
    assert isinstance(text, str)
    rows = [line for line in text.splitlines() if re.match(r"\S+ +\d+ ", line)]
    assert [row.split()[0] for row in rows] == [*facts["blocks"], "together"]
    drawing = (tmp_path / "meeting.svg").read_text()
    assert drawing.count("<rect") == 3 * len(rows)


def test_files_without_a_common_layer_are_compared_too(tmp_path: Path) -> None:
    files = [
        write_adapter(tmp_path / f"{k}.safetensors", Adapter({name: pair(k)}))
        for k, name in enumerate([DOWN, MID])
    ]
    facts = compare_files(files)
    assert facts["shared"]["layers"] == 0
    assert facts["advice"] == ["No layer is in both, so any merge keeps both as they are."]
    assert isinstance(inspect(*files, table=True), str)


def overlap(cosine: float, ratio: float = 1.0, rows: float = 0.0) -> Overlap:
    return Overlap(cosine * ratio, (1.0, ratio**2), (rows, 0.0), (0.05, 0.05))


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        (overlap(0.0), ["hardly meet"]),
        (overlap(0.5), ["same direction", f"multiply it by {1 / math.sqrt(3):.2f}"]),
        (overlap(-0.4), ["against each other"]),
        (overlap(0.0, ratio=5.0), ["5.0 times as strong", "the first one more weight"]),
        (overlap(0.0, rows=0.6), ["read the same directions in 1 of 1 blocks"]),
    ],
)
def test_advice_says_what_the_numbers_say(whole: Overlap, words: list[str]) -> None:
    said = " ".join(advice(whole, {"block": whole}))
    assert all(word in said for word in words)


def test_a_plot_of_one_file_is_refused(tmp_path: Path) -> None:
    file = write_adapter(tmp_path / "a.safetensors", adapter())
    with pytest.raises(B4MError, match="give a second file"):
        inspect(file, plot=tmp_path / "a.svg")
