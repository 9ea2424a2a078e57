"""What a run will have to do, before it is started: jobs, tasks and pods."""

from typing import Any, Mapping

from b4m.plan import Comparison, plan
from b4m.shards import LISTS, shards

# The loops by the task that a loop goes over the output of.
_LOOPS = {"plan": "trainings", **{f"share out {of.replace('_', '-')}": of for of in LISTS[1:]}}


def describe(name: str, spec: Any, parameters: Mapping[str, Any]) -> str:
    """Jobs, tasks and pods of a run, as lines of text.

    Args:
        name: of the pipeline.
        spec: its compiled form (a PipelineSpec).
        parameters: its parameters, those that are defaults included.

    Raises:
        B4MError: for parameters that cannot be planned.
    """
    comparison = comparison_of(parameters)
    jobs = plan(comparison)
    most = int(parameters.get("tasks", 0))
    parts = {of: shards(jobs, of, most) for of in LISTS}
    lines = [f"{name}: {comparison.title}, seeds {' '.join(map(str, parameters['seeds']))}"]
    for of, shared in parts.items():
        count = sum(shard.end - shard.first for shard in shared)
        largest = max(shard.end - shard.first for shard in shared)
        lines.append(
            f"  {_words(of):<20} {count:>6} in {len(shared)} tasks, at most {largest} in one"
        )
    lines.append(f"  {'images':<20} {len(jobs.samples) * len(parameters['seeds']):>6}")
    working, drivers = pods(spec, {of: len(shared) for of, shared in parts.items()})
    lines.append(f"  {'pods':<20} {working + drivers:>6}, {working} that work, {drivers} drivers")
    return "\n".join(lines)


def pods(spec: Any, sizes: Mapping[str, int]) -> "tuple[int, int]":
    """How many pods a server starts: those of tasks, and the drivers before them.

    A driver stands before each task, before each loop and each of its iterations, and before the
    whole.

    Args:
        spec: the compiled pipeline.
        sizes: iterations of the loops by kind of jobs.
    """
    root = spec.root.dag
    working, drivers = 0, 1
    for task in root.tasks.values():
        component = spec.components[task.component_ref.name]
        if not component.HasField("dag"):
            working, drivers = working + 1, drivers + 1
            continue
        body, count = len(component.dag.tasks), sizes[_looped(root, task)]
        working += count * body
        drivers += 1 + count * (1 + body)
    return working, drivers


def _looped(dag: Any, loop: Any) -> str:
    """The kind of jobs that a loop goes over."""
    items = loop.parameter_iterator.items.input_parameter
    producer = loop.inputs.parameters[items].task_output_parameter.producer_task
    return _LOOPS[dag.tasks[producer].task_info.name]


def comparison_of(parameters: Mapping[str, Any]) -> Comparison:
    """What a pipeline with these parameters compares.

    Raises:
        B4MError: if that is nothing, or cannot be.
    """
    return Comparison(
        tuple(parameters.get("contents") or [parameters["content"]]),
        tuple(parameters.get("styles") or [parameters["style"]]),
        tuple(parameters["methods"]),
        parameters.get("pairing", "every"),
    )


def _words(of: str) -> str:
    return {
        "closed_form": "closed-form merges",
        "learned": "learned merges",
        "samples": "sets of images",
    }.get(of, of)
