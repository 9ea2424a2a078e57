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
from PIL import Image, ImageColor
from scipy.linalg import subspace_angles

import b4m
from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.errors import B4MError
from b4m.files import write_adapter
from b4m.files.overlap import Meeting, Overlap, advice, compare_files, meeting_of, overlap_of
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
    for space, left, right in ((0, first.down.T, second.down.T), (1, first.up, second.up)):
        angles = subspace_angles(left.numpy(), right.numpy())
        assert found.spaces[space] == pytest.approx(float((np.cos(angles) ** 2).mean()), abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=4), st.integers(0, 99))
def test_the_strength_is_that_of_the_dense_sum_of_any_number(ranks: list[int], seed: int) -> None:
    pairs = [drawn(seed + 9 * k, rank) if rank else None for k, rank in enumerate(ranks)]
    found = meeting_of(pairs)
    dense = [p.dense().numpy() if p is not None else np.zeros((9, 7)) for p in pairs]
    assert found.norms == pytest.approx([np.linalg.norm(one) for one in dense])
    whole = found.strength * np.linalg.norm(sum(dense))
    assert whole == pytest.approx(max(map(np.linalg.norm, dense)))


def test_one_layer_against_itself_its_negative_and_an_orthogonal_one() -> None:
    first = drawn(0, 2)
    same, against = overlap_of(first, first.scale(3)), overlap_of(first, -first)
    assert (same.cosine, *same.spaces) == pytest.approx((1, 1, 1))
    assert against.cosine == pytest.approx(-1)
    assert meeting_of([first, -first]).strength == 1
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


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """The second has half of the first one's layers, the third one other layer."""
    one = adapter(text=True)
    two = Adapter({DOWN: pair(50), UP: one.layers[UP].scale(2)}, text_layers={TEXT: pair(60)})
    return [
        write_adapter(tmp_path / "one.safetensors", one, "kohya"),
        write_adapter(tmp_path / "two.safetensors", two, "diffusers"),
        write_adapter(tmp_path / "three.safetensors", Adapter({MID: pair(70)}), "comfyui"),
    ]


def test_files_are_compared_block_by_block_and_as_a_table(three: list[Path]) -> None:
    facts = inspect(three[:2], json=True)
    assert isinstance(facts, dict)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["layers"] == [6, 3]
    assert [*facts["blocks"]][-2:] == ["text_encoder", "text_encoder_2"]
    block = facts["blocks"]["up_blocks.0.attentions.2"]
    assert block["pairs"]["1-2"]["cosine"] == pytest.approx(1, abs=1e-4)
    assert block["norms"][1] == pytest.approx(2 * block["norms"][0], rel=1e-3)
    assert facts["blocks"]["mid_block.attentions.0"]["pairs"] == {}
    assert facts["blocks"]["mid_block.attentions.0"]["norms"][1] == 0
    assert facts["together"]["pairs"]["1-2"]["layers"] == 2

    text = inspect(three[:2])
    assert isinstance(text, str)
    rows = [line for line in text.splitlines() if re.match(r"\S+ +\d+  ", line)]
    assert [row.split()[0] for row in rows] == [*facts["blocks"], "together"]


def test_blocks_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"diffusion_model.double_blocks.{k}.img_attn.proj" for k in range(12)]
    layers = {name: pair(k, 4, 4, 2) for k, name in enumerate(names)}
    text = {"text.text_encoder.text_model.encoder.layers.0.mlp.fc1": pair(9, 4, 4, 2)}
    file = write_adapter(tmp_path / "a.safetensors", Adapter(layers, text_layers=text))
    blocks = [*compare_files([file, file])["blocks"]]
    assert blocks == [*(f"double_blocks.{k}" for k in range(12)), "text_encoder"]


def test_of_three_files_every_two_are_compared(three: list[Path]) -> None:
    facts = compare_files(three)
    assert set(facts["together"]["pairs"]) == {"1-2", "1-3"}, "2 and 3 have no layer in common"
    assert facts["blocks"]["mid_block.attentions.0"]["pairs"].keys() == {"1-3"}
    table = inspect(three)
    assert isinstance(table, str)
    assert all(words in table for words in ("cosine 1-2", "cosine 1-3", "norm 3"))


def test_the_strength_that_is_told_is_that_of_the_merge(three: list[Path]) -> None:
    facts = compare_files(three)
    merged = b4m.merge(*three, auto_strength=True)
    told = merged.metadata.config["strength"]
    assert facts["strength"] == pytest.approx(told, abs=1e-4)
    strongest = max(facts["together"]["norms"])
    norm = sum(pair.norm() ** 2 for pair in merged.layers.values()) ** 0.5
    assert norm == pytest.approx(strongest, rel=1e-4)


def test_the_image_is_whole_and_shows_every_bar(three: list[Path], tmp_path: Path) -> None:
    for number in (2, 3):
        file = tmp_path / f"{number}.png"
        inspect(three[:number], image=file)
        with Image.open(file) as image:
            assert image.format == "PNG"
            colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24)}
        bars = ["#4c5c96", "#c0724a", "#55606e", "#2a6f8f", "#7fb3a6"] + ["#5b9279"] * (number - 2)
        for bar in bars:
            assert colours.get(ImageColor.getrgb(bar), 0) > 50, bar


def test_files_without_a_common_layer_are_compared_too(tmp_path: Path) -> None:
    files = [
        write_adapter(tmp_path / f"{k}.safetensors", Adapter({name: pair(k)}))
        for k, name in enumerate([DOWN, MID])
    ]
    facts = compare_files(files)
    assert facts["together"]["pairs"] == {}
    assert facts["advice"] == ["No layer is in both, so any merge keeps all as they are."]
    assert isinstance(inspect(files, image=tmp_path / "a.png"), str)


def meeting(cosine: float, ratio: float = 1.0, rows: float = 0.0) -> Meeting:
    squares = (1.0, ratio**2)
    pair = Overlap(cosine * ratio, squares, (rows, 0.0), (0.05, 0.05))
    return Meeting(squares, {(0, 1): pair})


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        (meeting(-0.05), ["hardly meet"]),
        (meeting(0.5), ["same direction", "1.7 times as strong", f"by {1 / math.sqrt(3):.2f}"]),
        (meeting(-0.4), ["against each other", "ties"]),
        (meeting(0.0, ratio=4.0), ["2 is 4.0 times as strong as 1", "--weights 2 1 "]),
        (meeting(0.0, rows=0.6), ["read the same directions in 1 of 1 blocks", "tsv or ssr"]),
    ],
)
def test_advice_says_what_the_numbers_say(whole: Meeting, words: list[str]) -> None:
    said = " ".join(advice(whole, {"block": whole}))
    assert all(word in said for word in words), said


def test_what_is_asked_of_one_file_that_needs_several_is_refused(
    three: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(B4MError, match="give another file"):
        inspect(three[:1], image=tmp_path / "a.png")
    with pytest.raises(B4MError, match=r"\.png"):
        inspect(three, image=tmp_path / "a.svg")
    with pytest.raises(B4MError, match="needs an adapter file"):
        inspect([])
