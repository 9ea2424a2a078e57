"""The scores folder: one long table of scores, its summary, differences to a baseline, provenance.

`write_scores` and `read_scores` are the only code that knows these files. All of them are made from
the long table, one row per image and metric.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from b4m.errors import B4MError
from b4m.evaluation.statistics import Estimate, paired_difference, summarize
from b4m.io import read_json, write_whole

COPY_OF_CONTENT = "copy of the content"
COPY_OF_STYLE = "copy of the style"
GROUND_TRUTH = "ground truth"
COPIES = (COPY_OF_CONTENT, COPY_OF_STYLE)
UNSAMPLED = (*COPIES, GROUND_TRUTH)
"""Rows that nobody sampled: images that exist, scored as if a method had drawn them."""
PIXELS = "pixels"
"""Stands in the column `encoder` for what is measured without one."""
IMAGE_COLUMNS = ["method", "content", "style", "prompt", "seed", "file"]
SCORE_COLUMNS = [*IMAGE_COLUMNS, "metric", "value", "encoder"]
_KEY = ["method", "metric", "encoder"]
_NUMBERS = ("seed", "value", "mean", "ci_low", "ci_high", "n")
Estimates = Mapping[tuple[str, str, str], Estimate]


@dataclass(frozen=True)
class Scores:
    """What a scores folder holds."""

    table: pd.DataFrame
    """One row per image and metric, with `SCORE_COLUMNS`."""
    summary: Estimates
    """Means by (method, metric, encoder)."""
    differences: Estimates
    """Method minus baseline on the same images, by (method, metric, encoder)."""
    provenance: Mapping[str, Any]


def write_scores(
    out: Path, table: pd.DataFrame, baseline: str, provenance: Mapping[str, object]
) -> Path:
    """Write scores.csv, summary.csv, differences.csv and provenance.json; the last one last.

    Args:
        out: folder, made if needed.
        table: all scores, with `SCORE_COLUMNS`.
        baseline: method that the others are compared with in differences.csv; "" for none.
        provenance: what a reader needs to repeat the numbers.
    """
    summary = {key: summarize(group) for key, group in _groups(table)}
    differences = _differences(table, baseline)
    write_whole(out / "scores.csv", _csv(table[SCORE_COLUMNS]))
    write_whole(out / "summary.csv", _csv(_frame(summary)))
    against = _frame(differences)
    against.insert(1, "baseline", baseline)
    write_whole(out / "differences.csv", _csv(against))
    write_whole(out / "provenance.json", json.dumps(provenance, indent=2) + "\n")
    return out


def read_scores(folder: Path) -> Scores:
    """Read what `write_scores` has written.

    Raises:
        B4MError: for a missing or damaged file.
    """
    try:
        table = _read(folder / "scores.csv", SCORE_COLUMNS)
        summary, differences = (
            _estimates(folder / name) for name in ("summary.csv", "differences.csv")
        )
        provenance = folder / "provenance.json"
        provenance.stat()  # a missing one is answered as the others are
        return Scores(table, summary, differences, read_json(provenance, "run b4m evaluate again"))
    except FileNotFoundError as error:
        raise B4MError(f"{error.filename} is missing; run b4m evaluate first") from None
    except (OSError, ValueError) as error:
        raise B4MError(f"scores in {folder} cannot be read: {error}") from error


def mean_scores(folder: Path) -> dict[str, float]:
    """Means of summary.csv as METHOD/ENCODER/METRIC, for trackers and dashboards.

    The encoder is part of the name: two CLIP models measure the same metrics.

    Raises:
        B4MError: for a missing or damaged file.
    """
    return {
        f"{method}/{encoder}/{metric}": estimate.mean
        for (method, metric, encoder), estimate in read_scores(folder).summary.items()
    }


def _groups(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    for key, group in table.groupby(_KEY, sort=False):
        method, metric, encoder = map(str, key)
        yield (method, metric, encoder), group


def _differences(table: pd.DataFrame, baseline: str) -> dict[tuple[str, str, str], Estimate]:
    """Every sampled method minus the baseline, on the same pairs, prompts and seeds."""
    groups = dict(_groups(table[~table["method"].isin(UNSAMPLED)]))
    differences = {
        (method, metric, encoder): paired_difference(scores, groups[baseline, metric, encoder])
        for (method, metric, encoder), scores in groups.items()
        if method != baseline and (baseline, metric, encoder) in groups
    }
    return {key: estimate for key, estimate in differences.items() if estimate is not None}


def _frame(estimates: Estimates) -> pd.DataFrame:
    """One row per estimate, the columns of summary.csv."""
    columns = ["method", "metric", "mean", "ci_low", "ci_high", "n", "unit", "encoder"]
    rows = [
        (method, metric, one.mean, one.low, one.high, one.n, one.unit, encoder)
        for (method, metric, encoder), one in estimates.items()
    ]
    return pd.DataFrame(rows, columns=columns)


def _estimates(path: Path) -> Estimates:
    columns = [*_KEY, "mean", "ci_low", "ci_high", "n", "unit"]
    rows: Iterable[tuple[Any, ...]] = _read(path, columns)[columns].itertuples(index=False)
    return {row[:3]: Estimate(*row[3:]) for row in rows}


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """A table whose texts stay texts: a style may be called "NA" or "007"."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [name for name in columns if name not in frame]
    if missing:
        raise B4MError(f"{path} lacks the columns {', '.join(missing)}; run b4m evaluate again")
    numbers = {name: pd.to_numeric(frame[name]) for name in _NUMBERS if name in frame}
    return frame.assign(**numbers)


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.6f", lineterminator="\n")
