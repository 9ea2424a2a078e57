"""Whether scores may be believed: rows whose order is known, and styles that a score does not see.

An evaluator that ranks a copy of the style's own images below a generated one does not measure
style, and one that finds the base nearer to the answer than a customized model measures nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from b4m.evaluation.tables import COPY_OF_STYLE, GROUND_TRUTH, Estimates

_OF_STYLE = ("_style", "_style_csls")


@dataclass(frozen=True)
class Check:
    """One expectation of a score: which row should be where, and which row is instead."""

    metric: str
    encoder: str
    claim: str
    holds: bool
    instead: str = ""


def blind_styles(summary: Estimates, rows: Sequence[str]) -> dict[tuple[str, str], str]:
    """Style scores on which a copy of the style's images does not win, with the row that does.

    Args:
        summary: means by (method, metric, encoder).
        rows: sampled rows that the copy has to beat.

    Returns:
        The winner by (metric, encoder). The harmonic mean with such a score is among them.
    """
    blind: dict[tuple[str, str], str] = {}
    for metric, encoder in _measured(summary):
        copy = summary.get((COPY_OF_STYLE, metric, encoder))
        if copy is None or not metric.endswith(_OF_STYLE):
            continue
        best, mean = _extreme(summary, rows, metric, encoder, highest=True)
        if mean >= copy.mean:
            blind[metric, encoder] = best
            if metric.endswith("_style"):
                blind[f"{metric.removesuffix('_style')}_harmonic", encoder] = best
    return blind


def sanity(summary: Estimates, rows: Sequence[str], base: str) -> list[Check]:
    """Whether the ground truth is highest and the base lowest, score by score.

    Args:
        summary: means by (method, metric, encoder).
        rows: sampled rows at their own strength, the base among them.
        base: the base model's row.
    """
    checks = []
    for metric, encoder in _measured(summary):
        if (GROUND_TRUTH, metric, encoder) not in summary:
            continue
        if metric.endswith(("_named", "_harmonic")):
            best, mean = _extreme(summary, rows, metric, encoder, highest=True)
            holds = summary[GROUND_TRUTH, metric, encoder].mean >= mean
            claim = "the ground truth is highest"
            checks.append(Check(metric, encoder, claim, holds, "" if holds else best))
        if metric.endswith(("_truth", "content_named")) and (base, metric, encoder) in summary:
            worst, mean = _extreme(summary, rows, metric, encoder, highest=False)
            holds = summary[base, metric, encoder].mean <= mean
            claim = "the base is lowest"
            checks.append(Check(metric, encoder, claim, holds, "" if holds else worst))
    return checks


def _measured(summary: Estimates) -> Iterable[tuple[str, str]]:
    return dict.fromkeys((metric, encoder) for _, metric, encoder in summary)


def _extreme(
    summary: Estimates, rows: Sequence[str], metric: str, encoder: str, highest: bool
) -> tuple[str, float]:
    """The row with the highest or the lowest mean, and that mean."""
    sign = 1.0 if highest else -1.0
    known = [
        (row, summary[row, metric, encoder].mean)
        for row in rows
        if (row, metric, encoder) in summary
    ]
    return max(known, key=lambda one: sign * one[1], default=("", -sign * float("inf")))
