"""Where MLflow is, and its runs there."""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from b4m.data.dvc import data_md5
from b4m.data.repository import without_credentials
from b4m.errors import B4MError
from b4m.tracking.patience import try_again
from b4m.tracking.tracker import LONGEST_TAG, MLflowTracker, NullTracker, Tracker, cut, warn
from b4m.version import git_commit

EXPERIMENT = "b4m"
PARENT: ContextVar[str] = ContextVar("parent", default="")
RECORDED: ContextVar[bool] = ContextVar("recorded", default=True)
_OURS = (
    "B4M_MLFLOW_TRACKING_URI",
    "B4M_MLFLOW_EXPERIMENT_NAME",
    "B4M_MLFLOW_TRACKING_USERNAME",
    "B4M_MLFLOW_TRACKING_PASSWORD",
)
_REACH_S = 5.0
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages open on runs
_log = logging.getLogger(__name__)


def tracking_uri() -> str:
    """Where runs go: `MLFLOW_TRACKING_URI`, or runs/mlflow.db below the working directory."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    path = str(Path("runs/mlflow.db").resolve())
    if unquote(path) != path or "?" in path:
        path = "runs/mlflow.db"  # MLflow reads an address quoted here and unquoted there
    return given or f"sqlite:///{path}"


def guarded(start: Callable[[Any, str], Tracker]) -> Tracker:
    """What `start` makes of an MLflow client and its address; a NullTracker if that fails."""
    if os.environ.get("B4M_TRACKING", "").lower() == "off" or not RECORDED.get():
        return NullTracker()
    _prepare_environment()
    if find_spec("mlflow") is None and not os.environ.get("MLFLOW_TRACKING_URI"):
        _log.info("not recorded, because mlflow is not installed: pip install 'b4m[tracking]'")
        return NullTracker()
    while True:
        try:
            uri = tracking_uri()
            _reach(uri)
            with _alone(uri):
                from mlflow import MlflowClient

                tracker = start(MlflowClient(tracking_uri=uri), uri)
                _log.info("recorded in %s as run %s", without_credentials(uri), tracker.run_id)
                return tracker
        except Exception as error:  # whatever MLflow, SQLAlchemy or requests raise
            if not try_again(error):
                warn(error)
                return NullTracker()


def connect() -> tuple[Any, str]:
    """A client of MLflow and its address, for those who cannot do without.

    Raises:
        B4MError: if it cannot be reached.
    """
    _prepare_environment()
    uri = tracking_uri()
    try:
        _reach(uri)
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri), uri
    except Exception as error:  # whatever MLflow, SQLAlchemy or requests raise
        text = without_credentials(f"MLflow at {uri} cannot be reached: {error}")
        raise B4MError(text) from error


@contextmanager
def children_of(parent: str) -> Iterator[None]:
    """Runs opened inside are children of this run; "" changes nothing."""
    token = PARENT.set(parent or PARENT.get())
    try:
        yield
    finally:
        PARENT.reset(token)


def _prepare_environment() -> None:
    """What MLflow reads from the environment alone, before it is imported."""
    if not os.environ.get("MLFLOW_RUN_ID"):  # a platform's run lies where the platform says
        for name in _OURS:
            if os.environ.get(name):
                os.environ.setdefault(name.removeprefix("B4M_"), os.environ[name])
    # A dead server must cost seconds, not the default four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def start(
    client: Any, uri: str, name: str, tags: Mapping[str, str], parent: str = ""
) -> MLflowTracker:
    """Make a run, or take the one that a platform made.

    Args:
        client: MLflow's client.
        uri: its address.
        name: of the run.
        tags: empty ones are left out.
        parent: id of the run that it is a child of.
    """
    given = os.environ.get("MLFLOW_RUN_ID", "")
    if given:
        there = client.get_run(given).data.tags
        tracker = MLflowTracker(client, given, owned=False)
        tracker.tags({key: value for key, value in tags.items() if key not in there})
        return tracker
    if parent:
        experiment = client.get_run(parent).info.experiment_id
        tags = {**tags, "mlflow.parentRunId": parent}
    else:
        experiment = experiment_of(client, uri)
    tags = {key: cut(value, LONGEST_TAG) for key, value in tags.items() if value}
    run = client.create_run(experiment, tags=tags, run_name=name)
    return MLflowTracker(client, run.info.run_id, owned=True)


def tags_of_all() -> dict[str, str]:
    """Tags that every run has."""
    return {
        "mlflow.source.name": "b4m",
        "mlflow.source.git.commit": git_commit(),
        "dvc.data_md5": data_md5(),
        "kfp.run_id": os.environ.get("B4M_KFP_RUN_ID", ""),
        "image": os.environ.get("B4M_IMAGE", ""),
    }


def experiment_of(client: Any, uri: str) -> str:
    """Id of the experiment, made on first use with its files beside a local database."""
    given = os.environ.get("MLFLOW_EXPERIMENT_ID", "")
    if given:
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    database = _database(uri)
    folder = (database.parent / "mlartifacts").resolve().as_uri() if database else None
    return str(client.create_experiment(name, artifact_location=folder, tags=_KIND))


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time while a local database and its experiment may have to be made."""
    database = _database(uri)
    if database is None:
        yield
        return
    from filelock import FileLock

    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=120):
        yield


def _database(uri: str) -> Path | None:
    """File of a SQLite address, else None."""
    address = uri.partition("?")[0]
    if not address.startswith("sqlite:///"):
        return None
    return Path(unquote(address.removeprefix("sqlite:///")))


def _reach(uri: str) -> None:
    """Fail within seconds when nobody listens at an HTTP address."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    # Behind a proxy the name may not even resolve here.
    if proxy_bypass(parts.hostname) or parts.scheme not in getproxies():
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname, port), timeout=_REACH_S).close()
