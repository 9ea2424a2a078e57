"""The end of a run: the best adapter with its card, and into the registry if it is good enough."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from urllib.parse import quote

from b4m.errors import B4MError
from b4m.evaluation.statistics import Estimate
from b4m.io import copy_whole, write_whole
from b4m.jobs import Jobs, adapter_file, sample_folders
from b4m.plan import BASELINES
from b4m.report import write_report
from b4m.report.card import about, note, short, taught_by, write_model
from b4m.report.load import ReportData, load
from b4m.report.names import PARTS
from b4m.tracking import Tracker, open_tracker
from b4m.tracking.registry import Score, Usage, register
from b4m.tracking.store import tags_of_all


def publish(
    jobs: str | Path,
    data: str | Path,
    samples: Iterable[str | Path],
    scores: str | Path,
    adapters: Sequence[str | Path],
    out: str | Path,
    name: str = "",
    minimum: float = 0.0,
) -> str:
    """Write the best adapter of a run with its card, and register it if that is asked for.

    Args:
        jobs: file of all jobs of the run.
        data: prepared folder.
        samples: folders of samples.
        scores: their scores.
        adapters: folders of adapters, the merged ones among them.
        out: folder to write.
        name: registered model; "" registers nothing.
        minimum: what the primary metric must reach to be registered, with its whole interval.

    Returns:
        What was done, in a sentence, which also lies beside the adapter in verdict.txt.

    Raises:
        B4MError: if no method has one file, or MLflow cannot be reached.
    """
    report = load(sample_folders(samples), Path(scores), Path(data))
    label, key = _best(Jobs.read(jobs), report)
    model = write_model(Path(out), _file(adapters, key), label, report, Path(data))
    verdict = f"{label} is the best of this run"
    if name:
        verdict += "; " + _register(model, label, report, Path(data), name, minimum)
    write_whole(model / "verdict.txt", verdict + "\n")
    return verdict


def _best(jobs: Jobs, report: ReportData) -> tuple[str, str]:
    """Label and adapter of the method with the best score among those with one file."""
    baselines = {baseline.label for baseline in BASELINES}
    files = {
        job.label: job.adapters[0]
        for job in jobs.plan.samples
        if len(job.adapters) == 1 and job.label not in baselines and job.label in report.labels
    }
    if not files:
        raise B4MError("no method of this run has an adapter of its own; there is none to publish")

    def mean(label: str) -> float:
        estimate = report.score(label, report.primary_metric)
        return estimate.mean if estimate and isfinite(estimate.mean) else -1.0

    label = max(files, key=mean)
    return label, files[label]


def _file(folders: Sequence[str | Path], key: str) -> Path:
    """An adapter in one of several folders."""
    names = f"{key}.safetensors", f"{key}.json"
    paths = [Path(folder) for folder in folders]
    holding = [path for path in paths if any((path / name).is_file() for name in names)]
    return adapter_file((holding or paths)[0], key)


def _register(
    model: Path, label: str, report: ReportData, data: Path, name: str, minimum: float
) -> str:
    refused = _below(report.score(label, report.primary_metric), minimum)
    if refused:
        return refused
    shown = next(sample for sample in report.samples if sample.label == label)
    tags = {
        "b4m.method": label,
        "b4m.base_hash": shown.base_hash,
        "b4m.data_hash": short(about(report, label).get("data_hash", "")),
        "b4m.licence": ", ".join(sorted({row.licence for row in taught_by(data, shown)})),
    }
    with open_tracker(f"register/{name}", "register", label) as run:
        if not run.run_id:
            raise B4MError(f"MLflow does not record, so {name} cannot be registered there")
        usage = _usage(report, label)
        done = register(model, name, usage, _score(report, label), {**tags_of_all(), **tags}, run)
        run.tags({"b4m.version": done.version, "b4m.verdict": done.verdict})
    return done.verdict


def _below(estimate: Estimate | None, minimum: float) -> str:
    """Why a score does not reach the minimum; "" if it does."""
    if estimate is None or not isfinite(estimate.mean):
        return "it has no score, so it is not registered"
    low = estimate.low if estimate.bounded else estimate.mean
    if low >= minimum:
        return ""
    interval = f" ({estimate.low:.3f} to {estimate.high:.3f})" if estimate.bounded else ""
    return f"its score {estimate.mean:.3f}{interval} is below {minimum}, so it is not registered"


def _usage(report: ReportData, label: str) -> Usage:
    from PIL import Image

    shown = next(sample for sample in report.samples if sample.label == label)
    with Image.open(shown.path) as image:
        width, height = image.size
    return Usage(shown.base_id, shown.steps, shown.guidance, width, height)


def _score(report: ReportData, label: str) -> Score:
    """The score, and what was measured: the same encoder, references, prompts and seeds."""
    known = report.scores.provenance
    asked = sorted({(sample.prompt, sample.seed) for sample in report.samples})
    text = json.dumps([known["encoders"][0], known["references"], asked])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    key = report.key(label, report.primary_metric)
    found = report.scores.summary[key]
    measure = f"{key[1]} by {key[2]} on references and prompts {digest}"
    return Score(found.mean, found.low, found.high, measure)


def write_pages(
    jobs: str | Path,
    samples: Sequence[Path],
    scores: str | Path,
    data: str | Path,
    page: str | Path,
    sheet: str | Path,
    run: Tracker,
) -> None:
    """Write the report and the contact sheet, and put a run's results on its page in MLflow.

    Args:
        jobs: file of all jobs of the run.
        samples: folders of samples.
        scores: their scores.
        data: prepared folder.
        page: HTML file to write.
        sheet: PNG file to write.
        run: the run; it gets both files, the headline scores as metrics `score/METHOD` and
            `best/PART`, and a note with the contact sheet.

    Raises:
        B4MError: for missing files, or scores that are not of these samples.
    """
    title = Jobs.read(jobs).comparison.title
    with tempfile.TemporaryDirectory() as folder:
        made = write_report(samples, Path(scores), Path(data), Path(folder) / "report.html", title)
        contact = made.with_name("contact.png")
        copy_whole(made, Path(page))
        copy_whole(contact, Path(sheet))
        run.files([made, contact], "report")
    report = load(samples, Path(scores), Path(data))
    means = {
        **{f"score/{label}": report.score(label, report.primary_metric) for label in report.labels},
        **{f"best/{part}": report.score(report.best(), part) for part in PARTS},
    }
    run.metrics({name: one.mean for name, one in means.items() if one and isfinite(one.mean)})
    image = f"get-artifact?path={quote('report/contact.png', safe='')}&run_uuid={run.run_id}"
    run.tags({"b4m.best": report.best(), "mlflow.note.content": note(report, image)})
