"""Arguments: what reaches the verb, and one sentence for what is wrong."""

import contextlib
import inspect
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from b4m import cli, verbs
from b4m.cli.selection import methods_of, settings_model
from b4m.cli.verbs import SELECTOR, VERBS
from b4m.errors import B4MError
from b4m.files import read_adapter
from tests.cli.answers import LAYER, Answer, assert_refused, is_one_sentence


def test_a_setting_is_a_flag_of_its_method() -> None:
    line = "merge A B --out o --method duolora --cycle 0.02 --steps 50"
    _, call = cli.parse(line.split())
    assert call["settings"] == {"cycle": "0.02", "steps": "50"}
    assert call["method"] == "duolora"


def test_what_is_not_written_is_left_to_the_base_and_the_verb() -> None:
    _, call = cli.parse(["sample", "--out", "x", "--seed", "1", "2", "--seed", "3"])
    assert call == {"out": Path("x"), "seed": [1, 2, 3]}


@pytest.mark.parametrize(("flag", "value"), [("--flip", True), ("--no-flip", False)])
def test_a_switch_needs_no_word(flag: str, value: bool) -> None:
    line = f"train --kind content --data d --concept c --out o --method b4m --lr-other 1e-5 {flag}"
    _, call = cli.parse(line.split())
    assert call["settings"] == {"lr_other": "1e-5", "flip": value}


@pytest.mark.parametrize("value", ["-0.5", "-5e-3", "-inf", "-1"])
def test_a_negative_number_is_a_value_and_not_a_flag(value: str) -> None:
    _, call = cli.parse(["merge", "a", "b", "--out", "o", "--weights", value])
    assert call["settings"] == {"weights": [value]}


def test_a_negative_weight_subtracts_the_adapter(
    b4m: Callable[..., Answer], adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "merged.safetensors"
    status, printed, errors = b4m("merge", *adapters, "--weights", "-0.5", "1", "--out", out)
    assert status == 0, errors
    assert printed.strip() == str(out)
    first, second = (read_adapter(file).layers[LAYER].dense() for file in adapters)
    merged = read_adapter(out).layers[LAYER].dense()
    torch.testing.assert_close(merged, second - 0.5 * first)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--wieghts 1", ("--wieghts", "nearest is --weights")),
        ("--cycle 1", ("--cycle", "setting of duolora", "b4m merge --method duolora --help")),
        ("--method duolora --cycel 1", ("--cycel", "nearest is --cycle")),
        ("--rank -4", ("rank", "0 or more")),
        ("--rank four", ("rank", "'four'", "whole number")),
        ("--weights nan 1", ("weights", "finite")),
        ("--weights 1 inf", ("weights", "finite")),
        ("--method dare --density 5", ("density", "1 or less")),
        ("--method duolora --init zeros", ("init", "'lstsq'")),
        ("--method magic", ("magic", "direct")),
        ("--method klora", ("klora", "b4m sample")),
        ("--rank", ("--rank needs a value",)),
        ("superfluous", ("there is no adapter file superfluous",)),
    ],
)
def test_a_wrong_argument_costs_one_sentence(
    b4m: Callable[..., Answer],
    adapters: tuple[Path, Path],
    tmp_path: Path,
    arguments: str,
    words: tuple[str, ...],
) -> None:
    out = tmp_path / "merged.safetensors"
    answer = b4m("merge", *adapters, "--out", out, *arguments.split())
    assert_refused(answer, out, *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mereg a b", ("'mereg'", "nearest is merge")),
        ("-v merge", ("'-v'", "prepare, train, merge")),
        ("merge --out o", ("ADAPTERS", "b4m merge --method direct --help")),
        ("merge a --out o", ("two adapters or more, not 1",)),
        ("merge a b c --method ziplora --out o", ("ziplora merges two adapters", "not 3", "tsv")),
        ("merge a b", ("--out",)),
        ("sample --out o --seed one", ("--seed", '"one"')),
        ("compare s --out o --content a --style b --train-with rank", ("'rank'", "NAME=VALUE")),
        ("compare s --out o --content a --style b --train-with rnak=3", ("rnak", "rank")),
    ],
)
def test_a_command_line_that_does_not_parse_costs_one_sentence(
    b4m: Callable[..., Answer], line: str, words: tuple[str, ...]
) -> None:
    status, printed, errors = b4m(*line.split())
    assert (status, printed) == (2, "")
    assert is_one_sentence(errors), errors
    assert not [word for word in words if word not in errors], errors


_WORD = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
_VALUE = st.one_of(
    _WORD,
    st.floats().map(str),
    st.integers().map(str),
    st.sampled_from(["-nan", "1e999", "0x10", "1_000", "true", "{}", "[1]", "--", "-", "=", "a=b"]),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_command_line_ends_in_a_stack_trace_while_it_is_parsed(data: st.DataObject) -> None:
    verb = data.draw(st.sampled_from([*VERBS]))
    names = [*inspect.signature(getattr(verbs, verb)).parameters]
    if verb in SELECTOR:
        method = data.draw(st.sampled_from(methods_of(verb)))
        names += settings_model(verb, method).model_fields
        arguments = [f"--{SELECTOR[verb]}", method]
    else:
        arguments = []
    flags = st.sampled_from([f"--{name.replace('_', '-')}" for name in names])
    word = st.one_of(flags, _VALUE, st.tuples(flags, _VALUE).map("=".join))
    arguments += data.draw(st.lists(word.filter(lambda w: w not in ("--help", "-h")), max_size=8))
    with contextlib.suppress(B4MError):
        cli.parse([verb, *arguments])


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(value=_VALUE, name=st.sampled_from(["--mu", "--weights", "--rank", "--projection"]))
def test_every_value_of_a_setting_is_taken_or_refused_in_one_sentence(
    b4m: Callable[..., Answer],
    adapters: tuple[Path, Path],
    tmp_path: Path,
    name: str,
    value: str,
) -> None:
    out = tmp_path / "merged.safetensors"
    status, printed, errors = b4m(
        "merge", *adapters, "--out", out, "--method", "nplora", f"{name}={value}"
    )
    if status:
        assert status == 2
        assert is_one_sentence(errors), errors
    else:
        assert printed.strip() == str(out)
        if name == "--mu":
            assert math.isfinite(float(value))


def _readme_commands(root: Path) -> list[str]:
    text = (root / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def test_every_command_in_the_readme_parses(repo_root: Path) -> None:
    commands = _readme_commands(repo_root)
    seen = set()
    targets = re.findall(r"^(\w+):", (repo_root / "Makefile").read_text(encoding="utf-8"), re.M)
    for command in commands:
        program, *arguments = shlex.split(command)
        if program == "b4m" and arguments[0] != "pipeline":
            verb, call = cli.parse(arguments)
            inspect.signature(getattr(verbs, verb)).bind(**call)
            seen.add(verb)
        elif program == "make":
            assert arguments[0] in targets
    assert {"prepare", "train", "merge", "sample", "compare"} <= seen
