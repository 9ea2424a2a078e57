"""Means with bootstrap intervals, over (content, style) pairs.

The unit is the pair: images of one pair share a content, a style and two adapters, so they are
averaged first; resampling them as if they were independent would make intervals too narrow. With
one pair alone nothing can be said about other pairs: the interval is then over its images (seeds
and prompts), and `Estimate.unit` says so.

Intervals are BCa (bias-corrected and accelerated, Efron 1987, doi 10.2307/2289144) from three
units on, which corrects the percentile interval for skew. Two units have no acceleration to speak
of: theirs is the percentile interval, from the smaller to the larger. One unit has no interval.
With fewer than about ten pairs every bootstrap is too narrow; read it as a lower bound.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 4000
CONFIDENCE = 0.95
PAIR = ["content", "style"]
"""Columns that make a unit of the statistics."""
IMAGE = [*PAIR, "prompt", "seed"]
"""Columns that two methods share for images from the same noise."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; `low` and `high` are NaN where one unit gives none."""

    mean: float
    low: float
    high: float
    n: int
    unit: str
    """"pairs", "images", or "none" when there is only one of either."""

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return isfinite(self.low) and isfinite(self.high)

    @property
    def decided(self) -> bool:
        """Whether the interval leaves out 0: a difference that is more than chance."""
        return self.low > 0.0 or self.high < 0.0


def interval(
    values: ArrayLike,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Bootstrap interval of the mean of independent values.

    Args:
        values: one finite value per independent unit, at least one.
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of bootstrap samples.
        confidence: share of intervals that hold the true mean, in (0, 1).

    Returns:
        The lower and the upper bound: BCa from three units on, percentile for two or where BCa is
        not defined, the value itself for a constant, NaN for one unit.
    """
    units_P = np.asarray(values, np.float64)
    assert units_P.ndim == 1, "one value per unit"
    if len(units_P) < 2:
        return nan, nan
    start, spread = float(units_P.min()), float(np.ptp(units_P))
    if spread == 0.0:
        return start, start

    # BCa counts resampled means below the mean. Few units give many ties, which rounding errors
    # would decide: on a common scale they are rounded away.
    def mean(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(values.mean(axis)).round(9)

    low, high = _bootstrap((units_P - start) / spread, mean, seed, resamples, confidence)
    return start + spread * low, start + spread * high


def interval_of(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]], count: int, seed: int = 0
) -> Estimate:
    """A number that is made of all pairs together, with its bootstrap interval over them.

    Args:
        statistic: from places of pairs (..., P), drawn with repetition, to numbers (...).
        count: how many pairs there are.
        seed: of the resampling.
    """
    places_P = np.arange(count)
    own = float(statistic(places_P))
    if count < 2:
        return Estimate(own, nan, nan, count, "none")

    def of(drawn: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        return np.asarray(statistic(np.moveaxis(drawn, axis, -1).astype(int))).round(9)

    low, high = _bootstrap(places_P, of, seed, RESAMPLES, CONFIDENCE)
    return Estimate(own, low, high, count, "pairs")


def _bootstrap(
    units_P: NDArray[Any],
    statistic: Callable[..., NDArray[np.float64]],
    seed: int,
    resamples: int,
    confidence: float,
) -> tuple[float, float]:
    """BCa from three units on, percentile for two or where BCa is not defined."""
    from scipy.stats import bootstrap

    low = high = nan
    for method in ("BCa", "percentile") if len(units_P) > 2 else ("percentile",):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "BCa is not defined" is answered by the percentile
            result = bootstrap(
                (units_P,),
                statistic,
                n_resamples=resamples,
                confidence_level=confidence,
                method=method,
                rng=np.random.default_rng(seed),
            )
        low, high = map(float, result.confidence_interval)
        if isfinite(low) and isfinite(high):
            break
    return low, high


def summarize(scores: pd.DataFrame, seed: int = 0) -> Estimate:
    """Mean over pairs with its interval; over the images of the pair if there is only one.

    Args:
        scores: columns content, style and value, one row per image, at least one row.
        seed: of the resampling.
    """
    assert len(scores) > 0, "no score"
    pairs = scores.groupby(PAIR, sort=False)["value"].mean()
    units, unit = (pairs, "pairs") if len(pairs) > 1 else (scores["value"], "images")
    low, high = interval(units, seed)
    return Estimate(float(units.mean()), low, high, len(units), unit if len(units) > 1 else "none")


def paired_difference(
    scores: pd.DataFrame, baseline: pd.DataFrame, seed: int = 0
) -> Estimate | None:
    """Mean of scores minus baseline over what both were measured on; None if they share nothing.

    Methods start from the same noise, so their difference varies less than either of them: only
    images of the same pair, prompt and seed are subtracted.

    Args:
        scores: columns content, style, prompt, seed and value of one method and metric.
        baseline: the same of the other method.
        seed: of the resampling.
    """
    both = scores.merge(baseline, on=IMAGE, suffixes=("", "_baseline"), validate="one_to_one")
    if both.empty:
        return None
    return summarize(both.assign(value=both["value"] - both["value_baseline"]), seed)
