"""A plan's jobs in parts, for tasks that run beside one another.

The jobs are four lists, so that each can be given what it needs: trainings, closed-form merges (no
accelerator), learned merges, and samples. Samples of a merged adapter are not a list of their own:
whoever makes the merge hands the file on. Pure, as `b4m.plan` is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from b4m.errors import B4MError
from b4m.plan import MergeJob, Plan, SampleJob, TrainJob

LISTS = ("trainings", "closed_form", "learned", "samples")


@dataclass(frozen=True)
class Shard:
    """Some jobs of a list that one task carries out, one after the other.

    Attributes:
        name: for people.
        of: the list, one of `LISTS`.
        first: place of its first job in the list.
        end: place after its last one.
    """

    name: str
    of: str
    first: int
    end: int


def shards(jobs: Plan, of: str, most: int = 0) -> list[Shard]:
    """A list's jobs in contiguous parts of equal size, give or take one.

    A list without jobs gives one empty part: a Kubeflow loop over nothing fails when its outputs
    are collected.

    Args:
        jobs: the plan.
        of: one of `LISTS`.
        most: largest number of parts; 0 gives each job its own.

    Raises:
        B4MError: for another list, or a negative `most`.
    """
    if most < 0:
        raise B4MError(f"tasks={most} must be 0 or more")
    keys = [job.key for job in _listed(jobs, of)]
    count = max(1, min(most or len(keys), len(keys)))
    edges = [len(keys) * number // count for number in range(count + 1)]
    return [
        Shard(_name(keys[first:end]), of, first, end)
        for first, end in zip(edges, edges[1:], strict=False)
    ]


def trainings_of(jobs: Plan, shard: Shard) -> tuple[TrainJob, ...]:
    """The trainings of a shard."""
    return jobs.trainings[shard.first : shard.end] if shard.of == "trainings" else ()


def merges_of(jobs: Plan, shard: Shard) -> tuple[MergeJob, ...]:
    """The merges of a shard."""
    return _merges(jobs, shard.of)[shard.first : shard.end]


def samples_of(jobs: Plan, shard: Shard) -> tuple[SampleJob, ...]:
    """The samples of a shard: its own, or those that need its merges."""
    if shard.of == "samples":
        return _unmerged(jobs)[shard.first : shard.end]
    merged = {job.key for job in merges_of(jobs, shard)}
    return tuple(job for job in jobs.samples if merged.intersection(job.adapters))


def _listed(jobs: Plan, of: str) -> Sequence[TrainJob | MergeJob | SampleJob]:
    if of not in LISTS:
        raise B4MError(f"unknown list of jobs {of!r}; known: {', '.join(LISTS)}")
    if of == "trainings":
        return jobs.trainings
    return _unmerged(jobs) if of == "samples" else _merges(jobs, of)


def _merges(jobs: Plan, of: str) -> tuple[MergeJob, ...]:
    if of not in ("closed_form", "learned"):
        return ()
    return tuple(job for job in jobs.merges if job.learned == (of == "learned"))


def _unmerged(jobs: Plan) -> tuple[SampleJob, ...]:
    merged = {job.key for job in jobs.merges}
    return tuple(job for job in jobs.samples if not merged.intersection(job.adapters))


def _name(keys: Sequence[str]) -> str:
    if not keys:
        return "nothing"
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"
