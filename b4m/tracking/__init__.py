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
from contextlib import contextmanager, nullcontext

from b4m.tracking.fetch import fetch
from b4m.tracking.pipeline import end_pipeline, pipeline_step
from b4m.tracking.store import (
    PARENT,
    RECORDED,
    children_of,
    guarded,
    start,
    tags_of_all,
    tracking_uri,
)
from b4m.tracking.system import watching
from b4m.tracking.tracker import MLflowTracker, NullTracker, Tracker, flatten

__all__ = [
    "NullTracker",
    "Tracker",
    "children_of",
    "end_pipeline",
    "fetch",
    "flatten",
    "open_tracker",
    "pipeline_step",
    "tracking_uri",
    "unrecorded",
]


@contextmanager
def open_tracker(
    name: str,
    stage: str = "",
    method: str = "",
    settings: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    watched: bool = False,
) -> Iterator[Tracker]:
    """A run for the body of a `with`; it ends FINISHED, FAILED or KILLED with it.

    Args:
        name: shown in the list of runs, such as "b4m/octopus+openmoji/s0".
        stage: tag b4m.stage: pipeline, content, style, joint, merge, evaluate, report, compare.
        method: tag b4m.method.
        settings: recorded as parameters, flattened with dots.
        tags: further tags.
        watched: record how much of the machine is used meanwhile, as MLflow's system metrics;
            `MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false` does not.
    """
    parent = PARENT.get() or os.environ.get("B4M_PARENT_RUN", "")
    about = {"b4m.stage": stage, "b4m.method": method, **tags_of_all(), **(tags or {})}
    tracker = guarded(lambda client, uri: start(client, uri, name, about, parent))
    tracker.params(settings or {})
    status = "FAILED"
    try:
        with watching(tracker) if watched else nullcontext():
            yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if isinstance(tracker, MLflowTracker):
            tracker.finish(status)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Runs opened inside are not recorded: there would be thousands of them."""
    token = RECORDED.set(False)
    try:
        yield
    finally:
        RECORDED.reset(token)
