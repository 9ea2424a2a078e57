"""Means with bootstrap intervals, over (content, style) pairs.

The unit is the pair: pictures of one pair share a content, a style and two adapters, so they are
averaged first; resampling them as if they were independent would make intervals too narrow. With
one pair alone nothing can be said about other pairs: the interval is then over its pictures (seeds
and prompts), and `Interval.unit` says so.

Percentile bootstrap (Efron 1979). With fewer than about ten pairs it is too narrow; read it as a
lower bound on the doubt.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
RESAMPLES = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; `low` and `high` are NaN where one unit gives none."""

    mean: float
    low: float
    high: float
    n: int
    unit: str
    """"pairs", "pictures", or "none" when there is only one of either."""


@dataclass(frozen=True)
class Observation:
    """One value: of which pair, and of which picture in it."""

    pair: Hashable
    image: Hashable
    value: float


def bootstrap_mean(
    values: ArrayLike,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Percentile interval of the mean of independent values.

    Args:
        values: one value per independent unit, at least one.
        seed: of the resampling; the same seed gives the same interval.
        resamples: number of bootstrap samples.
        confidence: share of the resampled means inside the interval, in (0, 1).

    Returns:
        The lower and the upper bound.
    """
    units_P = np.asarray(values, np.float64)
    assert units_P.ndim == 1, "one value per unit"
    assert 0.0 < confidence < 1.0, confidence
    # How often each unit is drawn, (resamples, P): one matrix product instead of a loop.
    weights = np.full(len(units_P), 1.0 / len(units_P))
    counts = np.random.default_rng(seed).multinomial(len(units_P), weights, size=resamples)
    means = counts @ (units_P - units_P[0]) / len(units_P) + units_P[0]
    low, high = np.quantile(means, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def summarize(observations: Iterable[Observation], seed: int = 0) -> Interval:
    """Mean over pairs with its interval; over the pictures of the pair if there is only one.

    Args:
        observations: at least one.
        seed: of the resampling.
    """
    by_pair: dict[Hashable, list[float]] = defaultdict(list)
    for observation in observations:
        by_pair[observation.pair].append(observation.value)
    assert by_pair, "no observation"
    if len(by_pair) > 1:
        units, unit = [float(np.mean(values)) for values in by_pair.values()], "pairs"
    else:
        units, unit = next(iter(by_pair.values())), "pictures"
    mean = float(np.mean(units))
    if len(units) == 1:
        return Interval(mean, float("nan"), float("nan"), 1, "none")
    low, high = bootstrap_mean(units, seed)
    return Interval(mean, low, high, len(units), unit)


def paired_difference(
    ours: Iterable[Observation], theirs: Iterable[Observation], seed: int = 0
) -> Interval | None:
    """Mean of ours minus theirs over what both were measured on; None if they share nothing.

    Methods start from the same noise, so their difference varies less than either of them: only
    pictures of the same pair, prompt and seed are subtracted.
    """
    mine, other = _by_picture(ours), _by_picture(theirs)
    differences = [
        Observation(key[0], key[1], mine[key] - other[key]) for key in mine if key in other
    ]
    return summarize(differences, seed) if differences else None


def _by_picture(observations: Iterable[Observation]) -> Mapping[tuple[Hashable, Hashable], float]:
    found: dict[tuple[Hashable, Hashable], float] = {}
    for one in observations:
        assert (one.pair, one.image) not in found, "a picture measured twice"
        found[one.pair, one.image] = one.value
    return found
