"""Scores as tables: one row per picture and metric, their summary, differences to a baseline."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

from b4m.evaluate.references import Concept
from b4m.evaluate.statistics import Interval, Observation, paired_difference, summarize

COPY_OF_CONTENT = "copy of the content"
COPY_OF_STYLE = "copy of the style"
COPIES = (COPY_OF_CONTENT, COPY_OF_STYLE)
PIXELS = "pixels"
"""Stands in the column `encoder` for what is measured without one."""
SCORE_COLUMNS = (
    "method",
    "content",
    "style",
    "seed",
    "metric",
    "value",
    "encoder",
    "prompt",
    "file",
)
SUMMARY_COLUMNS = ("method", "metric", "mean", "ci_low", "ci_high", "n", "unit", "encoder")
DIFFERENCE_COLUMNS = ("method", "baseline", *SUMMARY_COLUMNS[1:])


@dataclass(frozen=True)
class Subject:
    """One picture to be scored: a sampled one, or a training picture that stands for copying."""

    method: str
    content: Concept
    style: Concept
    prompt: str
    seed: int
    file: str
    path: Path

    @property
    def pair(self) -> tuple[str, str]:
        """The unit of the statistics."""
        return self.content.name, self.style.name


@dataclass(frozen=True)
class Score:
    """One row of scores.csv."""

    subject: Subject
    metric: str
    value: float
    encoder: str


def write_scores(
    out: Path, rows: Sequence[Score], baseline: str, provenance: Mapping[str, object]
) -> Path:
    """Write scores.csv, summary.csv, differences.csv and provenance.json; the last one last.

    Args:
        out: folder, made if needed.
        rows: all scores.
        baseline: method that the others are compared with in differences.csv; "" for none.
        provenance: what a reader needs to repeat the numbers.
    """
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "scores.csv", _table(SCORE_COLUMNS, map(_row, rows)))
    _write(out / "summary.csv", _table(SUMMARY_COLUMNS, _summary(rows)))
    _write(out / "differences.csv", _table(DIFFERENCE_COLUMNS, _differences(rows, baseline)))
    _write(out / "provenance.json", json.dumps(provenance, indent=2) + "\n")
    return out


def _observations(rows: Iterable[Score]) -> dict[tuple[str, str, str], list[Observation]]:
    """Values by method, metric and encoder."""
    groups: dict[tuple[str, str, str], list[Observation]] = {}
    for row in rows:
        one = row.subject
        observation = Observation(one.pair, (one.prompt, one.seed), row.value)
        groups.setdefault((one.method, row.metric, row.encoder), []).append(observation)
    return groups


def _summary(rows: Sequence[Score]) -> list[tuple[object, ...]]:
    return [
        (method, metric, *_cells(summarize(observations)), encoder)
        for (method, metric, encoder), observations in _observations(rows).items()
    ]


def _differences(rows: Sequence[Score], baseline: str) -> list[tuple[object, ...]]:
    """Every sampled method minus the baseline, on the same pairs, prompts and seeds."""
    groups = _observations(rows)
    found: list[tuple[object, ...]] = []
    for (method, metric, encoder), ours in groups.items():
        theirs = groups.get((baseline, metric, encoder))
        if theirs is None or method in (baseline, *COPIES):
            continue
        difference = paired_difference(ours, theirs)
        if difference is not None:
            found.append((method, baseline, metric, *_cells(difference), encoder))
    return found


def _cells(interval: Interval) -> tuple[object, ...]:
    numbers = (interval.mean, interval.low, interval.high)
    return (*map(_number, numbers), interval.n, interval.unit)


def _row(score: Score) -> tuple[object, ...]:
    one = score.subject
    return (
        one.method,
        one.content.name,
        one.style.name,
        one.seed,
        score.metric,
        _number(score.value),
        score.encoder,
        one.prompt,
        one.file,
    )


def _number(value: float) -> str:
    return "" if isnan(value) else f"{value:.6f}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
