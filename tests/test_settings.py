"""Settings: what a method does not read and what is out of range is refused, in one sentence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from b4m.errors import B4MError
from b4m.methods import TRAININGS, merge_rule, names, sampler, training
from b4m.plan import SUM
from b4m.settings import KINDS, Settings, parse_pairs, resolve, shared
from b4m.verbs.sample import settings_of
from b4m.verbs.workspace import load

MERGES = names("file")
SAMPLERS = [SUM, *names("images")]
EVERY: dict[str, type[Settings]] = {
    **{f"train {way}": training(way).settings for way in TRAININGS},
    **{f"merge {method}": merge_rule(method).settings for method in MERGES},
    **{f"sample {way}": settings_of(way) for way in SAMPLERS},
}


@pytest.mark.parametrize(
    "name", [name for name, model in EVERY.items() if "precision" in model.model_fields]
)
def test_the_base_is_loaded_in_the_precision_that_a_method_asks_for(
    name: str, tiny_base: Path
) -> None:
    method = name.split()[1]
    for key in ("precision", f"{method}.precision"):
        settings = resolve(EVERY[name], {key: "bf16"}, method=method)
        assert load(str(tiny_base), settings).dtype == torch.bfloat16


def numbers(model: type[Settings]) -> list[str]:
    return [name for name, field in model.model_fields.items() if field.annotation in (int, float)]


def beyond(model: type[Settings], name: str) -> list[float]:
    """Numbers just outside the range of a field."""
    steps = {"ge": -1, "le": 1, "gt": 0, "lt": 0}
    return [
        getattr(limit, kind) + step
        for limit in model.model_fields[name].metadata
        for kind, step in steps.items()
        if getattr(limit, kind, None) is not None
    ]


def refusal(call: Callable[[], object]) -> str:
    """The one sentence that a call is refused with."""
    with pytest.raises(B4MError) as caught:
        call()
    return sentence(caught.value)


def sentence(error: B4MError) -> str:
    text = str(error)
    assert text.strip()
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("name", EVERY)
def test_what_is_no_number_or_out_of_range_is_refused(name: str) -> None:
    model = EVERY[name]
    for field in numbers(model):
        ends = [float("nan"), float("inf"), float("-inf"), "nan", "inf", "-Infinity", "1e999", ""]
        for value in [*ends, "much", None, *beyond(model, field)]:
            said = refusal(lambda: resolve(model, {field: value}))  # noqa: B023
            assert said.startswith(f"setting {field}=")


def test_every_number_but_weights_and_scales_has_a_limit() -> None:
    fields = [(model, field) for model in EVERY.values() for field in numbers(model)]
    assert {field for model, field in fields if not beyond(model, field)} == {
        "scale",
    }


@pytest.mark.parametrize("name", EVERY)
def test_what_a_method_does_not_read_is_refused_with_the_nearest_name(name: str) -> None:
    model, method = EVERY[name], name.split()[1]
    every = {field for other in EVERY.values() for field in other.model_fields}
    for field in sorted(every - set(model.model_fields)):
        said = refusal(lambda: resolve(model, {field: 1}, method=method))  # noqa: B023
        assert said.startswith(f"{method} has no setting {field!r}; ")
    field = next(iter(model.model_fields))
    wrong = f"{field[:-1]}{field[-1] * 2}"
    assert f"nearest is {field}" in refusal(lambda: resolve(model, {wrong: 1}, method=method))


def test_values_for_one_method_or_kind_go_before_those_for_all() -> None:
    model = training("b4m").settings
    values = {"lr": 1.0, "b4m.lr": 2.0, "style.lr": 3.0}
    assert resolve(model, values, method="b4m", kind="content").lr == 2.0
    assert resolve(model, values, method="b4m", kind="style").lr == 3.0
    assert (
        resolve(model, {"lr": 1.0}, {"lr": 5.0, "rank": 3}, "b4m").model_dump().items()
        >= {
            "lr": 1.0,
            "rank": 3,
        }.items()
    )
    assert "is not for b4m" in refusal(lambda: resolve(model, {"lora.lr": 1.0}, method="b4m"))
    models = {way: training(way).settings for way in ("lora", "b4m")}
    parts = shared(models, {"lr": "1", "b4m.steps": "7", "style.text_lr": "0.1"}, KINDS)
    assert parts == {
        "lora": {"lr": "1", "style.text_lr": "0.1"},
        "b4m": {"lr": "1", "b4m.steps": "7", "style.text_lr": "0.1"},
    }


NAMES = sorted({field for model in EVERY.values() for field in model.model_fields})
SCOPES = [*TRAININGS, *MERGES, *KINDS, "nobody"]
TEXT = st.text() | st.floats().map(str) | st.integers().map(str) | st.sampled_from(["true", "soft"])
KEYS = st.one_of(
    st.sampled_from(NAMES),
    st.text(),
    st.tuples(st.sampled_from(SCOPES), st.sampled_from(NAMES) | st.text()).map(".".join),
)


@given(name=st.sampled_from(sorted(EVERY)), overrides=st.dictionaries(KEYS, TEXT, max_size=3))
def test_any_text_gives_settings_or_one_sentence(name: str, overrides: dict[str, str]) -> None:
    try:
        found = resolve(EVERY[name], overrides, method=name.split()[1], kind="style")
    except B4MError as error:
        sentence(error)
        return
    for field in numbers(type(found)):
        assert np.isfinite(getattr(found, field))


@given(
    methods=st.sets(st.sampled_from(TRAININGS), min_size=1),
    overrides=st.dictionaries(KEYS, TEXT, max_size=3),
)
def test_what_is_shared_out_reaches_a_method_or_is_refused(
    methods: set[str], overrides: dict[str, str]
) -> None:
    try:
        parts = shared({way: training(way).settings for way in methods}, overrides, KINDS)
    except B4MError as error:
        sentence(error)
        return
    assert parts.keys() == methods
    assert {key for part in parts.values() for key in part} == set(overrides)


@given(texts=st.lists(st.text() | st.tuples(st.text(), st.text()).map("=".join), max_size=3))
def test_pairs_are_names_and_values_or_one_sentence(texts: list[str]) -> None:
    try:
        values = parse_pairs(texts)
    except B4MError as error:
        sentence(error)
        return
    assert all("=" in text for text in texts)
    assert set(values.values()) <= {text.partition("=")[2] for text in texts}


def test_samplers_read_what_sampling_reads() -> None:
    for name in names("images"):
        assert sampler(name).settings is settings_of(name)
    assert "unknown way to combine" in refusal(lambda: settings_of("ties"))
