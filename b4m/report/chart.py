"""Content similarity against style similarity: where marks, labels and curves stand.

The chart is drawn by templates/chart.svg; here is only its geometry, in SVG units.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from b4m.evaluation.statistics import Estimate

WIDTH, HEIGHT = 640.0, 460.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, WIDTH - 18.0, 16.0, HEIGHT - 52.0
Box = tuple[float, float, float, float]  # left, top, width, height
_CHARACTER, _LINE = 7.8, 16.0  # size of a label's letter at 13 px, generous
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class Mark:
    """One row of the chart; `kind` is baseline, copy, merged or best."""

    name: str
    kind: str
    content: Estimate
    style: Estimate


@dataclass(frozen=True)
class Axis:
    """A linear map from values to SVG units with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]

    def __call__(self, value: float) -> float:
        """SVG units of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Chart:
    """Everything that the template draws."""

    marks: Sequence[Mark]
    x: Axis
    y: Axis
    curves: Sequence[Sequence[tuple[float, float]]]
    """Points of equal harmonic mean of content and style."""
    labels: Sequence[tuple[float, float]]
    """Left end of the base line of each mark's name."""
    paths: Sequence[Sequence[tuple[float, float]]]
    """A line through the strengths of each mark; empty where there is one strength."""
    titles: tuple[str, str]
    """Words on the axes."""
    width: float = WIDTH
    height: float = HEIGHT


def layout(
    marks: Sequence[Mark],
    strengths: Sequence[Sequence[tuple[float, float]]] = (),
    titles: tuple[str, str] = ("content similarity", "style similarity"),
) -> Chart:
    """The chart of some marks; up and to the right is better.

    Args:
        marks: at least one.
        strengths: for each mark (content, style) at all of its strengths, which a line joins;
            without them there are curves of equal harmonic mean.
        titles: words on the axes.
    """
    lines = [point for line in strengths for point in line]
    x = _axis([mark.content for mark in marks], LEFT, RIGHT, [content for content, _ in lines])
    y = _axis([mark.style for mark in marks], BOTTOM, TOP, [style for _, style in lines])
    placed = [(x(mark.content.mean) - 6, y(mark.style.mean) - 6, 12.0, 12.0) for mark in marks]
    placed += [box for mark in marks for box in _crosses(mark, x, y)]
    labels = [(0.0, 0.0)] * len(marks)
    for place in sorted(range(len(marks)), key=lambda number: marks[number].kind != "best"):
        mark = marks[place]
        box = _free_box(mark, x(mark.content.mean), y(mark.style.mean), placed)
        placed.append(box)
        labels[place] = (box[0], box[1] + 12)
    paths = [[(x(content), y(style)) for content, style in line] for line in strengths]
    return Chart(marks, x, y, [] if strengths else _curves(x, y), labels, paths, titles)


def _axis(
    estimates: Sequence[Estimate], start: float, end: float, further: Sequence[float] = ()
) -> Axis:
    values = [*further, *(one.mean for one in estimates)]
    values += [bound for one in estimates if one.bounded for bound in (one.low, one.high)]
    low, high = min(values), max(values)
    room = max(high - low, 0.05) * 0.12
    low, high = low - room, high + room
    step = next((step for step in _STEPS if (high - low) / step <= 7), _STEPS[-1])
    first = int(low / step) - 1
    ticks = [step * n for n in range(first, first + 12) if low <= step * n <= high]
    return Axis(low, high, start, end, ticks)


def _curves(x: Axis, y: Axis) -> list[list[tuple[float, float]]]:
    """Curves of equal harmonic mean h, 0.05 apart: s = h c / (2 c - h)."""
    contents = [x.low + (x.high - x.low) * number / 80 for number in range(81)]
    curves = []
    for level in (hundredth / 100 for hundredth in range(5, 100, 5)):
        points = [(c, level * c / (2 * c - level)) for c in contents if 2 * c > level]
        curve = [(x(c), y(s)) for c, s in points if y.low <= s <= y.high]
        if len(curve) > 1:
            curves.append(curve)
    return curves


def _crosses(mark: Mark, x: Axis, y: Axis) -> list[Box]:
    """Intervals of both sides as boxes without breadth."""
    left, top = x(mark.content.mean), y(mark.style.mean)
    boxes = []
    if mark.content.bounded:
        boxes.append((x(mark.content.low), top, x(mark.content.high) - x(mark.content.low), 0.0))
    if mark.style.bounded:
        boxes.append((left, y(mark.style.high), 0.0, y(mark.style.low) - y(mark.style.high)))
    return boxes


def _free_box(mark: Mark, left: float, top: float, placed: Sequence[Box]) -> Box:
    """The name beside its mark, at the first of several places where it covers nothing."""
    wide = len(mark.name) * _CHARACTER
    offsets = [(11.0, -_LINE / 2), (-11.0 - wide, -_LINE / 2)]
    for away in (10.0, 26.0, 42.0):
        offsets += [
            (dx, dy) for dy in (-away - _LINE, away) for dx in (-wide / 2, 6.0, -6.0 - wide)
        ]
    boxes = [(left + dx, top + dy, wide, _LINE) for dx, dy in offsets]
    inside = [box for box in boxes if LEFT <= box[0] and box[0] + wide <= WIDTH - 2]
    free = [box for box in inside if not any(_overlap(box, other) for other in placed)]
    return (free or inside or boxes)[0]


def _overlap(one: Box, two: Box) -> bool:
    return (
        one[0] < two[0] + two[2]
        and two[0] < one[0] + one[2]
        and one[1] < two[1] + two[3]
        and two[1] < one[1] + one[3]
    )
