"""How much of the machine a run uses, as MLflow itself records it: CPU, memory, disk, GPU."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from b4m.tracking.tracker import MLflowTracker, Tracker, warn


@contextmanager
def watching(run: Tracker) -> Iterator[None]:
    """Record system metrics of a run while the body lasts, every ten seconds.

    What cannot be recorded does not stop the work.
    """
    monitor = None
    given = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "")
    wanted = given.lower() not in ("false", "0")
    if wanted and isinstance(run, MLflowTracker) and find_spec("psutil") is not None:
        try:
            logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
            monitor = run.monitor()
            monitor.start()
        except Exception as error:  # whatever MLflow or a driver raises
            warn(error)
    try:
        yield
    finally:
        if monitor is not None:
            monitor.finish()
