"""The page: images first, then how they compare, then what the numbers mean and come from.

Here is what the templates show; how it looks is in templates/, which escape every text themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from b4m.evaluation.checks import sanity
from b4m.evaluation.samples import Sample
from b4m.evaluation.statistics import Estimate
from b4m.evaluation.tables import PIXELS, UNSAMPLED
from b4m.evaluation.times import Spent
from b4m.report import chart
from b4m.report.images import BUDGET, data_uris
from b4m.report.load import Pair, ReportData
from b4m.report.names import BASELINES, PARTS, name_of
from b4m.report.standings import Standing, costs, standings
from b4m.report.summary import caveats, glossary, headline, words_of

_NEITHER = ("_nearest_training", "_diversity")  # more of it is not better
_FURTHER = ("_top5", "_csls", *_NEITHER)
_STYLE_IMAGES = 6
_WIDE = 6  # pairs, from which on methods are shown whole and pairs are not shown one by one
_EXTREMES = 7


@dataclass(frozen=True)
class Grid:
    """The images of one pair: a row per label, a column per prompt and seed."""

    pair: Pair
    labels: Sequence[str]
    columns: Sequence[tuple[str, int]]
    """(prompt, seed), prompt by prompt."""
    samples: Mapping[tuple[str, str, int], Sample]
    """By label, prompt and seed."""


@dataclass(frozen=True)
class Column:
    """One metric in the table of all scores."""

    metric: str
    encoder: str
    title: str
    form: str
    top: float
    """The best mean of the merged rows; NaN where more is not better."""


def render(data: ReportData, title: str = "", spent: Spent | None = None) -> str:
    """The whole page as text.

    Args:
        data: what is shown.
        title: heading; made from the content and the style if empty.
        spent: what the comparison cost, where it is known.
    """
    environment = Environment(
        loader=PackageLoader("b4m.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "name": lambda label: name_of(label)[0],
        "about": lambda label: name_of(label)[1],
        "form": format,
        "flat": _flat,
    }
    environment.tests["hash"] = _is_hash
    return environment.get_template("page.html").render(
        title=title or _title(data, data.pairs),
        data=data,
        provenance=data.scores.provenance,
        uris=data_uris(_paths(data), BUDGET if len(data.pairs) <= _WIDE else 2 * BUDGET),
        wide=len(data.pairs) > _WIDE,
        firsts={label: _first_images(data, label) for label in data.labels},
        extremes=_extremes(data) if len(data.pairs) > _WIDE else {},
        standings=[(one, _frontier(one)) for one in standings(data)],
        costs=costs(spent or Spent(), data.labels),
        checks=[
            (check, _words(data, check.metric, check.encoder))
            for check in sanity(data.scores.summary, data.labels, BASELINES[0])
        ],
        parts=PARTS,
        style_images=_STYLE_IMAGES,
        best=data.best(),
        first=_first_images(data),
        words=lambda kind, name: words_of(data, kind, name),
        pair_title=lambda pair: _title(data, [pair]),
        headline=headline(data),
        glossary=glossary(data),
        caveats=caveats(data),
        baselines=BASELINES,
        copies=UNSAMPLED,
        grids=[_grid(data, pair) for pair in data.pairs] if len(data.pairs) <= _WIDE else [],
        compared=[label for label in data.merged if data.difference(label, "harmonic")],
        chart=chart.layout(_marks(data)),
        columns=_columns(data),
    )


def _paths(data: ReportData) -> list[Path]:
    """Every image of the page."""
    if len(data.pairs) > _WIDE:
        shown = [one for label in data.labels for one in _first_images(data, label).values()]
        shown += [one for part in _extremes(data).values() for one, _ in part]
        paths = [sample.path for sample in shown]
    else:
        paths = [one.path for one in data.samples if one.label in data.labels]
    for content, style in data.pairs:
        paths += data.prepared.concept("content", content).trained[:1]
        paths += data.prepared.concept("style", style).trained[:_STYLE_IMAGES]
        if (content, style) in data.prepared.ground_truths:
            paths.append(data.prepared.ground_truths[content, style].path)
    return paths


def _title(data: ReportData, pairs: Sequence[Pair]) -> str:
    contents, styles = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    content, style = words_of(data, "content", contents[0]), words_of(data, "style", styles[0])
    first = content if len(contents) == 1 else f"{len(contents)} contents"
    last = f"{style} style" if len(styles) == 1 else f"{len(styles)} styles"
    return f"{first[:1].upper()}{first[1:]} in {last}"


def _first_images(data: ReportData, label: str = "") -> dict[Pair, Sample]:
    """A row's first image of each pair; the best row's if none is named."""
    label = label or data.best()
    samples = [sample for sample in data.samples if sample.label == label]
    return {data.pair_of(sample): sample for sample in reversed(samples)}


def _extremes(data: ReportData) -> dict[str, list[tuple[Sample, float]]]:
    """The best row's images that score highest and lowest, with their scores."""
    _, metric, encoder = data.key("", data.primary_metric)
    table = data.scores.table
    own = table[
        (table["method"] == data.best())
        & (table["metric"] == metric)
        & (table["encoder"] == encoder)
    ]
    columns = (own["content"], own["style"], own["prompt"], own["seed"], own["value"])
    scores = {tuple(row[:4]): row[4] for row in zip(*columns, strict=True)}
    scored = [
        (sample, float(scores[*data.pair_of(sample), sample.prompt, sample.seed]))
        for sample in data.samples
        if sample.label == data.best()
        and (*data.pair_of(sample), sample.prompt, sample.seed) in scores
    ]
    ranked = sorted(scored, key=lambda one: -one[1])
    return {"Best": ranked[:_EXTREMES], "Worst": ranked[::-1][:_EXTREMES]}


