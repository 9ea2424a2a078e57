"""Contents x styles x methods in one folder: the planner's jobs, what is there already kept.

    out/data                     prepared images of all contents and styles
    out/adapters/KEY             trained and merged adapters by the key of their job
    out/samples/KEY              baselines, then methods
    out/scores, out/report.html, out/contact.png
    out/times.csv                seconds of each job

A comparison that was killed goes on where it stopped, and several processes that are given the same
command share its jobs. A folder belongs to one comparison: other arguments in the same folder are
refused, because old images would answer them.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from b4m import __version__
from b4m.data.names import canonical
from b4m.errors import B4MError
from b4m.io import check_output, read_json, write_whole
from b4m.methods import merge_rule, training
from b4m.plan import Comparison, MergeJob, Plan, SampleJob, TrainJob, plan
from b4m.presets import Preset
from b4m.presets import preset as preset_of
from b4m.settings import (
    DEFAULT_BASE,
    DEFAULT_EVALUATOR,
    KINDS,
    Overrides,
    parse_pairs,
    resolve,
    shared,
)
from b4m.verbs.cost import cost_of
from b4m.verbs.evaluate import check_evaluators, evaluate
from b4m.verbs.folder import LOCK, open_folder
from b4m.verbs.merge import merge
from b4m.verbs.prepare import prepare
from b4m.verbs.queue import Step, alone, carry_out, in_order
from b4m.verbs.report import report
from b4m.verbs.sample import check_seeds, sample, settings_of
from b4m.verbs.train import train
from b4m.version import git_commit

_NONE = Preset((), (), ("b4m", "direct"), (0, 1), evaluator=DEFAULT_EVALUATOR, source="")
_RECORDED = 50
"""Most merges that are each recorded in MLflow."""


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

    def of_training(self, job: TrainJob) -> dict[str, Any]:
        """The explicit settings of a training, its row's own before those of all."""
        return {**self.train[job.training], **_scoped(job.training, job.settings)}

    def of_merge(self, job: MergeJob) -> dict[str, Any]:
        """The explicit settings of a merge, likewise."""
        return {**self.merge[job.method], **_scoped(job.method, job.settings)}

    def of_sample(self, job: SampleJob) -> dict[str, Any]:
        """The explicit settings of generating images, likewise."""
        weights = {"weights": job.weights} if job.weights else {}
        return {**self.sample[job.combine], **_scoped(job.combine, job.settings), **weights}


def compare(
    source: str | Path = "",
    out: str | Path = "",
    content: Sequence[str] = (),
    style: Sequence[str] = (),
    method: Sequence[str] = (),
    seed: Sequence[int] = (),
    style_images: int = 5,
    pairing: str = "every",
    base: str = DEFAULT_BASE,
    evaluator: str = "",
    train_with: Sequence[str] = (),
    merge_with: Sequence[str] = (),
    sample_with: Sequence[str] = (),
    strength: Sequence[float] = (),
    preset: str = "",
    dry_run: bool = False,
    partial: bool = False,
) -> Path:
    """Compare methods on every pair of some contents and styles, in one report.

    Beside the methods stand the base, each adapter alone and the direct merge. Every method starts
    from the same noise. A comparison that was killed goes on where it stopped when the same command
    is given again, and several processes that are given the same command share the work.

    Args:
        source: folder of an EmojiGrid, or your own folder with content/NAME and style/NAME
        out: folder for data, adapters, images, scores and report.html; runs/PRESET if left out
        content: names of contents
        style: names of styles
        method: merges (see merge), klora or joint, or METHOD:NAME=VALUE,train.NAME=VALUE for one
            with settings of its own; b4m and direct if left out
        seed: one image per pair, method and seed; 0 and 1 if left out
        style_images: images that a style is trained on
        pairing: every content with every style, or matching: first with first, and so on
        base: base model: a folder, a hub id or a single-file checkpoint
        evaluator: as in evaluate, more after commas check the first; mini-CLIP if left out
        train_with: settings of train, as NAME=VALUE, or METHOD.NAME=VALUE for one of several
        merge_with: settings of merge, likewise
        sample_with: settings of sample, likewise
        strength: draw every method also this much nearer to the style (0.4) or content (-0.4)
        preset: a comparison with a name, contest, tuning or ablations; arguments go before it
        dry_run: only say how many jobs there are and how long they take
        partial: make nothing more, only score and report the pairs that are complete

    Returns:
        Path of the report; of the folder where nothing was to be done but to say so.

    Raises:
        B4MError: for unknown names, methods or settings, or an `out` with another comparison.
    """
    from b4m.tracking import children_of, open_tracker

    known = preset_of(preset) if preset else _NONE
    folder = Path(out or (f"runs/{preset}" if preset else ""))
    if folder == Path():
        raise B4MError("there is no place for the results; give a folder with --out")
    spec = ComparisonSpec(
        source=str(source) or known.source,
        comparison=Comparison(
            tuple(map(canonical, content)) or known.contents,
            tuple(map(canonical, style)) or known.styles,
            tuple(method) or known.methods,
            pairing,
            tuple(strength) or known.strengths,
        ),
        seeds=tuple(seed) or known.seeds,
        style_images=style_images,
        base=base,
        evaluator=evaluator or known.evaluator,
        train=parse_pairs([*known.train, *train_with]),
        merge=parse_pairs([*known.merge, *merge_with]),
        sample=parse_pairs([*known.sample, *sample_with]),
    )
    check_seeds(spec.seeds)
    check_output(folder / LOCK)
    if not spec.source:
        raise B4MError("there are no images to compare with; name their folder")
    jobs = plan(spec.comparison)
    settings = job_settings(jobs, spec.train, spec.merge, spec.sample)
    if dry_run:
        print(cost_of(jobs, len(spec.seeds), folder))
        return folder
    check_evaluators(spec.evaluator)
    with (
        open_tracker(f"compare/{folder.name}", "compare", settings=asdict(spec)) as tracker,
        children_of(tracker.run_id),
    ):
        _write_lock(spec, folder)
        if not partial:
            _make(spec, jobs, settings, folder)
        return _show(spec, folder)


