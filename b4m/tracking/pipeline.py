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
    if _run_id():
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
        if isinstance(parent, MLflowTracker):
            if last:
                guarded(lambda client, uri: _close_children(client, uri, _run_id()))
            if last or status != "FINISHED":
                parent.finish(status)
            else:
                parent.settle()


def end_pipeline(status: str, run: str = "") -> None:
    """Close what the processes of a pipeline run left open when they were killed.

    Args:
        status: of the run's parent: FINISHED, FAILED or KILLED. Its children become KILLED.
        run: id of the pipeline run; that in `B4M_KFP_RUN_ID` if left out.
    """
    run = run or _run_id()

    def end(client: Any, uri: str) -> Tracker:
        for found in parents_of(client, experiment_of(client, uri), run):
            if found.info.status == "RUNNING":
                client.set_terminated(found.info.run_id, status)
        return _close_children(client, uri, run)

    if run and not os.environ.get("MLFLOW_RUN_ID"):
        guarded(end)


def _run_id() -> str:
    return os.environ.get("B4M_KFP_RUN_ID", "")


def _close_children(client: Any, uri: str, run: str) -> Tracker:
    """Close what runs below a pipeline run are still open: nobody is left to do it."""
    if not os.environ.get("MLFLOW_RUN_ID"):
        text = f"{_of(run)} and attributes.status = 'RUNNING'"
        for found in client.search_runs([experiment_of(client, uri)], text):
            if found.data.tags.get("b4m.stage") != PIPELINE:
                client.set_terminated(found.info.run_id, "KILLED")
    return NullTracker()


def _pipeline_run(client: Any, uri: str, name: str) -> MLflowTracker:
    """The parent of this pipeline run, made if it is not there; the earliest one if two made it."""
    run = _run_id()
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
    text = f"{_of(run)} and tags.`b4m.stage` = '{PIPELINE}'"
    return list(client.search_runs([experiment], text, order_by=["attributes.start_time ASC"]))


def _of(run: str) -> str:
    """The filter for the runs of a pipeline run."""
    return "tags.`kfp.run_id` = '{}'".format(run.replace("'", ""))
