"""Intervals against normal theory, published algorithms, and what they must not pretend."""

import math
import random
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from b4m.evaluation.statistics import Estimate, interval, paired_difference, summarize

UNITS = st.lists(st.integers(-1000, 1000).map(lambda n: n / 1000), min_size=3, max_size=12)


def scored(values: dict[tuple[str, int], float]) -> pd.DataFrame:
    """Scores of one method, by content and seed."""
    rows = [(pair, "style", "prompt", seed, value) for (pair, seed), value in values.items()]
    return pd.DataFrame(rows, columns=["content", "style", "prompt", "seed", "value"])


def width(estimate: Estimate) -> float:
    return estimate.high - estimate.low


def test_a_large_sample_gives_the_interval_of_normal_theory() -> None:
    values = np.random.default_rng(3).normal(2.0, 0.7, size=1500)
    low, high = interval(values, resamples=20000)
    error = 1.959964 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - error, abs=0.05 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.05 * error)


def test_the_interval_is_efrons_bca_in_a_plain_loop() -> None:
    values = [0.2, 0.9, 0.4, 0.7, 0.65, 0.1, 5.0]
    n, mean, normal, rng = len(values), sum(values) / len(values), NormalDist(), random.Random(5)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(40000))
    below = sum(one < mean for one in means) + sum(one == mean for one in means) / 2
    z0 = normal.inv_cdf(below / len(means))
    jackknife = [(sum(values) - value) / (n - 1) for value in values]
    d = [sum(jackknife) / n - one for one in jackknife]
    a = sum(one**3 for one in d) / (6 * sum(one**2 for one in d) ** 1.5)
    bounds = []
    for z in (normal.inv_cdf(0.025), normal.inv_cdf(0.975)):
        share = normal.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))
        bounds.append(means[int(share * len(means))])
    assert interval(values, resamples=40000) == pytest.approx(bounds, abs=0.03)
    percentile = means[999], means[38999]
    assert bounds[0] > percentile[0] + 0.02  # skewed to the right: both bounds move up
    assert bounds[1] > percentile[1] + 0.2


def test_a_constant_has_an_interval_of_no_width() -> None:
    assert interval([0.1] * 7) == (0.1, 0.1)
    assert interval([0.1] * 2) == (0.1, 0.1)


def test_two_units_give_an_interval_from_one_to_the_other() -> None:
    assert interval([0.6, 0.2]) == pytest.approx((0.2, 0.6))


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(4).normal(size=40)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_nineteen_of_twenty_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        low, high = interval(rng.normal(size=30), seed=trial, resamples=500)
        held += low <= 0.0 <= high
    assert 0.90 <= held / 300 <= 0.98


@settings(max_examples=40, deadline=None)
@given(UNITS)
def test_an_interval_is_ordered_and_lies_within_its_values(values: list[float]) -> None:
    low, high = interval(values, resamples=300)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12


@settings(max_examples=40, deadline=None)
@given(UNITS, st.floats(0.1, 10), st.floats(-5, 5))
def test_an_interval_follows_the_scale_and_the_zero_of_its_values(
    values: list[float], scale: float, shift: float
) -> None:
    assume(len(set(values)) > 1)
    low, high = interval(values, resamples=300)
    moved = interval([scale * value + shift for value in values], resamples=300)
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-6)


def test_more_seeds_of_the_same_pairs_do_not_narrow_the_interval() -> None:
    few = {(pair, 0): value for pair, value in zip("abcd", (0.1, 0.5, 0.7, 0.9), strict=True)}
    many = {(pair, seed): value for (pair, _), value in few.items() for seed in range(50)}
    result, expected = summarize(scored(many)), summarize(scored(few))
    assert (result.unit, result.n) == (expected.unit, expected.n) == ("pairs", 4)
    assert (result.mean, result.low, result.high) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )


def test_pairs_count_alike_however_many_images_they_have() -> None:
    values = {("a", 0): 1.0} | {("b", seed): 0.0 for seed in range(9)}
    assert summarize(scored(values)).mean == 0.5


def test_one_pair_is_summarized_over_its_images_and_says_so() -> None:
    result = summarize(scored({("a", seed): float(seed) for seed in range(5)}))
    assert (result.unit, result.n, result.mean) == ("images", 5, 2.0)
    assert result.low < 2.0 < result.high
    assert result.bounded


def test_one_image_has_no_interval() -> None:
    result = summarize(scored({("a", 0): 0.4}))
    assert (result.unit, result.n, result.mean) == ("none", 1, 0.4)
    assert math.isnan(result.low)
    assert math.isnan(result.high)
    assert not result.bounded
    assert not result.decided


def test_a_paired_difference_leaves_out_what_both_share() -> None:
    rng = np.random.default_rng(1)
    hard = {(f"p{number}", 0): rng.normal() for number in range(20)}
    better = {key: value + 0.1 + 0.01 * rng.normal() for key, value in hard.items()}
    result = paired_difference(scored(better), scored(hard))
    assert result is not None
    assert result.low > 0.09
    assert result.high < 0.11
    assert result.decided
    assert width(result) < 0.05 * width(summarize(scored(hard)))


def test_a_paired_difference_uses_only_what_both_were_measured_on() -> None:
    some, others = {("a", 0): 1.0, ("a", 1): 5.0, ("b", 0): 3.0}, {("a", 0): 0.5, ("b", 0): 1.0}
    result = paired_difference(scored(some), scored(others))
    assert result is not None
    assert (result.n, result.mean) == (2, 1.25)
    assert paired_difference(scored(some), scored({("c", 0): 1.0})) is None
