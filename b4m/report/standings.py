"""Who stands where: frontiers over strengths, what they decide, and what each method costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

from b4m.evaluation.frontier import Axes, Curve, curves, difference
from b4m.evaluation.kinds import STYLE_ONLY
from b4m.evaluation.statistics import Estimate
from b4m.evaluation.times import Spent
from b4m.methods import METHODS
from b4m.plan import BASELINES, REFERENCE_METHOD, row_and_strength
from b4m.report.load import ReportData
from b4m.report.names import name_of

DEFAULT_METHOD = "b4m"
"""The method that a user gets without asking; the others are compared with it."""
_BASE = BASELINES[0].label


@dataclass(frozen=True)
class Verdict:
    """A claim about hypervolumes, and what the paired difference says of it."""

    claim: str
    difference: Estimate

    @property
    def answer(self) -> str:
        """Yes, no, or within noise."""
        if not self.difference.decided:
            return "within noise"
        return "yes" if self.difference.mean > 0 else "no"


@dataclass(frozen=True)
class Standing:
    """All rows over one pair of axes.

    Attributes:
        axes: what is measured.
        curves: of each row, by its label.
    """

    axes: Axes
    curves: Mapping[str, Curve]

    @cached_property
    def against(self) -> str:
        """The row that the others are compared with."""
        return DEFAULT_METHOD if DEFAULT_METHOD in self.curves else REFERENCE_METHOD

    @cached_property
    def ranked(self) -> list[tuple[str, Estimate, Estimate | None]]:
        """Row, hypervolume, and difference to the row compared with; the largest first."""
        other = self.curves.get(self.against)
        rows = [
            (
                row,
                curve.volume(),
                difference([curve], [other]) if other and row != self.against else None,
            )
            for row, curve in self.curves.items()
        ]
        return sorted(rows, key=lambda one: -one[1].mean)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The claims that can be decided with the rows there are."""
        found = []
        for claim, better, worse in _claims(list(self.curves)):
            if all(row in self.curves for row in (*better, *worse)):
                sides = [[self.curves[row] for row in rows] for rows in (better, worse)]
                found.append(Verdict(claim, difference(*sides)))
        return found


def standings(data: ReportData) -> list[Standing]:
    """Frontiers over shares that are named right, over likeness, and by independent encoders."""
    found = [
        Standing(axes, curves(data.scores.table, axes, row_and_strength, _BASE))
        for axes in _axes(data)
    ]
    return [one for one in found if one.curves]


def costs(spent: Spent, rows: Sequence[str]) -> dict[str, tuple[float, float, float, int]]:
    """By row: seconds of a pair's trainings, its merge and one set of images; numbers in its file.

    The two trainings of a pair are counted in full, although other pairs and rows share them.
    """
    known: dict[tuple[str, str], list[float]] = {}
    for time in spent.times:
        known.setdefault((time.stage, time.method), []).append(time.seconds)

    def seconds(stage: str, method: str) -> float:
        return mean(known.get((stage, method), [0.0]))

    found: dict[str, tuple[float, float, float, int]] = {}
    if not spent.times:
        return found
    for label in rows:
        name = label.split(" ")[0]
        if name in METHODS:
            trained = 1 if METHODS[name].result == "adapter" else 2
            found[label] = (
                trained * seconds("training", METHODS[name].training),
                seconds("merge", name),
                seconds("images", label),
                spent.numbers.get(label, 0),
            )
    return found


def _axes(data: ReportData) -> Iterator[Axes]:
    """What can be drawn over: style scores on which a copy of the style wins, and no others."""
    measured = {(metric, encoder) for _, metric, encoder in data.scores.summary}
    encoders = [(one["id"], one["metric"]) for one in data.scores.provenance["encoders"]]
    styles = {
        own: next(
            (
                f"{metric}_{part}"
                for part in ("style", "style_csls")
                if (f"{metric}_{part}", own) in measured
                and (f"{metric}_{part}", own) not in data.blind
            ),
            "",
        )
        for own, metric in encoders
    }
    first, prefix = encoders[0]
    if {("content_named", first), ("style_named", first)} <= measured:
        both = (first, first)
        yield Axes(f"named right by {first}", both, "content_named", "style_named", share=True)
    if styles[first]:
        yield Axes(f"likeness by {first}", (first, first), f"{prefix}_content", styles[first])
    sees = [(own, metric) for own, metric in encoders if metric not in STYLE_ONLY]
    for own, metric in encoders[1:]:
        if styles[own]:
            by, content = (sees[1:] or sees or [(own, metric)])[0]
            who = own if by == own else f"{by} (content) and {own} (style)"
            yield Axes(f"likeness by {who}", (by, own), f"{content}_content", styles[own])


def _claims(rows: Sequence[str]) -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    """A claim in words, the rows that should be better, and those that should be worse."""
    yield "B4M beats joint training", ("b4m",), ("joint",)
    yield "B4M beats the direct merge", ("b4m",), ("direct",)
    yield "DuoLoRA beats ZipLoRA, which trains 18 times as many numbers", ("duolora",), ("ziplora",)
    plain = [row for row in rows if row in METHODS and METHODS[row].result != "adapter"]
    learned = [row for row in plain if METHODS[row].learned]
    free = [row for row in plain if not METHODS[row].learned]
    if learned and free:
        yield "Learned merges beat training-free ones, in the mean", learned, free
    for row in rows:
        method = row.split(" ")[0]
        if row != method and method in METHODS:
            yield f"{name_of(row)[0]} beats {name_of(method)[0]} as it is", (row,), (method,)