def _frontier(standing: Standing) -> chart.Chart:
    """Every row's curve; the mark stands at its own strength."""
    marks, lines = [], []
    for row, curve in standing.curves.items():
        if row in UNSAMPLED:
            continue
        points = {strength: (content, style) for strength, content, style in curve.means}
        if 0.0 not in points:
            continue
        kind = "best" if row == standing.against else "baseline" if row in BASELINES else "merged"
        sides = (Estimate(value, nan, nan, 0, "none") for value in points[0.0])
        marks.append(chart.Mark(name_of(row)[0], kind, *sides))
        lines.append(list(points.values()) if len(points) > 1 else [])
    scale = "share named right" if standing.axes.share else "base 0, ground truth 1"
    return chart.layout(marks, lines, (f"content ({scale})", f"style ({scale})"))


def _grid(data: ReportData, pair: Pair) -> Grid:
    samples = {
        (sample.label, sample.prompt, sample.seed): sample
        for sample in data.samples
        if data.pair_of(sample) == pair
    }
    prompts = list(dict.fromkeys(prompt for _, prompt, _ in samples))
    columns = dict.fromkeys((prompt, seed) for _, prompt, seed in samples)
    return Grid(
        pair=pair,
        labels=[label for label in data.labels if label in {key[0] for key in samples}],
        columns=sorted(columns, key=lambda column: prompts.index(column[0])),
        samples=samples,
    )


def _marks(data: ReportData) -> list[chart.Mark]:
    marks = []
    for label in (*data.labels, *UNSAMPLED):
        content, style = data.score(label, "content"), data.score(label, data.style_part)
        if content is None or style is None:
            continue
        kind = "baseline" if label in BASELINES else "copy" if label in UNSAMPLED else "merged"
        kind = "best" if label == data.best() else kind
        marks.append(chart.Mark(name_of(label)[0], kind, content, style))
    return marks


def _columns(data: ReportData) -> dict[str, list[Column]]:
    """The columns of all scores by the heading of their table; the first one has none."""
    primary = data.evaluator["id"]
    keys = dict.fromkeys((encoder, metric) for _, metric, encoder in data.scores.summary)
    tables: dict[str, list[Column]] = {}
    for encoder, metric in sorted(keys, key=lambda key: key[1].endswith(_FURTHER)):
        if (metric, encoder) in data.blind:
            continue  # a copy of the style does not win: this is no score of style
        heading = "Copying, diversity and further checks" if metric.endswith(_FURTHER) else ""
        if encoder not in (primary, PIXELS):
            heading = f"Checked by {encoder}"
        means = [
            one.mean
            for label in data.merged
            if (one := data.scores.summary.get((label, metric, encoder)))
        ]
        column = Column(
            metric,
            encoder,
            title=_words(data, metric, encoder),
            form=".1f" if metric.startswith("psnr") else ".0%" if "_named" in metric else ".3f",
            top=nan if metric.endswith(_NEITHER) else max(means, default=nan),
        )
        tables.setdefault(heading, []).append(column)
    return dict(sorted(tables.items(), key=lambda table: table[0].startswith("Checked")))


def _words(data: ReportData, metric: str, encoder: str) -> str:
    """The word for a metric, whoever measured it."""
    titles = {name: title for name, title, _ in glossary(data)}
    prefixes = {one["id"]: one["metric"] for one in data.scores.provenance["encoders"]}
    part = metric.removeprefix(f"{prefixes.get(encoder, '')}_")
    return titles.get(metric) or titles.get(f"{data.evaluator['metric']}_{part}", metric)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values as (dotted name, value); empty ones are left out."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif value not in ("", None):
            rows.append((f"{prefix}{key}", value))
    return rows


def _is_hash(value: object) -> bool:
    """Whether a text is hexadecimal digests, which are read in a fixed-width face."""
    text = str(value)
    return len(text) >= 12 and set(text) <= set("0123456789abcdef, +")
