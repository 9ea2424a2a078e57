"""Content against style over strengths: how much of the plane a method reaches.

A method drawn at several strengths is a curve of points (content, style), each the mean over pairs.
Its hypervolume is the area that these points dominate above a reference point (Zitzler and Thiele
1998, doi 10.1007/BFb0056872): a method that can only trade one side for the other has little of it,
and no single strength has to be chosen before methods are compared.

Axes measured by likeness are put on a scale on which the base model is 0 and the ground truth 1,
both means over all pairs; shares of images that are named right are such a scale already. Intervals
resample pairs, the same ones for both methods where their difference is taken.

Shape legend: P pairs, K strengths, 2 axes, B resamples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from b4m.evaluation.statistics import PAIR, Estimate, interval_of
from b4m.evaluation.tables import GROUND_TRUTH

Points = NDArray[np.float64]
Parse = Callable[[str], tuple[str, float]]


@dataclass(frozen=True)
class Axes:
    """What a frontier is drawn over.

    Attributes:
        name: for people.
        encoders: which measured content and style.
        content: metric of the content.
        style: metric of the style.
        share: both are shares of images, whose scale is their own.
    """

    name: str
    encoders: tuple[str, str]
    content: str
    style: str
    share: bool = False


@dataclass(frozen=True)
class Curve:
    """A row at all its strengths.

    Attributes:
        row: its label.
        strengths: K of them, in rising order.
        points_PK2: (content, style) of every pair, on the axes' scale.
    """

    row: str
    strengths: tuple[float, ...]
    points_PK2: Points

    @property
    def means(self) -> list[tuple[float, float, float]]:
        """Strength, content and style, each the mean over pairs."""
        means_K2 = self.points_PK2.mean(axis=0)
        return [(t, float(c), float(s)) for t, (c, s) in zip(self.strengths, means_K2, strict=True)]

    def volume(self) -> Estimate:
        """The hypervolume with its interval over pairs."""
        return difference([self], [])


def hypervolume(points: Points, reference: Sequence[float] = (0.0, 0.0)) -> NDArray[np.float64]:
    """Area that points dominate above a reference, both axes the larger the better.

    Args:
        points: (..., K, 2); points that are not above the reference on both axes add nothing.
        reference: the corner that everything dominates.

    Returns:
        Areas (...).
    """
    above = np.maximum(np.asarray(points, np.float64) - np.asarray(reference), 0.0)
    order = np.argsort(-above[..., 0], axis=-1, kind="stable")
    x_K = np.take_along_axis(above[..., 0], order, axis=-1)
    highest_K = np.maximum.accumulate(np.take_along_axis(above[..., 1], order, axis=-1), axis=-1)
    following_K = np.concatenate([x_K[..., 1:], np.zeros_like(x_K[..., :1])], axis=-1)
    return np.asarray(((x_K - following_K) * highest_K).sum(axis=-1))


def difference(better: Sequence[Curve], worse: Sequence[Curve]) -> Estimate:
    """Mean hypervolume of some rows minus that of others, on the same pairs.

    Args:
        better: at least one row.
        worse: none for the volume itself.
    """

    def volumes(picked: NDArray[np.int64], curves: Sequence[Curve]) -> NDArray[np.float64]:
        of_each = [hypervolume(curve.points_PK2[picked].mean(axis=-3)) for curve in curves]
        return np.asarray(np.mean(of_each, axis=0)) if of_each else np.zeros(picked.shape[:-1])

    def statistic(picked: NDArray[np.int64]) -> NDArray[np.float64]:
        return volumes(picked, better) - volumes(picked, worse)

    return interval_of(statistic, len(better[0].points_PK2))


def curves(table: pd.DataFrame, axes: Axes, parse: Parse, base: str) -> dict[str, Curve]:
    """The curve of every row by its label.

    Args:
        table: the long table of scores.
        axes: what is measured.
        parse: from the label of images to the row's label and its strength.
        base: label of the base model, 0 on scaled axes.

    Returns:
        Rows with the same pairs as the ground truth; none where an axis was not measured or there
        is no ground truth or no base to scale it by.
    """
    means = _pair_means(table, axes)
    if means is None or not {base, GROUND_TRUTH} <= set(means.index.get_level_values("method")):
        return {}
    pairs = means.loc[GROUND_TRUTH].index
    low, high = np.zeros(2), np.ones(2)
    if not axes.share:
        low = means.loc[base].reindex(pairs).to_numpy().mean(axis=0)
        high = means.loc[GROUND_TRUTH].to_numpy().mean(axis=0)
    points: dict[str, dict[float, Points]] = {}
    for label in means.index.get_level_values("method").unique():
        own_P2 = means.loc[label].reindex(pairs).to_numpy()
        if np.isfinite(own_P2).all():
            row, strength = parse(str(label))
            points.setdefault(row, {})[strength] = (own_P2 - low) / (high - low)
    return {
        row: Curve(row, tuple(sorted(of)), np.stack([of[t] for t in sorted(of)], axis=1))
        for row, of in points.items()
    }


def _pair_means(table: pd.DataFrame, axes: Axes) -> pd.DataFrame | None:
    """Columns content and style, indexed by method and pair; None if one was not measured."""
    columns: Mapping[str, pd.Series] = {
        side: table[(table["metric"] == metric) & (table["encoder"] == encoder)]
        .groupby(["method", *PAIR])["value"]
        .mean()
        for side, metric, encoder in zip(
            ("content_axis", "style_axis"), (axes.content, axes.style), axes.encoders, strict=True
        )
    }
    if any(column.empty for column in columns.values()):
        return None
    return pd.DataFrame(columns)
