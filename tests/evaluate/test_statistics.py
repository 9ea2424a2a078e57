"""Intervals against normal theory, an independent loop, and what they must not pretend."""

import math
import random

import numpy as np
import pytest

from b4m.evaluate.statistics import (
    Interval,
    Observation,
    bootstrap_mean,
    paired_difference,
    summarize,
)


def observed(values: dict[tuple[str, int], float]) -> list[Observation]:
    return [Observation(pair, seed, value) for (pair, seed), value in values.items()]


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_a_large_sample_gives_the_interval_of_normal_theory() -> None:
    values = np.random.default_rng(3).normal(2.0, 0.7, size=1500)
    low, high = bootstrap_mean(values, resamples=20000)
    error = 1.959964 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - error, abs=0.04 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.04 * error)


def test_a_constant_has_an_interval_of_no_width() -> None:
    assert bootstrap_mean([0.1] * 7) == (0.1, 0.1)


def test_the_interval_agrees_with_a_plain_loop() -> None:
    values = [0.2, 0.9, 0.4, 0.7, 0.65, 0.1]
    rng = random.Random(5)
    means = sorted(sum(rng.choices(values, k=6)) / 6 for _ in range(40000))
    low, high = bootstrap_mean(values, resamples=40000)
    assert low == pytest.approx(means[999], abs=0.01)
    assert high == pytest.approx(means[38999], abs=0.01)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(4).normal(size=40)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_nineteen_of_twenty_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        low, high = bootstrap_mean(rng.normal(size=30), seed=trial, resamples=500)
        held += low <= 0.0 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_more_seeds_of_the_same_pairs_do_not_narrow_the_interval() -> None:
    few = {(pair, 0): value for pair, value in zip("abcd", (0.1, 0.5, 0.7, 0.9), strict=True)}
    many = {(pair, seed): value for (pair, _), value in few.items() for seed in range(50)}
    found, expected = summarize(observed(many)), summarize(observed(few))
    assert (found.unit, found.n) == (expected.unit, expected.n) == ("pairs", 4)
    assert (found.mean, found.low, found.high) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )


def test_pairs_count_alike_however_many_pictures_they_have() -> None:
    values = {("a", 0): 1.0} | {("b", seed): 0.0 for seed in range(9)}
    assert summarize(observed(values)).mean == 0.5


def test_one_pair_is_summarized_over_its_pictures_and_says_so() -> None:
    found = summarize(observed({("a", seed): float(seed) for seed in range(5)}))
    assert (found.unit, found.n, found.mean) == ("pictures", 5, 2.0)
    assert found.low < 2.0 < found.high


def test_one_picture_has_no_interval() -> None:
    found = summarize(observed({("a", 0): 0.4}))
    assert (found.unit, found.n, found.mean) == ("none", 1, 0.4)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_a_paired_difference_leaves_out_what_both_share() -> None:
    rng = np.random.default_rng(1)
    hard = {(f"p{number}", 0): rng.normal() for number in range(20)}
    ours = {key: value + 0.1 + 0.01 * rng.normal() for key, value in hard.items()}
    found = paired_difference(observed(ours), observed(hard))
    assert found is not None
    assert found.low > 0.09
    assert found.high < 0.11
    assert width(found) < 0.05 * width(summarize(observed(hard)))


def test_a_paired_difference_uses_only_what_both_were_measured_on() -> None:
    ours, theirs = {("a", 0): 1.0, ("a", 1): 5.0, ("b", 0): 3.0}, {("a", 0): 0.5, ("b", 0): 1.0}
    found = paired_difference(observed(ours), observed(theirs))
    assert found is not None
    assert (found.n, found.mean) == (2, 1.25)
    assert paired_difference(observed(ours), observed({("c", 0): 1.0})) is None
