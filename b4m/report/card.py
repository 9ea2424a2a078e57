"""An adapter as one hands it on: the file with a card that says what it is and how to use it.

The card is the README.md of a model repository as the hub of Hugging Face reads it: facts in YAML,
the rest for people.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from b4m import __version__
from b4m.data.manifest import ManifestRow, read_manifest
from b4m.errors import B4MError
from b4m.evaluation.samples import Sample
from b4m.evaluation.statistics import Estimate
from b4m.report.load import ReportData
from b4m.report.names import BASELINES, PARTS, name_of
from b4m.report.summary import headline

WEIGHTS = "pytorch_lora_weights.safetensors"
"""The name that diffusers' `load_lora_weights` looks for."""
CARD, IMAGE = "README.md", "image.png"


def write_model(out: Path, adapter: Path, label: str, report: ReportData, data: Path) -> Path:
    """Write a folder with an adapter, its card and an image.

    Args:
        out: folder to write.
        adapter: the adapter's file.
        label: its row in the report.
        report: images and scores.
        data: the prepared data folder.

    Returns:
        `out`.

    Raises:
        B4MError: for missing files, or a row that the report does not have.
    """
    shown = [sample for sample in report.samples if sample.label == label]
    if not shown:
        raise B4MError(f"no image of {label!r}; there are images of {', '.join(report.labels)}")
    text = _render("card.md.jinja", _values(report, label, shown, taught_by(data, shown[0])))
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(adapter, out / WEIGHTS)
    shutil.copyfile(shown[0].path, out / IMAGE)
    (out / CARD).write_text(text, encoding="utf-8")
    return out


def note(report: ReportData, image: str) -> str:
    """A run's results in Markdown: the headline, an image, the scores of every row.

    Args:
        report: images and scores.
        image: address of the image.
    """
    values = {"headline": headline(report), "image": image, **_scores(report, report.labels)}
    return _render("note.md.jinja", values)


def about(report: ReportData, label: str) -> Mapping[str, Any]:
    """What the adapter of a row says about itself; empty for an adapter of another tool."""
    sample = next(one for one in report.samples if one.label == label)
    files = report.adapters.get(sample.adapter_hash, [])
    return files[0] if files else {}


def short(digest: str) -> str:
    """A hash, or several that are joined by plus signs, for people."""
    return "+".join(part[:16] for part in digest.split("+"))


def taught_by(data: Path, sample: Sample) -> list[ManifestRow]:
    """The images that the pair's adapters were trained on."""
    pair = {"content": sample.content, "style": sample.style}
    return [
        row
        for row in read_manifest(data)
        if row.role == "train" and row.kind in pair and pair[row.kind] in ("", row.concept)
    ]


def _values(
    report: ReportData, label: str, shown: Sequence[Sample], rows: Sequence[ManifestRow]
) -> dict[str, Any]:
    """What the card shows."""
    first, metadata = shown[0], about(report, label)
    baselines = [each for each in BASELINES if each in report.labels]
    return {
        "title": f"{first.content} in {first.style}",
        "base": first.base_id,
        "method": name_of(label)[0],
        "version": metadata.get("code_version") or __version__,
        "prompt": first.prompt,
        "triggers": " and ".join(f"`{word}`" for word in metadata.get("triggers", {}).values()),
        "weights": WEIGHTS,
        "image": IMAGE,
        "name": f"{first.content}-in-{first.style}",
        "steps": first.steps,
        "guidance": first.guidance,
        "facts": [
            ("base", f"`{first.base_id}`, SHA-256 `{first.base_hash[:16]}`"),
            ("data", f"SHA-256 `{short(metadata.get('data_hash', ''))}`"),
            ("rank", metadata.get("rank", "")),
            ("seed", metadata.get("seed", "")),
        ],
        "settings": json.dumps(metadata.get("config", {}).get("settings", {}), sort_keys=True),
        "evaluated": f"By `{report.evaluator['id']}` on {len(shown)} images.",
        **_scores(report, [label, *baselines]),
        "taught": _counted(rows),
        "licences": sorted({row.licence or "unknown" for row in rows}),
    }


def _scores(report: ReportData, labels: Sequence[str]) -> dict[str, Any]:
    """The table of scores: headings, rows, and what the intervals are over."""
    measured = [part for part in PARTS if any(report.score(label, part) for label in labels)]
    estimate = report.score(labels[0], measured[0]) if measured else None
    return {
        "columns": [PARTS[part] for part in measured],
        "rows": [
            (name_of(row)[0], [_cell(report.score(row, part)) for part in measured])
            for row in labels
        ],
        "unit": estimate.unit if estimate else "none",
    }


def _render(template: str, values: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("b4m.report"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # it is Markdown, and every value is this run's own
    )
    return environment.get_template(template).render(values)


def _counted(rows: Sequence[ManifestRow]) -> str:
    counts = {kind: sum(row.kind == kind for row in rows) for kind in ("content", "style")}
    return f"{counts['content']} of the content, {counts['style']} of the style."


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    bounds = f" ({estimate.low:.2f} to {estimate.high:.2f})" if estimate.bounded else ""
    return f"{estimate.mean:.2f}{bounds}"
