"""Runs in MLflow: the only room that imports it, and only when a run is opened.

A pipeline run is a parent run; every adapter, merge and evaluation is a child of it. The children
are other processes, so they find their parent by the tag `kfp.run_id`: the first step makes it, the
last one closes it, and whichever fails marks it failed. What decides where things go, in this
order:

- `B4M_TRACKING=off`: nothing is recorded.
- `MLFLOW_RUN_ID`: a platform made the run; it is used, and left open for the platform to close.
  Parameters are named b4m.NAME there, because a platform records its own.
- inside `pipeline_step`: a child of the run whose `kfp.run_id` is `B4M_KFP_RUN_ID`.
- inside `children_of`, or with `B4M_PARENT_RUN`: a child of that run, in its experiment.
- otherwise a run of its own, in `MLFLOW_EXPERIMENT_ID`, `MLFLOW_EXPERIMENT_NAME` or "b4m".

`MLFLOW_TRACKING_URI` is respected; the default is runs/mlflow.db with files in runs/mlartifacts.
`B4M_MLFLOW_TRACKING_URI`, `..._EXPERIMENT_NAME`, `..._TRACKING_USERNAME`, `..._TRACKING_PASSWORD`
stand in for MLflow's own variables where these are not set: a cluster's settings have their own
names, so that Kubeflow's MLflow plugin can set MLflow's.
Recording never stops the work: when MLflow fails, one warning is given and the work goes on.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from b4m.tracking.store import RECORDED, experiment_of, guarded, start, tags_of_all, tracking_uri
from b4m.tracking.tracker import MLflowTracker, NullTracker, Tracker, flatten

__all__ = [
    "NullTracker",
    "Tracker",
    "children_of",
    "end_pipeline",
    "flatten",
    "open_tracker",
    "pipeline_step",
    "tracking_uri",
    "unrecorded",
]

PIPELINE = "pipeline"
"""The tag b4m.stage of a pipeline run's parent."""
_PARENT: ContextVar[str] = ContextVar("parent", default="")


@contextmanager
def open_tracker(
    name: str,
    stage: str = "",
    method: str = "",
    settings: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Tracker]:
    """A run for the body of a `with`; it ends FINISHED, FAILED or KILLED with it.

    Args:
        name: shown in the list of runs, such as "b4m/octopus+openmoji/s0".
        stage: tag b4m.stage: pipeline, content, style, joint, merge, evaluate, report, compare.
        method: tag b4m.method.
        settings: recorded as parameters, flattened with dots.
        tags: further tags.
    """
    parent = _PARENT.get() or os.environ.get("B4M_PARENT_RUN", "")
    about = {"b4m.stage": stage, "b4m.method": method, **tags_of_all(), **(tags or {})}
    tracker = guarded(lambda client, uri: start(client, uri, name, about, parent))
    tracker.params(settings or {})
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if isinstance(tracker, MLflowTracker):
            tracker.finish(status)


@contextmanager
def children_of(parent: str) -> Iterator[None]:
    """Runs opened inside are children of this run; "" changes nothing."""
    token = _PARENT.set(parent or _PARENT.get())
    try:
        yield
    finally:
        _PARENT.reset(token)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Runs opened inside are not recorded: there would be thousands of them."""
    token = RECORDED.set(False)
    try:
        yield
    finally:
        RECORDED.reset(token)


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
        for found in _of_pipeline(client, experiment_of(client, uri), run):
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
    if not _of_pipeline(client, experiment, run):
        made = start(client, uri, name or f"{PIPELINE}/{run}", tags).run_id
    first = _of_pipeline(client, experiment, run)[0].info.run_id
    if made not in ("", first):
        client.delete_run(made)
    return MLflowTracker(client, first, owned=True)


def _of_pipeline(client: Any, experiment: str, run: str) -> list[Any]:
    """Parents of a pipeline run, the earliest first."""
    quoted = run.replace("'", "")
    text = f"tags.`kfp.run_id` = '{quoted}' and tags.`b4m.stage` = '{PIPELINE}'"
    return list(client.search_runs([experiment], text, order_by=["attributes.start_time ASC"]))
