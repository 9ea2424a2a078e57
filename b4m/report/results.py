"""A comparison's results as files that are small enough to be committed.

table.md         the tables of the page, for people
run.json         means with intervals, frontiers, verdicts, checks, costs, settings, provenance
scores.csv       one row per row of the comparison, strength and pair: means over seeds
sheet-*.webp     all pairs, one column a method, first seed
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from b4m.data.images import fit_square, load_image
from b4m.evaluation.checks import sanity
from b4m.evaluation.statistics import PAIR, Estimate
from b4m.evaluation.tables import UNSAMPLED
from b4m.evaluation.times import Spent
from b4m.io import replacing, write_whole
from b4m.methods import METHODS
from b4m.report.load import ReportData, load
from b4m.report.names import BASELINES, name_of
from b4m.report.standings import Standing, costs, standings

SHOWN = ("content_named", "style_named", "style_named_top5", "_truth", "psnr_truth")
"""Metrics of the first table, by the end of their name."""
_TITLES = ("content named", "style named", "style in 5", "likeness to the truth", "PSNR, dB")
_TILE, _GAP, _HEAD, _SIDE = 64, 3, 22, 130


def write_results(
    samples: Sequence[Path],
    scores: Path,
    prepared: Path,
    comparison: Mapping[str, Any],
    spent: Spent,
    out: Path,
) -> Path:
    """Write them all.

    Args:
        samples: folders of images.
        scores: folder of their scores.
        prepared: folder of the images that were learned from.
        comparison: all that decides the comparison, as JSON values.
        spent: what it cost.
        out: folder, made if needed.

    Raises:
        B4MError: for missing files, or scores that are not of these samples.
    """
    data = load(samples, scores, prepared)
    found = standings(data)
    record = _record(data, comparison, spent, found)
    groups = _groups(data.labels)
    sheets = [
        f"\n## All pairs: {name}\n\n![one line a pair](sheet-{name}.webp)\n" for name in groups
    ]
    write_whole(out / "table.md", markdown(record) + "".join(sheets))
    write_whole(out / "run.json", json.dumps(record, indent=1) + "\n")
    write_whole(out / "scores.csv", _by_pair(data.scores.table))
    for name, labels in groups.items():
        with replacing(out / f"sheet-{name}.webp") as partial:
            _sheet(data, labels).save(partial, "WEBP", quality=80, method=6)
    return out


def markdown(record: Mapping[str, Any]) -> str:
    """The tables of a run.json as Markdown."""
    comparison = record["comparison"]["comparison"]
    pairs = len(comparison["contents"]) * len(comparison["styles"])
    lines = [
        f"# {record['title']}",
        "",
        f"{pairs} pairs: {', '.join(comparison['contents'])} x {', '.join(comparison['styles'])}; "
        f"seeds {', '.join(map(str, record['comparison']['seeds']))}; "
        f"{record['comparison']['style_images']} style images; base {record['base']}; "
        f"{record['provenance']['created'][:10]}, commit "
        f"{str(record['provenance']['git_commit'] or 'unknown')[:12]}. Means over pairs with 95 % "
        "intervals.",
        "",
        *score_table(record),
    ]
    for standing in record["frontiers"]:
        lines += ["", f"## Content against style: {standing['axes']}", ""]
        lines += [f"| row | hypervolume | minus {standing['against']} |", "|---|---|---|"]
        lines += [
            f"| {one['row']} | {_cell(one['volume'], '.3f')} | {_cell(one['difference'], '+.3f')} |"
            for one in standing["rows"]
        ]
        if standing["verdicts"]:
            lines += ["", "| claim | difference of hypervolumes | decided |", "|---|---|---|"]
            lines += [
                f"| {one['claim']} | {_cell(one['difference'], '+.3f')} | {one['answer']} |"
                for one in standing["verdicts"]
            ]
    lines += ["", "## Checks", "", "| score | encoder | expected | found |", "|---|---|---|---|"]
    lines += [
        f"| {one['metric']} | {one['encoder']} | {one['claim']} | "
        f"{'yes' if one['holds'] else 'no: ' + one['instead']} |"
        for one in record["checks"]
    ]
    if record["blind"]:
        lines += ["", "A copy of the style does not win these scores, which are not shown:"]
        lines += [f"- {metric}: {row} is higher" for metric, row in record["blind"].items()]
    if record["costs"]:
        lines += ["", "## Cost of a pair", ""]
        lines += ["| row | trainings, s | merge, s | images, s | numbers in its files |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {row} | {' | '.join(f'{one:.1f}' for one in seconds)} | {numbers:,} |"
            for row, (*seconds, numbers) in record["costs"].items()
        ]
    return "\n".join(lines) + "\n"


def score_table(record: Mapping[str, Any]) -> list[str]:
    """The first table: every row's shares that are named right and likeness to the truth."""
    rows = record["rows"]
    known = [
        (end, title)
        for end, title in zip(SHOWN, _TITLES, strict=True)
        if any(metric.endswith(end) for scores in rows.values() for metric in scores)
    ]
    lines = [
        f"| row | {' | '.join(title for _, title in known)} |",
        "|---" * (len(known) + 1) + "|",
    ]
    for label, scores in rows.items():
        cells = [
            next(
                (_cell(scores[metric], _form(end)) for metric in scores if metric.endswith(end)), ""
            )
            for end, _ in known
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _form(metric: str) -> str:
    return ".1f" if metric.startswith("psnr") else ".2f"


def _cell(values: Sequence[float | None] | None, form: str) -> str:
    """A mean with its interval; the interval is left out where there is none."""
    if values is None:
        return ""
    mean, low, high = values
    known = low is not None and high is not None
    return f"{mean:{form}}" + (f" ({low:{form}} to {high:{form}})" if known else "")


def _record(
    data: ReportData,
    comparison: Mapping[str, Any],
    spent: Spent,
    found: Sequence[Standing],
) -> dict[str, Any]:
    primary = data.evaluator["id"]
    rows: dict[str, dict[str, Any]] = {}
    for label in (*data.labels, *UNSAMPLED):
        rows[label] = {
            metric if encoder in (primary, "pixels") else f"{encoder}: {metric}": _values(estimate)
            for (row, metric, encoder), estimate in data.scores.summary.items()
            if row == label and (metric, encoder) not in data.blind
        }
    about = data.scores.provenance
    kept = ("created", "b4m_version", "git_commit", "data_md5", "encoders", "seeds", "statistics")
    return {
        "title": f"{len(data.pairs)} pairs, {len(data.labels)} rows",
        "comparison": comparison,
        "base": f"{data.samples[0].base_id} ({data.samples[0].base_hash[:12]})",
        "rows": rows,
        "frontiers": [_frontier(one) for one in found],
        "checks": [vars(one) for one in sanity(data.scores.summary, data.labels, BASELINES[0])],
        "blind": {f"{metric} by {encoder}": row for (metric, encoder), row in data.blind.items()},
        "costs": {
            row: [*(round(one, 1) for one in seconds), numbers]
            for row, (*seconds, numbers) in costs(spent, data.labels).items()
        },
        "provenance": {name: about[name] for name in kept},
    }


def _frontier(standing: Standing) -> dict[str, Any]:
    return {
        "axes": standing.axes.name,
        "content": f"{standing.axes.content} by {standing.axes.encoders[0]}",
        "style": f"{standing.axes.style} by {standing.axes.encoders[1]}",
        "against": standing.against,
        "rows": [
            {
                "row": row,
                "volume": _values(volume),
                "difference": _values(other) if other else None,
                "points": [[round(x, 4) for x in point] for point in standing.curves[row].means],
            }
            for row, volume, other in standing.ranked
        ],
        "verdicts": [
            {"claim": one.claim, "difference": _values(one.difference), "answer": one.answer}
            for one in standing.verdicts
        ],
    }


def _values(one: Estimate) -> list[float | None]:
    bounds = (one.low, one.high) if one.bounded else (None, None)
    return [round(one.mean, 5), *(None if x is None else round(x, 5) for x in bounds)]


def _by_pair(table: pd.DataFrame) -> str:
    """Means over the seeds of a pair, one column for each metric and encoder."""
    named = table.assign(score=table["metric"] + ":" + table["encoder"])
    wide = named.pivot_table("value", ["method", *PAIR], "score", sort=False)
    return wide.reset_index().to_csv(index=False, float_format="%.4f", lineterminator="\n")


def _groups(labels: Sequence[str]) -> dict[str, list[str]]:
    """Rows by what they are: baselines, learned, training-free."""
    groups: dict[str, list[str]] = {"baselines": [], "learned": [], "training-free": []}
    for label in labels:
        method = METHODS.get(label.split(" ")[0])
        if label in BASELINES or method is None:
            groups["baselines"].append(label)
        else:
            trains = method.learned or method.result == "adapter"
            groups["learned" if trains else "training-free"].append(label)
    return {name: rows for name, rows in groups.items() if rows}


def _sheet(data: ReportData, labels: Sequence[str]) -> Image.Image:
    """One line a pair: content, style, ground truth, and the first image of each row."""
    firsts: dict[tuple[str, tuple[str, str]], Path] = {}
    for sample in data.samples:
        firsts.setdefault((sample.label, data.pair_of(sample)), sample.path)
    titles = ["content", "style", "truth", *(name_of(label)[0] for label in labels)]
    step, width = _TILE + _GAP, 96
    size = _SIDE + width * len(titles), _HEAD + step * len(data.pairs)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, title in enumerate(titles):
        pen.text((_SIDE + place * width, _HEAD // 2), title, "#20211f", font, anchor="lm")
    for line, pair in enumerate(data.pairs):
        top = _HEAD + line * step
        for number, name in enumerate(pair):
            pen.text((4, top + 24 + 14 * number), name, "#20211f", font, anchor="lm")
        for place, path in enumerate(_line(data, pair, [firsts.get((x, pair)) for x in labels])):
            if path is not None:
                tile = fit_square(load_image(path), _TILE)
                sheet.paste(tile, (_SIDE + place * width, top))
    return sheet


def _line(
    data: ReportData, pair: tuple[str, str], drawn: Sequence[Path | None]
) -> Iterator[Path | None]:
    for kind, name in zip(PAIR, pair, strict=True):
        yield data.prepared.concept(kind, name).trained[0]
    truth = data.prepared.ground_truths.get(pair)
    yield truth.path if truth else None
    yield from drawn
