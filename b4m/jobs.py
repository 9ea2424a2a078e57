"""The planner's jobs, carried out a shard at a time by tasks in processes of their own.

A job is done once: trainings, learned merges and images lie in the working folder under a hash of
all that decides them, so a run that was killed does only what is missing when it is started again.
Closed-form merges are made anew, which takes less than keeping them.

A folder of adapters holds for each job KEY.safetensors, or KEY.json with the name of a file in the
working folder. A folder of samples holds one folder for each job, named after its place in the plan
and its key. Both say in outcomes.json how each job went.
"""

import csv
import json
import os
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from b4m.errors import B4MError
from b4m.io import replacing, sha256, write_whole
from b4m.plan import Comparison, MergeJob, Plan, SampleJob, TrainJob, plan
from b4m.settings import Overrides, resolve
from b4m.shards import Shard, merges_of, samples_of, trainings_of
from b4m.tracking import unrecorded
from b4m.verbs.compare import JobSettings, job_settings
from b4m.verbs.merge import merge_once
from b4m.verbs.sample import sample, settings_of
from b4m.verbs.train import train_once
from b4m.verbs.workspace import load, work_folder

OUTCOMES = "outcomes.json"
JobT = TypeVar("JobT", TrainJob, MergeJob, SampleJob)


@dataclass(frozen=True)
class Jobs:
    """A plan with the explicit settings of its jobs, checked; it travels as a JSON file."""

    comparison: Comparison
    plan: Plan
    settings: JobSettings

    @classmethod
    def of(
        cls, comparison: Comparison, train: Overrides, merge: Overrides, sample: Overrides
    ) -> "Jobs":
        """The jobs of a comparison.

        Raises:
            B4MError: for a setting that no job reads, or a value out of range.
        """
        jobs = plan(comparison)
        return cls(comparison, jobs, job_settings(jobs, train, merge, sample))

    @classmethod
    def read(cls, file: str | Path) -> "Jobs":
        """The jobs that `write` wrote."""
        values = json.loads(Path(file).read_text(encoding="utf-8"))
        compared: dict[str, Any] = values["comparison"]
        lists = {k: tuple(compared[k]) for k in ("contents", "styles", "methods")}
        return cls(
            Comparison(
                **lists,
                pairing=compared["pairing"],
                strengths=tuple(compared["strengths"]),
            ),
            Plan.from_dict(values["plan"]),
            JobSettings(**values["settings"]),
        )

    def write(self, file: str | Path) -> None:
        """Write them down."""
        values = {
            "comparison": asdict(self.comparison),
            "plan": self.plan.as_dict(),
            "settings": asdict(self.settings),
        }
        write_whole(Path(file), json.dumps(values, indent=1) + "\n")


@dataclass(frozen=True)
class Outcome:
    """How a job went: made, kept from an earlier time, or failed."""

    key: str
    state: Literal["made", "kept", "failed"]
    seconds: float
    error: str = ""


@dataclass(frozen=True)
class Task:
    """What a task has to do, and with what.

    Attributes:
        jobs: all jobs of the run.
        shard: those of this task.
        base: base model.
        data: prepared folder.
        bulk: there are many jobs: one that fails is noted and the next one begun, adapters that the
            working folder keeps are not copied, and merges are not recorded in MLflow.
    """

    jobs: Jobs
    shard: Shard
    base: str
    data: Path
    bulk: bool = False

    @classmethod
    def read(
        cls, jobs: str, shard: Mapping[str, Any], base: str, data: str, bulk: bool = False
    ) -> "Task":
        """The task of a file of jobs and a shard as JSON values, in which numbers may be floats."""
        part = Shard(shard["name"], shard["of"], int(shard["first"]), int(shard["end"]))
        return cls(Jobs.read(jobs), part, base, Path(data), bulk)


