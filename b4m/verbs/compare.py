"""Contents x styles x methods in one process: the planner's jobs, what is there already kept.

    out/data                     prepared images of all contents and styles
    out/adapters/KEY             trained and merged adapters by the key of their job
    out/samples/KEY              baselines, then methods
    out/scores, out/report.html, out/contact.png

A comparison that was killed goes on where it stopped. A folder belongs to one comparison: other
arguments in the same folder are refused, because old images would answer them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from b4m.data.names import canonical
from b4m.errors import B4MError
from b4m.io import check_output, read_json, write_whole
from b4m.methods import merge_rule, training
from b4m.plan import Comparison, Plan, plan
from b4m.settings import (
    DEFAULT_BASE,
    DEFAULT_EVALUATOR,
    KINDS,
    Overrides,
    parse_pairs,
    shared,
)
from b4m.verbs.evaluate import evaluate
from b4m.verbs.merge import merge
from b4m.verbs.prepare import prepare
from b4m.verbs.report import report
from b4m.verbs.sample import check_seeds, sample, settings_of
from b4m.verbs.train import train

LOCK = "comparison.json"


@dataclass(frozen=True)
class ComparisonSpec:
    """A comparison with all that decides its outcome.

    Attributes:
        source: where the images come from.
        comparison: what is compared.
        seeds: one image per pair, method and seed.
        style_images: images that teach a style.
        base: base model.
        evaluator: encoders; the first one is the primary evaluator.
        train: explicit settings of training.
        merge: of merging.
        sample: of sampling.
    """

    source: str
    comparison: Comparison
    seeds: tuple[int, ...]
    style_images: int
    base: str
    evaluator: str
    train: Overrides = field(default_factory=dict)
    merge: Overrides = field(default_factory=dict)
    sample: Overrides = field(default_factory=dict)


@dataclass(frozen=True)
class JobSettings:
    """Explicit settings by way of training, by merge, and by way of combining adapters."""

    train: Mapping[str, Mapping[str, Any]]
    merge: Mapping[str, Mapping[str, Any]]
    sample: Mapping[str, Mapping[str, Any]]


def compare(
    source: str | Path,
    out: str | Path,
    content: Sequence[str],
    style: Sequence[str],
    method: Sequence[str] = ("b4m", "direct"),
    seed: Sequence[int] = (0, 1),
    style_images: int = 5,
    pairing: str = "every",
    base: str = DEFAULT_BASE,
    evaluator: str = DEFAULT_EVALUATOR,
    train_with: Sequence[str] = (),
    merge_with: Sequence[str] = (),
    sample_with: Sequence[str] = (),
) -> Path:
    """Compare methods on every pair of some contents and styles, in one report.

    Beside the methods stand the base, each adapter alone and the direct merge. Every method starts
    from the same noise. A comparison that was killed goes on where it stopped when the same command
    is given again.

    Args:
        source: folder of an EmojiGrid, or your own folder with content/NAME and style/NAME
        out: folder for data, adapters, images, scores and report.html
        content: names of contents
        style: names of styles
        method: merges (see merge), klora or joint
        seed: one image per pair, method and seed
        style_images: images that a style is trained on
        pairing: every content with every style, or matching: first with first, and so on
        base: base model: a folder, a hub id or a single-file checkpoint
        evaluator: a folder, or an open_clip MODEL:WEIGHTS; more after commas check the first
        train_with: settings of train, as NAME=VALUE, or METHOD.NAME=VALUE for one of several
        merge_with: settings of merge, likewise
        sample_with: settings of sample, likewise

    Returns:
        Path of the report.

    Raises:
        B4MError: for unknown names, methods or settings, or an `out` with another comparison.
    """
    from b4m.tracking import children_of, open_tracker

    check_seeds(seed)
    check_output(Path(out) / LOCK)
    spec = ComparisonSpec(
        source=str(source),
        comparison=Comparison(
            tuple(map(canonical, content)), tuple(map(canonical, style)), tuple(method), pairing
        ),
        seeds=tuple(seed),
        style_images=style_images,
        base=base,
        evaluator=evaluator,
        train=parse_pairs(train_with),
        merge=parse_pairs(merge_with),
        sample=parse_pairs(sample_with),
    )
    jobs = plan(spec.comparison)
    settings = job_settings(jobs, spec.train, spec.merge, spec.sample)
    name = f"compare/{Path(out).name}"
    with (
        open_tracker(name, "compare", settings=asdict(spec)) as tracker,
        children_of(tracker.run_id),
    ):
        _write_lock(spec, Path(out))
        return _run(spec, jobs, settings, Path(out))


def job_settings(
    jobs: Plan, train_with: Overrides, merge_with: Overrides, sample_with: Overrides
) -> JobSettings:
    """Each job's part of the explicit settings, checked before anything is made.

    Raises:
        B4MError: for a setting that no job reads, or a value out of range.
    """
    ways = dict.fromkeys(job.training for job in jobs.trainings)
    merges = dict.fromkeys(job.method for job in jobs.merges)
    combined = dict.fromkeys(job.combine for job in jobs.samples)
    return JobSettings(
        shared({way: training(way).settings for way in ways}, train_with, kinds=KINDS),
        shared({name: merge_rule(name).settings for name in merges}, merge_with),
        shared({name: settings_of(name) for name in combined}, sample_with),
    )


def _write_lock(spec: ComparisonSpec, out: Path) -> None:
    """Mark the folder as this comparison's.

    Raises:
        B4MError: if it holds another one, or other things.
    """
    file = out / LOCK
    values = json.loads(json.dumps(asdict(spec)))
    if file.exists():
        if read_json(file, "give another folder") != values:
            raise B4MError(f"{out} holds another comparison (see {file}); give another folder")
        return
    if out.exists() and any(out.iterdir()):
        raise B4MError(f"{out} holds other things; give another folder")
    write_whole(file, json.dumps(values, indent=1) + "\n")


def _run(spec: ComparisonSpec, jobs: Plan, settings: JobSettings, out: Path) -> Path:
    """Do what is missing and return the report's path."""
    data = out / "data"
    if not data.exists():
        contents, styles = spec.comparison.contents, spec.comparison.styles
        prepare(spec.source, data, ",".join(contents), ",".join(styles), spec.style_images)

    def adapter(key: str) -> Path:
        return out / "adapters" / f"{key}.safetensors"

    for job in jobs.trainings:
        file, values = adapter(job.key), settings.train[job.training]
        if not file.exists():
            train(job.kind, data, job.concept, file, job.training, spec.base, settings=values)
    for merging in jobs.merges:
        file, values = adapter(merging.key), settings.merge[merging.method]
        if not file.exists():
            content, style = (adapter(key) for key in merging.inputs)
            merge(content, style, file, merging.method, spec.base, data, settings=values)
    folders = [out / "samples" / job.key for job in jobs.samples]
    for folder, sampling in zip(folders, jobs.samples, strict=True):
        if not folder.exists():
            sample(
                folder,
                [adapter(key) for key in sampling.adapters],
                data,
                seed=spec.seeds,
                label=sampling.label,
                combine=sampling.combine,
                base=spec.base,
                settings=settings.sample[sampling.combine],
                content=sampling.content,
                style=sampling.style,
            )
    evaluate(folders, data, out / "scores", spec.evaluator)
    return report(folders, out / "scores", data, out / "report.html", spec.comparison.title)
