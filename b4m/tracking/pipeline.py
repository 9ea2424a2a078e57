"""The run of a whole pipeline: the parent of all runs that its steps make."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from b4m.tracking.store import children_of, experiment_of, guarded, start, tags_of_all
from b4m.tracking.tracker import MLflowTracker, NullTracker, Tracker

PIPELINE = "pipeline"
"""The tag b4m.stage of a pipeline run's parent."""


@contextmanager
def pipeline_step(
    name: str = "", settings: Mapping[str, object] | None = None, last: bool = False
) -> Iterator[Tracker]:
    """One step of a pipeline run; runs opened inside are children of the pipeline's own run.

    That run is found by the id in `B4M_KFP_RUN_ID`, or made. Without an id there is no parent.

    Args:
        name: of the parent, if this step makes it.
        settings: recorded as the parent's parameters.
        last: the parent ends FINISHED with this step. Any step that fails ends it FAILED or KILLED;
            a process that is killed outright cannot, see `end_pipeline`.
    """
    parent: Tracker = NullTracker()
    if os.environ.get("B4M_KFP_RUN_ID"):
        parent = guarded(lambda client, uri: _pipeline_run(client, uri, name))
    parent.params(settings or {})
    status = "FAILED"
    try:
        with children_of(parent.run_id):
            yield parent
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if isinstance(parent, MLflowTracker) and (last or status != "FINISHED"):
            parent.finish(status)


def end_pipeline(status: str) -> None:
    """Close the parent of the pipeline run `B4M_KFP_RUN_ID` if its processes left it open.

    Args:
        status: FAILED or KILLED.
    """
    run = os.environ.get("B4M_KFP_RUN_ID", "")

    def end(client: Any, uri: str) -> Tracker:
        for found in parents_of(client, experiment_of(client, uri), run):
            if found.info.status == "RUNNING":
                client.set_terminated(found.info.run_id, status)
        return NullTracker()

    if run and not os.environ.get("MLFLOW_RUN_ID"):
        guarded(end)


def _pipeline_run(client: Any, uri: str, name: str) -> MLflowTracker:
    """The parent of this pipeline run, made if it is not there; the earliest one if two made it."""
    run = os.environ["B4M_KFP_RUN_ID"]
    tags = {"b4m.stage": PIPELINE, **tags_of_all()}
    if os.environ.get("MLFLOW_RUN_ID"):
        return start(client, uri, name, tags)
    experiment = experiment_of(client, uri)
    made = ""
    if not parents_of(client, experiment, run):
        made = start(client, uri, name or f"{PIPELINE}/{run}", tags).run_id
    first = parents_of(client, experiment, run)[0].info.run_id
    if made not in ("", first):
        client.delete_run(made)
    return MLflowTracker(client, first, owned=True)


def parents_of(client: Any, experiment: str, run: str) -> list[Any]:
    """Parents of a pipeline run, the earliest first."""
    quoted = run.replace("'", "")
    text = f"tags.`kfp.run_id` = '{quoted}' and tags.`b4m.stage` = '{PIPELINE}'"
    return list(client.search_runs([experiment], text, order_by=["attributes.start_time ASC"]))