def train_shard(task: Task, out: str | Path) -> None:
    """Carry out the trainings of a shard.

    Args:
        task: what to do.
        out: folder of adapters to write.
    """
    folder = Path(out)

    def train(job: TrainJob) -> bool:
        values = task.jobs.settings.of_training(job)
        file = None if task.bulk else _file(folder, job.key)
        finished, kept = train_once(
            job.kind, task.data, job.concept, file, job.training, task.base, settings=values
        )
        if task.bulk:
            _point(folder, job.key, finished)
        return kept

    _carry_out(task, folder, trainings_of(task.jobs.plan, task.shard), train)


def merge_shard(task: Task, adapters: str | Path, out: str | Path) -> None:
    """Carry out the merges of a shard.

    Args:
        task: what to do.
        adapters: folder of trained adapters.
        out: folder of adapters to write.
    """
    folder = Path(out)

    def merge(job: MergeJob) -> bool:
        both = [adapter_file(Path(adapters), key) for key in job.inputs]
        point = task.bulk and job.learned
        with unrecorded() if task.bulk else nullcontext():
            finished, kept = merge_once(
                both,
                None if point else _file(folder, job.key),
                job.method,
                task.base,
                task.data,
                settings=task.jobs.settings.of_merge(job),
            )
        if point:
            _point(folder, job.key, finished)
        return kept

    _carry_out(task, folder, merges_of(task.jobs.plan, task.shard), merge)


def sample_shard(task: Task, adapters: str | Path, out: str | Path, seeds: Iterable[float]) -> None:
    """Carry out the samples of a shard.

    Args:
        task: what to do.
        adapters: folder that holds their adapters.
        out: folder of samples to write.
        seeds: one image per prompt and seed.
    """
    folder, source = Path(out), Path(adapters)
    places = {job.key: place for place, job in enumerate(task.jobs.plan.samples)}
    numbers = [int(seed) for seed in seeds]

    def generate(job: SampleJob) -> bool:
        files = [adapter_file(source, key) for key in job.adapters]
        made = _samples(task, job, files, numbers)
        kept = made.is_dir()
        if not kept:
            sample(
                made,
                files,
                task.data,
                seed=numbers,
                label=job.label,
                combine=job.combine,
                base=task.base,
                settings=task.jobs.settings.of_sample(job),
                content=job.content,
                style=job.style,
            )
        shutil.copytree(made, folder / f"{places[job.key]:06d}-{job.key}")
        return kept

    earlier = outcomes([source])  # so that the last task knows of merges that it never sees
    _carry_out(task, folder, samples_of(task.jobs.plan, task.shard), generate, earlier)


def collect(folders: Iterable[str | Path], out: str | Path) -> None:
    """Put the adapters of several folders into one; without new bytes where a link can stand.

    Args:
        folders: folders of adapters.
        out: folder of adapters to write.
    """
    paths, target = [Path(folder) for folder in folders], Path(out)
    target.mkdir(parents=True, exist_ok=True)
    for source in (file for path in paths for file in path.iterdir() if file.name != OUTCOMES):
        try:
            os.link(source, target / source.name)
        except OSError:  # another file system
            shutil.copyfile(source, target / source.name)
    _write_outcomes(target, outcomes(paths))


def adapter_file(folder: Path, key: str) -> Path:
    """The adapter of a job.

    Raises:
        B4MError: if it was not made, or the working folder is not the one in which it lies.
    """
    file = _file(folder, key)
    if file.is_file():
        return file
    pointer = folder / f"{key}.json"
    if pointer.is_file():
        kept = work_folder() / json.loads(pointer.read_text(encoding="utf-8"))["work"]
        if kept.is_file():
            return kept
        raise B4MError(
            f"{key} is not at {kept}; tasks on several machines must share one working folder "
            "(B4M_WORK)"
        )
    reasons = [one.error for one in outcomes([folder]) if one.key == key]
    raise B4MError(f"{key} was not made: {reasons[0] if reasons else f'it is not in {folder}'}")


def sample_folders(folders: Iterable[str | Path]) -> list[Path]:
    """The folders of all samples, in the plan's order.

    Raises:
        B4MError: if there are none, with the first reason.
    """
    paths = [Path(folder) for folder in folders]
    found = [path.parent for folder in paths for path in folder.glob("*/samples.csv")]
    if not found:
        reason = next((one.error for one in outcomes(paths) if one.error), "no job has any")
        raise B4MError(f"there are no images: {reason}")
    return sorted(found, key=lambda path: path.name)