def job_settings(
    jobs: Plan, train_with: Overrides, merge_with: Overrides, sample_with: Overrides
) -> JobSettings:
    """Each job's part of the explicit settings, checked before anything is made.

    Raises:
        B4MError: for a setting that no job reads, or a value out of range.
    """
    ways = {job.training: training(job.training).settings for job in jobs.trainings}
    merges = {job.method: merge_rule(job.method).settings for job in jobs.merges}
    combined = {job.combine: settings_of(job.combine) for job in jobs.samples}
    settings = JobSettings(
        shared(ways, train_with, kinds=KINDS),
        shared(merges, merge_with),
        shared(combined, sample_with),
    )
    for trained in jobs.trainings:
        way = trained.training
        resolve(ways[way], settings.of_training(trained), method=way, kind=trained.kind)
    for merged in jobs.merges:
        resolve(merges[merged.method], settings.of_merge(merged), method=merged.method)
    for drawn in jobs.samples:
        resolve(combined[drawn.combine], settings.of_sample(drawn), method=drawn.combine)
    return settings


def _scoped(way: str, own: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A row's own settings, for its method alone, so that they go before those of all."""
    return {name if "." in name else f"{way}.{name}": value for name, value in own}


def _write_lock(spec: ComparisonSpec, out: Path) -> None:
    """Mark the folder as this comparison's.

    Raises:
        B4MError: if it holds another one, or other things.
    """
    file = out / LOCK
    values = json.loads(json.dumps(asdict(spec)))
    others = [one for one in out.iterdir() if LOCK not in one.name] if out.is_dir() else []
    if others and not file.exists():
        raise B4MError(f"{out} holds other things; give another folder")
    if not file.exists():  # a process that starts beside this one writes the same
        write_whole(file, json.dumps(values, indent=1) + "\n")
    if read_json(file, "give another folder") != values:
        raise B4MError(f"{out} holds another comparison (see {file}); give another folder")


def _make(spec: ComparisonSpec, jobs: Plan, settings: JobSettings, out: Path) -> None:
    """Do what is missing."""
    data = out / "data"
    with alone(out, "data"):
        if not data.exists():
            contents, styles = spec.comparison.contents, spec.comparison.styles
            prepare(spec.source, data, ",".join(contents), ",".join(styles), spec.style_images)
    carry_out(in_order(_steps(spec, jobs, settings, out), _last(jobs, out)), out)


def _last(jobs: Plan, out: Path) -> list[Path]:
    """The images in such an order that the first pairs are soon complete, and of many concepts."""
    pairs = list(dict.fromkeys((job.content, job.style) for job in jobs.samples))
    contents, styles = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))

    def turn(job: SampleJob) -> tuple[int, int]:
        content = contents.index(job.content)
        return (styles.index(job.style) - content) % len(styles), content

    return [_images(out, job.key) for job in sorted(jobs.samples, key=turn)]


def _show(spec: ComparisonSpec, out: Path) -> Path:
    """Score the complete pairs and return the report's path."""
    with alone(out, "scores"):
        folders = open_folder(out).samples
        if not _scored(folders, out / "scores"):
            evaluate(folders, out / "data", out / "scores", spec.evaluator)
        return report([out])


def _scored(folders: Sequence[Path], scores: Path) -> bool:
    """Whether this code has scored these images already."""
    file = scores / "provenance.json"
    if not file.is_file():
        return False
    made = max((folder / "samples.csv").stat().st_mtime for folder in folders)
    about = read_json(file, "give another folder")
    known = about.get("b4m_version"), about.get("git_commit")
    return made <= file.stat().st_mtime and known == (__version__, git_commit())


def _steps(spec: ComparisonSpec, jobs: Plan, settings: JobSettings, out: Path) -> list[Step]:
    """The plan's jobs with what each makes, needs and does."""
    data = out / "data"
    bulk = len(jobs.merges) > _RECORDED

    def training_step(job: TrainJob) -> Step:
        file, values = _adapter(out, job.key), settings.of_training(job)

        def do() -> None:
            train(job.kind, data, job.concept, file, job.training, spec.base, settings=values)

        return Step(job.key, "training", job.training, file, (), do)

    def merge_step(job: MergeJob) -> Step:
        file, values = _adapter(out, job.key), settings.of_merge(job)
        both = tuple(_adapter(out, key) for key in job.inputs)

        def do() -> None:
            from b4m.tracking import unrecorded

            with unrecorded() if bulk else nullcontext():
                merge(both, file, job.method, spec.base, data, settings=values)

        return Step(job.key, "merge", job.method, file, both, do)

    def sample_step(job: SampleJob) -> Step:
        folder, values = _images(out, job.key), settings.of_sample(job)
        files = [_adapter(out, key) for key in job.adapters]

        def do() -> None:
            sample(
                folder,
                files,
                data,
                seed=spec.seeds,
                label=job.label,
                combine=job.combine,
                base=spec.base,
                settings=values,
                content=job.content,
                style=job.style,
            )

        return Step(job.key, "images", job.label, folder, tuple(files), do)

    return [
        *map(training_step, jobs.trainings),
        *map(merge_step, jobs.merges),
        *map(sample_step, jobs.samples),
    ]


def _adapter(out: Path, key: str) -> Path:
    return out / "adapters" / f"{key}.safetensors"


def _images(out: Path, key: str) -> Path:
    return out / "samples" / key
