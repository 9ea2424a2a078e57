"""The graph that all pipelines share: a plan's jobs fanned out over tasks, then scored and shown.

    plan -> prepare -> trainings -> collect -> closed-form merges -> images -> evaluate -> report
                                            -> learned merges     -> images ->
                                            -> images without a merge       ->

The planner decides (`b4m.plan`); the graph only carries its jobs out. Each loop goes over parts of
one kind of jobs. Loops have no `name`: servers before 2.16 then cannot find what is collected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kfp import dsl

from components.collect_adapters import collect_adapters
from components.evaluate import evaluate
from components.merge_adapters import merge_adapters
from components.plan_jobs import plan_jobs
from components.prepare_data import prepare_data
from components.report import report
from components.sample_images import sample_images
from components.share_jobs import share_jobs
from components.train_adapters import train_adapters
from pipelines.resources import PARALLEL, Amounts, heavy, light, on_accelerator


@dataclass(frozen=True)
class Compared:
    """What a pipeline compares, as its parameters: see the pipelines for their meanings.

    Attributes:
        concepts: contents, styles and pairing as `plan_jobs` names them.
    """

    concepts: Mapping[str, Any]
    methods: Any
    seeds: Any
    source: Any
    style_images: Any
    partners: Any
    base: Any
    evaluator: Any
    train_settings: Any
    merge_settings: Any
    sample_settings: Any


@dataclass(frozen=True)
class Tasks:
    """How a pipeline's jobs become tasks.

    Attributes:
        most: most tasks of a kind of jobs; 0 gives each job its own.
        bulk: many jobs: those that fail are passed over, adapters stay in the working folder.
        amounts: what heavy tasks get.
    """

    most: Any
    bulk: bool
    amounts: Amounts


@dataclass(frozen=True)
class Carried:
    """The tasks and lists that a pipeline may go on with."""

    planned: dsl.PipelineTask
    prepared: dsl.PipelineTask
    trained: dsl.PipelineTask
    merges: Mapping[str, dsl.PipelineTask]
    samples: Mapping[str, dsl.PipelineTask]
    scored: dsl.PipelineTask
    shown: dsl.PipelineTask


def all_images(samples: Mapping[str, dsl.PipelineTask]) -> dict[str, Any]:
    """The images of all loops, by how their adapters were made."""
    return {name: dsl.Collected(task.outputs["samples"]) for name, task in samples.items()}


def carry_out(pipeline: str, compared: Compared, tasks: Tasks) -> Carried:
    """Build the graph inside a pipeline's function.

    Args:
        pipeline: name of the pipeline.
        compared: what is compared.
        tasks: how its jobs become tasks.
    """
    planned = _planned(pipeline, compared, tasks)
    jobs = planned.outputs["jobs"]
    prepared = prepare_data(
        source=compared.source,
        style_images=compared.style_images,
        partners=compared.partners,
        jobs=jobs,
    )
    # A cached folder would hide images that changed in place, and each run must have its own.
    light(prepared, "prepare data").set_caching_options(False)
    given = {
        "bulk": tasks.bulk,
        "base": compared.base,
        "jobs": jobs,
        "data": prepared.outputs["data"],
    }

    with dsl.ParallelFor(planned.outputs["Output"], parallelism=PARALLEL) as shard:
        training = train_adapters(shard=shard, **given)
        on_accelerator(training, "train", tasks.amounts)
    trained = collect_adapters(trained=dsl.Collected(training.outputs["adapters"]))
    heavy(trained, "collect adapters", tasks.amounts)

    merges, sets = {}, {}
    for of, place in (("closed_form", heavy), ("learned", on_accelerator)):
        with dsl.ParallelFor(_shared(jobs, of, tasks), parallelism=PARALLEL) as shard:
            merging = merge_adapters(shard=shard, adapters=trained.outputs["adapters"], **given)
            place(merging, f"merge ({of.replace('_', '-')})", tasks.amounts)
            sampling = sample_images(
                shard=shard, seeds=compared.seeds, adapters=merging.outputs["merged"], **given
            )
            on_accelerator(sampling, "sample merged", tasks.amounts)
        merges[of], sets[of] = merging, sampling
    with dsl.ParallelFor(_shared(jobs, "samples", tasks), parallelism=PARALLEL) as shard:
        sampling = sample_images(
            shard=shard, seeds=compared.seeds, adapters=trained.outputs["adapters"], **given
        )
        on_accelerator(sampling, "sample", tasks.amounts)
    sets["unmerged"] = sampling
    scored, shown = _shown(compared.evaluator, jobs, prepared, sets, tasks)
    return Carried(planned, prepared, trained, merges, sets, scored, shown)


def _planned(pipeline: str, compared: Compared, tasks: Tasks) -> dsl.PipelineTask:
    planned = plan_jobs(
        pipeline=pipeline,
        methods=compared.methods,
        train_settings=compared.train_settings,
        merge_settings=compared.merge_settings,
        sample_settings=compared.sample_settings,
        tasks=tasks.most,
        **compared.concepts,
    )
    return light(planned, "plan").set_caching_options(False)


def _shared(jobs: Any, of: str, tasks: Tasks) -> Any:
    """The parts of one kind of jobs.

    A task of its own for each kind, because KFP's local runner loops over a task's only output and
    over none of several.
    """
    shared = share_jobs(jobs=jobs, of=of, tasks=tasks.most)
    return light(shared, f"share out {of.replace('_', '-')}").output


def _shown(
    evaluator: Any,
    jobs: Any,
    prepared: dsl.PipelineTask,
    sets: Mapping[str, dsl.PipelineTask],
    tasks: Tasks,
) -> tuple[dsl.PipelineTask, dsl.PipelineTask]:
    """Scores and report of all images."""
    data = prepared.outputs["data"]
    scored = evaluate(evaluator=evaluator, data=data, **all_images(sets))
    on_accelerator(scored, "evaluate", tasks.amounts)
    scores = scored.outputs["scores"]
    shown = report(bulk=tasks.bulk, jobs=jobs, data=data, scores=scores, **all_images(sets))
    return scored, heavy(shown, "report", tasks.amounts)
