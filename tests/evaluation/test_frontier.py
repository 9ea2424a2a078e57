"""Hypervolume in closed form, intervals over pairs, and what makes a score believed."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from b4m.evaluation.checks import blind_styles, sanity
from b4m.evaluation.frontier import Axes, curves, difference, hypervolume
from b4m.evaluation.statistics import Estimate
from b4m.evaluation.tables import COPY_OF_STYLE, GROUND_TRUTH
from b4m.plan import row_and_strength

AXES = Axes("likeness", ("clip", "clip"), "clip_i_content", "clip_i_style")
PAIRS = [(f"c{number}", "ink") for number in range(12)]
COORDINATES = st.floats(-0.5, 1.5)


def test_the_hypervolume_of_a_staircase_is_the_sum_of_its_rectangles() -> None:
    # above (1, 0): 3 wide and 1 high, and on top of it 1 wide and 2 high
    assert hypervolume(np.array([[4.0, 1.0], [2.0, 3.0]]), (1.0, 0.0)) == pytest.approx(5.0)
    assert hypervolume(np.array([[0.7, 0.5]])) == pytest.approx(0.35)


def test_points_that_are_dominated_or_below_the_reference_add_nothing() -> None:
    few = np.array([[0.6, 0.4], [0.2, 0.9]])
    more = np.array([[0.5, 0.4], [-1.0, 3.0], *few, [0.6, 0.4], [2.0, -0.1]])
    assert hypervolume(more) == pytest.approx(float(hypervolume(few)))


@given(st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=6))
def test_the_hypervolume_is_the_share_of_a_fine_grid_that_is_dominated(
    points: list[tuple[float, float]],
) -> None:
    side = (np.arange(300) + 0.5) / 200  # up to 1.5
    x, y = np.meshgrid(side, side)
    dominated = np.any([(x < a) & (y < b) for a, b in points], axis=0)
    assert hypervolume(np.array(points)) == pytest.approx(dominated.sum() / 200**2, abs=0.02)


def table_of(rows: dict[str, tuple[float, float]], noise: float = 0.02) -> pd.DataFrame:
    """Scores of rows with these means, noise per pair that all rows of a pair share."""
    rng = np.random.default_rng(3)
    shared = {pair: rng.normal(0.0, noise, 2) for pair in PAIRS}
    return pd.DataFrame(
        [
            (label, *pair, metric, mean + shared[pair][place], "clip")
            for label, means in rows.items()
            for pair in PAIRS
            for place, (metric, mean) in enumerate(
                zip((AXES.content, AXES.style), means, strict=True)
            )
        ],
        columns=["method", "content", "style", "metric", "value", "encoder"],
    )


WORLD = {
    "base": (0.4, 0.3),
    GROUND_TRUTH: (0.8, 0.5),
    "direct style-0.4": (0.8, 0.3),
    "direct": (0.6, 0.4),
    "direct style+0.4": (0.4, 0.5),
    "b4m": (0.7, 0.45),
}


def test_on_the_scaled_axes_the_base_is_nothing_and_the_ground_truth_one() -> None:
    found = curves(table_of(WORLD), AXES, row_and_strength, "base")
    assert found["base"].volume().mean == pytest.approx(0.0, abs=0.02)
    assert found[GROUND_TRUTH].volume().mean == pytest.approx(1.0, abs=0.02)
    assert found["direct"].strengths == (-0.4, 0.0, 0.4)
    assert found["direct"].volume().mean == pytest.approx(
        0.25, abs=0.02
    )  # (1, 0), (.5, .5), (0, 1)
    assert found["b4m"].volume().mean == pytest.approx(0.75 * 0.75, abs=0.02)


def test_a_paired_difference_is_decided_where_both_intervals_overlap() -> None:
    rows = {**WORLD, "ssr": (0.71, 0.455)}
    found = curves(table_of(rows, noise=0.05), AXES, row_and_strength, "base")
    better, worse = found["ssr"].volume(), found["b4m"].volume()
    assert better.low < worse.high  # apart they could be level
    assert difference([found["ssr"]], [found["b4m"]]).low > 0.0
    same = difference([found["b4m"]], [found["b4m"]])
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)


def test_without_a_ground_truth_or_a_measured_axis_there_is_no_frontier() -> None:
    without = {label: means for label, means in WORLD.items() if label != GROUND_TRUTH}
    assert curves(table_of(without), AXES, row_and_strength, "base") == {}
    other = Axes("other", ("clip", "clip"), "clip_i_content", "clip_i_style_csls")
    assert curves(table_of(WORLD), other, row_and_strength, "base") == {}


def means(**scores: dict[str, float]) -> dict[tuple[str, str, str], Estimate]:
    return {
        (row, metric, "clip"): Estimate(mean, mean, mean, 2, "pairs")
        for metric, of_rows in scores.items()
        for row, mean in of_rows.items()
    }


def test_a_style_score_on_which_a_copy_of_the_style_loses_is_blind() -> None:
    summary = means(
        clip_i_style={"base": 0.2, "b4m": 0.6, COPY_OF_STYLE: 0.5},
        clip_i_style_csls={"base": -0.2, "b4m": 0.1, COPY_OF_STYLE: 0.3},
        clip_i_content={"base": 0.2, "b4m": 0.9, COPY_OF_STYLE: 0.1},
    )
    blind = blind_styles(summary, ["base", "b4m"])
    assert blind == {("clip_i_style", "clip"): "b4m", ("clip_i_harmonic", "clip"): "b4m"}


def test_a_base_above_a_method_and_a_method_above_the_truth_are_told() -> None:
    summary = means(
        style_named={"base": 0.1, "b4m": 0.5, GROUND_TRUTH: 0.4},
        content_named={"base": 0.0, "b4m": 0.9, GROUND_TRUTH: 1.0},
        clip_i_truth={"base": 0.7, "b4m": 0.6, GROUND_TRUTH: 1.0},
    )
    broken = {
        (c.metric, c.claim): c.instead
        for c in sanity(summary, ["base", "b4m"], "base")
        if not c.holds
    }
    assert broken == {
        ("style_named", "the ground truth is highest"): "b4m",
        ("clip_i_truth", "the base is lowest"): "b4m",
    }


def test_without_a_base_only_the_ground_truth_is_expected_somewhere() -> None:
    summary = means(content_named={"b4m": 0.9, GROUND_TRUTH: 1.0}, clip_i_truth={"b4m": 0.6})
    assert [check.claim for check in sanity(summary, ["b4m"], "base")] == [
        "the ground truth is highest"
    ]
