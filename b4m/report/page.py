"""The page: images first, then how they compare, then what the numbers mean and come from.

Here is what the templates show; how it looks is in templates/, which escape every text themselves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from b4m.evaluate.references import Concept
from b4m.evaluate.samples import Sample
from b4m.evaluate.statistics import Estimate
from b4m.evaluate.tables import COPIES, PIXELS
from b4m.report import chart
from b4m.report.images import data_uris
from b4m.report.load import Pair, ReportData
from b4m.report.names import BASELINES, name_of
from b4m.report.summary import caveats, glossary, headline, words_of

_PARTS = {"content": "Content", "style": "Style", "harmonic": "Both", "truth": "Truth"}
_STYLE_IMAGES = 6


@dataclass(frozen=True)
class Row:
    """One label in the grid of a pair."""

    label: str
    first_merged: bool
    """Whether baselines end above it."""
    samples: Sequence[Sample | None]
    scores: Mapping[str, float]
    """The primary evaluator's means by part."""


@dataclass(frozen=True)
class Grid:
    """The images of one pair: a row per label, a column per prompt and seed."""

    title: str
    prompts: Sequence[tuple[str, int]]
    """Each prompt with the number of its columns."""
    seeds: Sequence[int]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Column:
    """One metric in the table of all scores."""

    title: str
    form: str
    estimates: Mapping[str, Estimate]
    """By label."""

    @property
    def top(self) -> set[str]:
        """The best of the merged rows."""
        merged = {k: v.mean for k, v in self.estimates.items() if k not in (*BASELINES, *COPIES)}
        return {label for label, mean in merged.items() if mean == max(merged.values())}


@dataclass(frozen=True)
class Table:
    """All scores by one encoder; those that need none stand with the primary one's."""

    encoder: str
    labels: Sequence[str]
    columns: Sequence[Column]


def render(data: ReportData, title: str = "") -> str:
    """The whole page as text.

    Args:
        data: what is shown.
        title: heading; made from the content and the style if empty.
    """
    loader = PackageLoader("b4m.report")
    environment = Environment(
        loader=loader,
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
        "rows": lambda entries, *keys: [[entry[key] for key in keys] for entry in entries],
    }
    environment.tests["hash"] = _is_hash
    return environment.get_template("page.html").render(
        title=title or _title(data),
        data=data,
        provenance=data.scores.provenance,
        uris=data_uris(_paths(data)),
        parts=_PARTS,
        best=data.best(),
        first=_first_images(data),
        words=lambda kind, name: words_of(data, kind, name),
        concepts=lambda pair: _concepts(data, pair),
        headline=headline(data),
        glossary=glossary(data),
        caveats=caveats(data),
        grids=[_grid(data, pair) for pair in data.pairs],
        chart=chart.layout(_marks(data)),
        differences=_differences(data),
        over=_over(data),
        tables=list(_tables(data)),
        **_provenance(data),
    )


def _concepts(data: ReportData, pair: Pair) -> tuple[Concept, Concept]:
    return data.prepared.concept("content", pair[0]), data.prepared.concept("style", pair[1])


def _paths(data: ReportData) -> list[Path]:
    """Every image of the page."""
    paths = [sample.path for sample in data.samples]
    for pair in data.pairs:
        content, style = _concepts(data, pair)
        paths += [*content.trained[:1], *style.trained[:_STYLE_IMAGES]]
        if pair in data.prepared.ground_truths:
            paths.append(data.prepared.ground_truths[pair].path)
    return paths


def _title(data: ReportData) -> str:
    contents, styles = (list(dict.fromkeys(names)) for names in zip(*data.pairs, strict=True))
    content = words_of(data, "content", contents[0])
    style = words_of(data, "style", styles[0])
    first = _capital(content) if len(contents) == 1 else f"{len(contents)} contents"
    return f"{first} in {f'{style} style' if len(styles) == 1 else f'{len(styles)} styles'}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _first_images(data: ReportData) -> dict[Pair, Sample]:
    """The best row's first image of each pair."""
    first: dict[Pair, Sample] = {}
    for sample in data.samples:
        if sample.label == data.best():
            first.setdefault(data.pair_of(sample), sample)
    return first