def outcomes(folders: Iterable[str | Path]) -> list[Outcome]:
    """How the jobs went whose results are in these folders, each job once."""
    found: dict[str, Outcome] = {}
    for file in (Path(folder) / OUTCOMES for folder in folders):
        if file.is_file():
            for values in json.loads(file.read_text(encoding="utf-8")):
                found.setdefault(values["key"], Outcome(**values))
    return list(found.values())


def write_table(folders: Iterable[str | Path], file: str | Path) -> int:
    """Write how all jobs went as CSV: key, state, seconds, error.

    Returns:
        How many failed.
    """
    done = outcomes(folders)
    with (
        replacing(Path(file)) as partial,
        partial.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, [field.name for field in fields(Outcome)])
        writer.writeheader()
        writer.writerows(asdict(one) for one in done)
    return sum(one.state == "failed" for one in done)


def check_table(file: str | Path, fail: bool) -> None:
    """Say how many jobs were made, kept and failed, and which failed and why.

    Raises:
        B4MError: if one failed and `fail` is set.
    """
    with Path(file).open(newline="", encoding="utf-8") as stream:
        done = list(csv.DictReader(stream))
    states = Counter(one["state"] for one in done)
    print(", ".join(f"{states[state]} {state}" for state in ("made", "kept", "failed")))
    failed = [one for one in done if one["state"] == "failed"]
    for one in failed:
        print(f"failed: {one['key']}: {one['error']}")
    if failed and fail:
        raise B4MError(
            f"{len(failed)} of {len(done)} jobs failed, first {failed[0]['key']}: "
            f"{failed[0]['error']}"
        )


def _samples(task: Task, job: SampleJob, files: Sequence[Path], seeds: Sequence[int]) -> Path:
    """Where a job's images lie in the working folder, or will lie."""
    from b4m.data.manifest import read_manifest
    from b4m.training.key import key

    values = task.jobs.settings.of_sample(job)
    chosen = settings_of(job.combine)
    base = load(task.base, resolve(chosen, values, method=job.combine))
    digest = key(
        "sample",
        asdict(job),
        resolve(chosen, values, base.recipe.get("sample"), job.combine),
        seeds,
        [sha256(file) for file in files],
        base.hash,
        str(base.dtype),
        [
            row.class_word
            for row in read_manifest(task.data)
            if row.role == "train" and (row.kind, row.concept) == ("content", job.content)
        ],
    )
    return work_folder() / "samples" / digest[:24]


def _carry_out(
    task: Task,
    out: Path,
    jobs: Sequence[JobT],
    do: Callable[[JobT], bool],
    earlier: Sequence[Outcome] = (),
) -> None:
    """Do every job and write down how it went."""
    out.mkdir(parents=True, exist_ok=True)
    done = list(earlier)
    for job in jobs:
        start = time.monotonic()
        state: Literal["made", "kept", "failed"] = "failed"
        error = ""
        try:
            state = "kept" if do(job) else "made"
        except Exception as problem:
            if not task.bulk:
                raise
            traceback.print_exc()
            error = str(problem) or type(problem).__name__
        outcome = Outcome(job.key, state, round(time.monotonic() - start, 2), error)
        done.append(outcome)
        print(f"{job.key}: {state} in {outcome.seconds:.1f} s", flush=True)
        _write_outcomes(out, done)
    _write_outcomes(out, done)


def _write_outcomes(folder: Path, done: Sequence[Outcome]) -> None:
    write_whole(folder / OUTCOMES, json.dumps([asdict(one) for one in done], indent=1) + "\n")


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"


def _point(folder: Path, key: str, finished: Path) -> None:
    """Say where in the working folder an adapter lies."""
    work = finished.relative_to(work_folder()).as_posix()
    write_whole(folder / f"{key}.json", json.dumps({"work": work}) + "\n")
