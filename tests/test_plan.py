"""The plan of a comparison: each job once, inputs before what needs them, baselines beside all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from b4m.errors import B4MError
from b4m.methods import METHODS, TRAININGS
from b4m.plan import (
    BASELINES,
    PLAIN,
    REFERENCE_METHOD,
    SUM,
    Comparison,
    Plan,
    drawn_at,
    plan,
    row_and_strength,
)

CONTENTS = ("cat", "owl", "fox")
STYLES = ("ink", "oil")
ROWS = (*METHODS, "ziplora:axis=rows", "b4m:train.split=0,steps=3", "klora:pattern=s*")


def plan_of(*methods: str, contents: tuple[str, ...] = CONTENTS, pairing: str = "every") -> Plan:
    return plan(Comparison(contents, STYLES, methods, pairing))


def some(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple)


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    contents = draw(some(("cat", "owl", "fox", "cat-lora", "a cat")))
    styles = draw(some(("ink", "oil", "cat", "w-1")))
    pairing = draw(st.sampled_from(["every", "matching"]))
    if pairing == "matching":
        count = min(len(contents), len(styles))
        contents, styles = contents[:count], styles[:count]
    strengths = draw(st.sampled_from([(), (-0.4, 0.4)]))
    return Comparison(contents, styles, draw(some(ROWS)), pairing, strengths)


@given(comparisons())
def test_every_input_is_made_before_it_is_needed_and_nothing_is_made_in_vain(
    comparison: Comparison,
) -> None:
    jobs = plan(comparison)
    trained = {job.key for job in jobs.trainings}
    merged = {job.key for job in jobs.merges}
    for merge in jobs.merges:
        assert set(merge.inputs) <= trained
    used = {key for merge in jobs.merges for key in merge.inputs}
    for sample in jobs.samples:
        assert set(sample.adapters) <= trained | merged
        used |= set(sample.adapters)
    assert merged <= used
    assert trained <= used


@given(comparisons())
def test_keys_are_unique(comparison: Comparison) -> None:
    jobs = plan(comparison)
    files = [job.key for job in (*jobs.trainings, *jobs.merges)]
    assert len(set(files)) == len(files)
    folders = [job.key for job in jobs.samples]
    assert len(set(folders)) == len(folders)


@given(comparisons())
def test_counts_are_those_of_pairs_and_rows(comparison: Comparison) -> None:
    jobs = plan(comparison)
    rows, pairs = comparison.rows, len(comparison.pairs)
    files = [row for row in rows if METHODS[row.method].result == "file"]
    assert len(jobs.merges) == len(files) * pairs
    drawn = len(rows) * (1 + len(comparison.strengths)) + len(BASELINES)
    assert len(jobs.samples) == drawn * pairs
    single = [row for row in rows if METHODS[row.method].result != "adapter"]
    ways = {(PLAIN, ())} | {(METHODS[row.method].training, row.trained) for row in single}
    singles = len(ways) * (len(comparison.contents) + len(comparison.styles))
    joint = pairs * sum(row.method == "joint" for row in rows)
    assert len(jobs.trainings) == singles + joint


@given(comparisons())
def test_baselines_stand_once_beside_every_pair_and_are_plain_adapters(
    comparison: Comparison,
) -> None:
    jobs = plan(comparison)
    for content, style in comparison.pairs:
        of_pair = [job for job in jobs.samples if (job.content, job.style) == (content, style)]
        labels = [job.label for job in of_pair]
        assert labels[:3] == ["base", "content only", "style only"]
        at = (0.0, *comparison.strengths)
        assert labels[3:] == [drawn_at(row.label, t) for row in comparison.rows for t in at]
        assert of_pair[0].adapters == ()
        assert of_pair[1].adapters == (f"content-{content}-{PLAIN}",)
        assert of_pair[2].adapters == (f"style-{style}-{PLAIN}",)


def test_another_style_costs_one_training_per_way_and_its_own_pairs() -> None:
    methods = ("b4m", "blora", "svd", "klora", "joint")
    before, after = (
        plan(Comparison(CONTENTS, styles, methods)) for styles in (STYLES, (*STYLES, "pen"))
    )

    def new(name: str) -> list[str]:
        known = {job.key for job in getattr(before, name)}
        return [job.key for job in getattr(after, name) if job.key not in known]

    single = [key for key in new("trainings") if not key.startswith("joint-")]
    assert sorted(single) == ["style-pen-b4m", "style-pen-blora", "style-pen-lora"]
    assert len(new("trainings")) == 3 + len(CONTENTS)
    assert len(new("merges")) == len(CONTENTS) * 4  # b4m, blora, svd, direct
    assert all("+pen-" in key for key in new("merges"))
    for name in ("trainings", "merges", "samples"):
        assert {job.key for job in getattr(before, name)} <= {j.key for j in getattr(after, name)}


def test_the_reference_merge_is_always_among_the_rows_and_never_twice() -> None:
    for methods in (("svd",), ("direct", "svd"), ("direct",)):
        labels = [job.label for job in plan_of(*methods).samples if job.content == "cat"]
        assert labels.count(REFERENCE_METHOD) == len(STYLES)


def test_klora_and_joint_are_planned_like_every_method() -> None:
    jobs = plan_of("klora", "joint", contents=("cat",))
    assert [job.method for job in jobs.merges] == ["direct", "direct"]
    by_label = {(job.label, job.style): job for job in jobs.samples}
    klora = by_label["klora", "ink"]
    assert (klora.adapters, klora.combine) == (("content-cat-lora", "style-ink-lora"), "klora")
    joint = by_label["joint", "ink"]
    assert (joint.adapters, joint.combine) == (("joint-cat+ink-joint",), SUM)
    (training,) = [job for job in jobs.trainings if job.key == "joint-cat+ink-joint"]
    assert (training.kind, training.concept, training.training) == ("joint", "cat+ink", "joint")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_given_adapters_of_its_own_way_of_training(method: str) -> None:
    assert METHODS[method].training in TRAININGS
    jobs = plan_of(method, contents=("cat",))
    for merge in jobs.merges:
        if merge.method == method:
            way = METHODS[method].training
            assert merge.inputs == (f"content-cat-{way}", f"style-{merge.style}-{way}")
            assert merge.learned == METHODS[method].learned


def test_strengths_cost_images_and_neither_trainings_nor_merges() -> None:
    once, swept = (
        plan(Comparison(("cat",), STYLES, ("b4m", "klora", "joint"), strengths=strengths))
        for strengths in ((), (-0.4, 0.4))
    )
    assert (swept.trainings, swept.merges) == (once.trainings, once.merges)
    by_label = {job.label: job for job in swept.samples if job.style == "ink"}
    b4m = by_label["b4m style+0.4"]
    assert b4m.adapters == ("merged-cat+ink-b4m", "style-ink-b4m", "content-cat-b4m")
    assert b4m.weights == (1.0, 0.4, -0.4)
    assert by_label["joint style-0.4"].adapters[1:] == ("style-ink-lora", "content-cat-lora")
    klora = by_label["klora style-0.4"]
    assert (klora.weights, klora.combine) == ((1.4, 0.6), "klora")
    assert row_and_strength("b4m steps=3 style+0.4") == ("b4m steps=3", 0.4)
    assert row_and_strength("style only") == ("style only", 0.0)


def test_a_row_with_settings_of_training_has_adapters_of_its_own() -> None:
    jobs = plan_of("b4m", "b4m:steps=3", "b4m:train.split=0", contents=("cat",))
    inputs = {job.key: job.inputs[0] for job in jobs.merges if job.style == "ink"}
    assert inputs["merged-cat+ink-b4m-steps=3"] == inputs["merged-cat+ink-b4m"]
    assert inputs["merged-cat+ink-b4m-train.split=0"] == "content-cat-b4m-split=0"


def test_matching_pairs_are_first_with_first() -> None:
    jobs = plan_of("svd", contents=("cat", "owl"), pairing="matching")
    pairs = {(job.content, job.style) for job in jobs.samples}
    assert pairs == {("cat", "ink"), ("owl", "oil")}


def test_a_plan_is_plain_data() -> None:
    import json

    methods = ("b4m", "klora", "joint", "ziplora:axis=rows")
    jobs = plan(Comparison(CONTENTS, STYLES, methods, strengths=(0.4,)))
    values = json.loads(json.dumps(jobs.as_dict()))
    assert [one["key"] for one in values["trainings"]] == [job.key for job in jobs.trainings]
    assert [tuple(one["inputs"]) for one in values["merges"]] == [job.inputs for job in jobs.merges]
    assert [one["adapters"] for one in values["samples"]] == [
        list(job.adapters) for job in jobs.samples
    ]
    assert Plan.from_dict(values) == jobs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contents": ("cat", "owl", "cat")}, "'cat' is given twice among the contents"),
        ({"styles": ("ink", "ink")}, "'ink' is given twice among the styles"),
        ({"methods": ("svd", "svd")}, "'svd' is given twice among the methods"),
        ({"contents": ()}, "no contents were given"),
        ({"styles": ("",)}, "no styles were given"),
        ({"contents": ("cat+owl",)}, r"'cat\+owl' among the contents has a '\+'"),
        ({"methods": ()}, "no methods were given"),
        ({"methods": ("magic",)}, "unknown method 'magic'"),
        ({"pairing": "some"}, "unknown pairing 'some'"),
        ({"methods": ("svd:rank",)}, "'rank' is not a setting"),
        ({"methods": ("svd:rank=a b",)}, "plain names and values"),
        ({"methods": ("joint:rank=3",)}, "joint merges nothing"),
        ({"methods": ("svd:rank=3", "svd:rank=3")}, "is given twice among the methods"),
        ({"strengths": (0.4, 0.4)}, "a strength is given twice"),
        ({"strengths": (1.0,)}, "strength 1.0 must be between -1 and 1"),
        ({"pairing": "matching"}, "3 contents do not match 2 styles"),
    ],
)
def test_comparisons_that_make_no_sense_are_refused(
    change: dict[str, object], message: str
) -> None:
    given = {"contents": CONTENTS, "styles": STYLES, "methods": ("svd",), **change}
    with pytest.raises(B4MError, match=message):
        Comparison(**given)  # type: ignore[arg-type]