def _grid(data: ReportData, pair: Pair) -> Grid:
    own = [sample for sample in data.samples if data.pair_of(sample) == pair]
    prompts = list(dict.fromkeys(sample.prompt for sample in own))
    columns = sorted(
        dict.fromkeys((sample.prompt, sample.seed) for sample in own),
        key=lambda column: prompts.index(column[0]),
    )
    by_key = {(sample.label, sample.prompt, sample.seed): sample for sample in own}
    labels = [label for label in data.labels if any(label == key[0] for key in by_key)]
    merged = [label for label in labels if label not in BASELINES]
    content, style = words_of(data, "content", pair[0]), words_of(data, "style", pair[1])
    return Grid(
        title=_capital(f"{content} in {style} style"),
        prompts=[(one, sum(one == prompt for prompt, _ in columns)) for one in prompts],
        seeds=[seed for _, seed in columns],
        rows=[
            Row(
                label=label,
                first_merged=label in merged[:1] and label != labels[0],
                samples=[by_key.get((label, *column)) for column in columns],
                scores={
                    part: value
                    for part in _PARTS
                    if (value := data.score_in_pair(label, pair, part)) is not None
                },
            )
            for label in labels
        ],
    )


def _marks(data: ReportData) -> list[chart.Mark]:
    marks = []
    for label in (*data.labels, *COPIES):
        content, style = data.score(label, "content"), data.score(label, "style")
        if content is None or style is None:
            continue
        kind = "baseline" if label in BASELINES else "copy" if label in COPIES else "merged"
        kind = "best" if label == data.best() else kind
        marks.append(chart.Mark(name_of(label)[0], kind, content, style))
    return marks


def _differences(data: ReportData) -> list[tuple[str, dict[str, Estimate]]]:
    """Merged rows minus the direct merge: in the harmonic mean, and in the primary metric."""
    parts = dict.fromkeys(("harmonic", data.primary_metric))
    rows = []
    for label in data.merged:
        estimates = {part: one for part in parts if (one := data.difference(label, part))}
        if len(estimates) == len(parts):
            rows.append((label, estimates))
    return rows


def _over(data: ReportData) -> str:
    estimate = next(iter(data.scores.summary.values()))
    return f"{estimate.n} {estimate.unit}" if estimate.unit != "none" else "one image"


def _tables(data: ReportData) -> Iterator[Table]:
    titles = {metric: word for metric, word, _ in glossary(data)}
    summary = data.scores.summary
    primary = data.evaluator["id"]
    for encoder in dict.fromkeys(encoder for _, _, encoder in summary if encoder != PIXELS):
        shown = (encoder, PIXELS) if encoder == primary else (encoder,)
        metrics = dict.fromkeys((metric, by) for _, metric, by in summary if by in shown)
        columns = [
            Column(
                title=titles.get(metric) or _PARTS.get(metric.rpartition("_")[2], metric),
                form=_form(metric),
                estimates={
                    label: summary[label, metric, by]
                    for label in (*data.labels, *COPIES)
                    if (label, metric, by) in summary
                },
            )
            for metric, by in metrics
        ]
        yield Table(encoder, [*data.labels, *COPIES], columns)


def _form(metric: str) -> str:
    return ".1f" if metric.startswith("psnr") else ".0%" if metric.endswith("_named") else ".3f"


def _provenance(data: ReportData) -> dict[str, Any]:
    """Rows of the last part of the page."""
    provenance = data.scores.provenance
    return {
        "runs": [
            (
                name_of(run["label"])[0],
                run["method"],
                run["steps"],
                run["guidance"],
                run["base_id"],
                run["base_hash"][:12],
                run["adapter_hash"][:12] or "none",
            )
            for run in provenance["samples"]
        ],
        "references": [
            (
                entry["kind"],
                entry["concept"],
                "held back from training"
                if entry["role"] == "reference"
                else "the training images",
                len(entry["files"]),
                ", ".join(file["sha256"][:12] for file in entry["files"]),
            )
            for entry in provenance["references"]
        ],
        "versions": {
            "created": provenance["created"],
            "b4m": provenance["b4m_version"],
            "git commit": provenance["git_commit"] or "unknown",
            "data (DVC md5)": provenance["data_md5"] or "not under DVC",
            "seeds": ", ".join(map(str, provenance["seeds"])),
            "statistics": provenance["statistics"],
        },
    }


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
