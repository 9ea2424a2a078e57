"""Content similarity against style similarity, one dot per row, as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from b4m.report.read import Line

_WIDTH, _HEIGHT = 640.0, 460.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 18.0, 16.0, 52.0
Box = tuple[float, float, float, float]  # left, top, width, height
_CHARACTER, _LINE = 7.1, 16.0  # size of a label's letter at 13 px, generous


@dataclass(frozen=True)
class Dot:
    """One row of the chart; `kind` is identity, copy, merged or best."""

    name: str
    kind: str
    content: Line
    style: Line


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[float]

    def __call__(self, value: float) -> float:
        """Pixels of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def scatter(dots: Sequence[Dot]) -> str:
    """The chart; up and to the right is better, curves join equal harmonic means.

    Args:
        dots: at least one.
    """
    x = _scale([dot.content for dot in dots], _LEFT, _WIDTH - _RIGHT)
    y = _scale([dot.style for dot in dots], _HEIGHT - _BOTTOM, _TOP)
    parts = [*_axes(x, y), *_curves(x, y)]
    for dot in dots:
        for left, top, wide, high in _crosses(dot, x, y):
            parts.append(
                f'<line class="bar {dot.kind}" x1="{left:.1f}" x2="{left + wide:.1f}" '
                f'y1="{top:.1f}" y2="{top + high:.1f}"/>'
            )
    placed: list[Box] = [
        (x(dot.content.mean) - 6, y(dot.style.mean) - 6, 12.0, 12.0) for dot in dots
    ]
    placed += [box for dot in dots for box in _crosses(dot, x, y)]
    for dot in dots:
        left, top = x(dot.content.mean), y(dot.style.mean)
        radius = {"best": 7, "merged": 5.5}.get(dot.kind, 4.5)
        parts.append(
            f'<circle class="dot {dot.kind}" cx="{left:.1f}" cy="{top:.1f}" r="{radius}">'
            f"<title>{escape(dot.name)}: content {dot.content.mean:.3f}, "
            f"style {dot.style.mean:.3f}</title></circle>"
        )
    for dot in sorted(dots, key=lambda one: one.kind != "best"):
        parts.append(_label(dot, x(dot.content.mean), y(dot.style.mean), placed))
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        'aria-label="Content similarity against style similarity">' + "".join(parts) + "</svg>"
    )


def _scale(lines: Sequence[Line], start: float, end: float) -> Scale:
    values = [v for line in lines for v in (line.mean, line.low, line.high) if v is not None]
    low, high = min(values), max(values)
    room = max(high - low, 0.05) * 0.12
    low, high = low - room, high + room
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if (high - low) / s <= 7)
    first = int(low / step) - 1
    ticks = [step * n for n in range(first, first + 12) if low <= step * n <= high]
    return Scale(low, high, start, end, ticks)


def _axes(x: Scale, y: Scale) -> list[str]:
    base, side = _HEIGHT - _BOTTOM, _LEFT
    parts = []
    for tick in x.ticks:
        parts.append(
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{base}"/>'
            f'<text class="tick" x="{x(tick):.1f}" y="{base + 18}" text-anchor="middle">'
            f"{tick:.2f}</text>"
        )
    for tick in y.ticks:
        parts.append(
            f'<line class="grid" x1="{side}" x2="{_WIDTH - _RIGHT}" y1="{y(tick):.1f}" '
            f'y2="{y(tick):.1f}"/>'
            f'<text class="tick" x="{side - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">'
            f"{tick:.2f}</text>"
        )
    middle = (_TOP + base) / 2
    return [
        *parts,
        f'<text class="axis" x="{(side + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 10}" '
        'text-anchor="middle">looks like the content &#8594;</text>',
        f'<text class="axis" x="16" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 16 {middle})">looks like the style &#8594;</text>',
    ]


def _curves(x: Scale, y: Scale) -> list[str]:
    """Curves of equal harmonic mean: s = h c / (2 c - h)."""
    parts = []
    for hundredth in range(5, 100, 5):
        level = hundredth / 100
        points = []
        for number in range(81):
            content = x.low + (x.high - x.low) * number / 80
            if 2 * content > level:
                style = level * content / (2 * content - level)
                if y.low <= style <= y.high:
                    points.append(f"{x(content):.1f},{y(style):.1f}")
        if len(points) > 1:
            parts.append(f'<polyline class="level" points="{" ".join(points)}"/>')
    return parts


def _crosses(dot: Dot, x: Scale, y: Scale) -> list[Box]:
    """Intervals of both sides as boxes without breadth."""
    left, top = x(dot.content.mean), y(dot.style.mean)
    boxes = []
    if dot.content.low is not None and dot.content.high is not None:
        boxes.append((x(dot.content.low), top, x(dot.content.high) - x(dot.content.low), 0.0))
    if dot.style.low is not None and dot.style.high is not None:
        boxes.append((left, y(dot.style.high), 0.0, y(dot.style.low) - y(dot.style.high)))
    return boxes


def _label(dot: Dot, left: float, top: float, placed: list[Box]) -> str:
    """The name beside its dot, at the first of several places where it covers nothing."""
    wide = len(dot.name) * _CHARACTER
    offsets = [(11.0, -_LINE / 2), (-11.0 - wide, -_LINE / 2)]
    for away in (10.0, 26.0, 42.0):
        offsets += [
            (dx, dy) for dy in (-away - _LINE, away) for dx in (-wide / 2, 6.0, -6.0 - wide)
        ]
    boxes = [(left + dx, top + dy, wide, _LINE) for dx, dy in offsets]
    inside = [box for box in boxes if _LEFT <= box[0] and box[0] + wide <= _WIDTH - 2]
    free = [box for box in inside if not any(_overlap(box, other) for other in placed)]
    box = (free or inside or boxes)[0]
    placed.append(box)
    return (
        f'<text class="name {dot.kind}" x="{box[0]:.1f}" y="{box[1] + 12:.1f}">'
        f"{escape(dot.name)}</text>"
    )


def _overlap(one: Box, two: Box) -> bool:
    return (
        one[0] < two[0] + two[2]
        and two[0] < one[0] + one[2]
        and one[1] < two[1] + two[3]
        and two[1] < one[1] + one[3]
    )
