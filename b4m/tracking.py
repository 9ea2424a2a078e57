"""Runs in MLflow: the only module that imports it, and only when a run is opened.

A pipeline run is a parent run; every adapter, merge and evaluation is a child of it. The link is
the tag `mlflow.parentRunId`, because the children are other processes: the first one opens the
parent, the last one closes it, and whichever fails marks it failed. What decides where things
go, in this order:

- `B4M_TRACKING=off`: nothing is recorded.
- `MLFLOW_RUN_ID`: a platform made the run; it is used, and left open for the platform to close.
- `B4M_PARENT_RUN` (or the argument `parent`): a child of that run, in its experiment.
- otherwise a run of its own, in `MLFLOW_EXPERIMENT_ID`, `MLFLOW_EXPERIMENT_NAME` or "b4m".

`MLFLOW_TRACKING_URI` is respected; the default is runs/mlflow.db with files in runs/mlartifacts.
Recording never stops the work: when MLflow fails, one warning is given and the work goes on.
"""

import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from PIL import Image

from b4m.data.dvc import data_md5
from b4m.version import git_commit

EXPERIMENT = "b4m"
# MLflow's own limits: 100 parameters per request, 6000 characters in one, 8000 in a tag.
_BATCH, _LONGEST_PARAM, _LONGEST_TAG = 100, 6000, 8000
_SLOW_S, _PAUSE_S, _REACH_S = 5.0, 60.0, 5.0


class Tracker(Protocol):
    """Where parameters, numbers, pictures and files of a run go."""

    @property
    def run_id(self) -> str:
        """Id for `B4M_PARENT_RUN` of children; "" when nothing is recorded."""
        ...

    def params(self, values: Mapping[str, object]) -> None:
        """Record settings; nested mappings and dataclasses are flattened with dots."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers, named with slashes ("train/loss"), after `step` optimizer steps."""

    def image(self, name: str, image: Image.Image, step: int = 0) -> None:
        """Record a picture after `step` optimizer steps."""

    def files(self, paths: Sequence[Path], folder: str = "") -> None:
        """Record files (an adapter, a report) or whole folders."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags; empty values are left out."""


class NullTracker:
    """Records nothing."""

    run_id = ""

    def params(self, values: Mapping[str, object]) -> None:
        """Do nothing."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Do nothing."""

    def image(self, name: str, image: Image.Image, step: int = 0) -> None:
        """Do nothing."""

    def files(self, paths: Sequence[Path], folder: str = "") -> None:
        """Do nothing."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Do nothing."""


class MLflowTracker:
    """One MLflow run. Failures are reported once and then passed over."""

    def __init__(self, client: Any, run_id: str, owned: bool) -> None:
        self.run_id = run_id
        self._client = client
        self._owned = owned
        self._warned = False
        self._paused_until = 0.0

    def params(self, values: Mapping[str, object]) -> None:
        """Record settings; nested mappings and dataclasses are flattened with dots."""
        from mlflow.entities import Param

        entries = [Param(key, _cut(value, _LONGEST_PARAM)) for key, value in flatten(values)]
        for start in range(0, len(entries), _BATCH):
            part = entries[start : start + _BATCH]
            self._try(partial(self._client.log_batch, self.run_id, params=part))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers, named with slashes ("train/loss"), after `step` optimizer steps."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(_name(key), float(value), now, step) for key, value in values.items()]
        for start in range(0, len(entries), _BATCH):
            part = entries[start : start + _BATCH]
            self._try(partial(self._client.log_batch, self.run_id, metrics=part))

    def image(self, name: str, image: Image.Image, step: int = 0) -> None:
        """Record a picture after `step` optimizer steps."""
        image = image.convert("RGB")
        self._try(partial(self._client.log_image, self.run_id, image, key=_name(name), step=step))

    def files(self, paths: Sequence[Path], folder: str = "") -> None:
        """Record files (an adapter, a report) or whole folders."""
        for path in map(Path, paths):
            send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            self._try(partial(send, self.run_id, str(path), folder or None))

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags; empty values are left out."""
        for key, value in values.items():
            if value:
                cut = _cut(value, _LONGEST_TAG)
                self._try(partial(self._client.set_tag, self.run_id, key, cut))

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED; a platform's run is the platform's."""
        if self._owned:
            self._paused_until = 0.0
            self._try(partial(self._client.set_terminated, self.run_id, status))

    def _try(self, action: Callable[[], object]) -> None:
        start = time.monotonic()
        if start < self._paused_until:
            return
        try:
            action()
        except Exception as error:  # whatever MLflow, SQLAlchemy or requests raise
            if time.monotonic() - start > _SLOW_S:
                # A server that is gone costs seconds per call; ask again in a minute.
                self._paused_until = time.monotonic() + _PAUSE_S
            if not self._warned:
                self._warned = True
                _warn(error)


@contextmanager
def open_tracker(
    name: str,
    stage: str = "",
    method: str = "",
    settings: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    parent: str = "",
    goes_on: bool = False,
) -> Iterator[Tracker]:
    """A run for the body of a `with`; it ends FINISHED, FAILED or KILLED with it.

    Args:
        name: shown in the list of runs, such as "b4m/octopus+openmoji/s0".
        stage: tag b4m.stage: customize, content, style, merge, sample, evaluate or report.
        method: tag b4m.method.
        settings: recorded as parameters, flattened with dots.
        tags: further tags.
        parent: id of the parent run; `B4M_PARENT_RUN` if left out.
        goes_on: other processes continue this run (`part_of`): it stays open unless it fails.
    """
    known = {
        "b4m.stage": stage,
        "b4m.method": method,
        "mlflow.source.name": "b4m",
        "mlflow.source.git.commit": git_commit(),
        "dvc.data_md5": data_md5(),
        "kfp.run_id": os.environ.get("B4M_KFP_RUN_ID", ""),
        "image.digest": os.environ.get("B4M_IMAGE_DIGEST", ""),
        **(tags or {}),
    }
    tracker = _open(name, {key: value for key, value in known.items() if value}, parent)
    tracker.params(settings or {})
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if isinstance(tracker, MLflowTracker) and not (goes_on and status == "FINISHED"):
            tracker.finish(status)


@contextmanager
def part_of(parent: str, last: bool = False) -> Iterator[None]:
    """One step of a parent run that another process opened; runs inside are its children.

    Args:
        parent: id of the parent run; "" when nothing is recorded.
        last: the parent ends FINISHED with this step. Any step that fails ends it FAILED or KILLED;
            a process that is killed outright cannot, and its parent stays RUNNING.
    """
    before = os.environ.get("B4M_PARENT_RUN", "")
    os.environ["B4M_PARENT_RUN"] = parent
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        os.environ["B4M_PARENT_RUN"] = before
        if parent and (last or status != "FINISHED"):
            _end(parent, status)


def _end(run_id: str, status: str) -> None:
    if os.environ.get("B4M_TRACKING", "").lower() == "off" or os.environ.get("MLFLOW_RUN_ID"):
        return
    try:
        uri = tracking_uri()
        _reach(uri)
        from mlflow import MlflowClient

        MlflowClient(tracking_uri=uri).set_terminated(run_id, status)
    except Exception as error:  # whatever MLflow, SQLAlchemy or requests raise
        _warn(error)


def tracking_uri() -> str:
    """Where runs go: `MLFLOW_TRACKING_URI`, or runs/mlflow.db below the working directory."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    path = str(Path("runs/mlflow.db").resolve())
    if unquote(path) != path or "?" in path:
        path = "runs/mlflow.db"  # MLflow reads an address quoted here and unquoted there
    return given or f"sqlite:///{path}"


def flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Names joined with dots and their values: {"adapter": {"rank": 8}} gives adapter.rank."""
    for key, value in values.items():
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield _name(f"{prefix}{key}"), value


def _open(name: str, tags: dict[str, str], parent: str) -> Tracker:
    if os.environ.get("B4M_TRACKING", "").lower() == "off":
        return NullTracker()
    # Set before MLflow is imported; a dead server must cost seconds, not the default four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        uri = tracking_uri()
        _reach(uri)
        with _alone(uri):
            return _start(uri, name, tags, parent or os.environ.get("B4M_PARENT_RUN", ""))
    except Exception as error:  # whatever MLflow, SQLAlchemy or requests raise
        _warn(error)
        return NullTracker()


def _start(uri: str, name: str, tags: dict[str, str], parent: str) -> MLflowTracker:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
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
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID", "") or _experiment(client, uri)
    tags = {key: _cut(value, _LONGEST_TAG) for key, value in tags.items()}
    run = client.create_run(experiment, tags=tags, run_name=name)
    return MLflowTracker(client, run.info.run_id, owned=True)


def _experiment(client: Any, uri: str) -> str:
    """Id of the experiment, made on first use with its files beside a local database."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    database = _database(uri)
    folder = (database.parent / "mlartifacts").resolve().as_uri() if database else None
    return str(client.create_experiment(name, artifact_location=folder))


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


def _name(text: str) -> str:
    """A name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-./ ]", "_", text, flags=re.ASCII)[:250]


def _cut(value: object, longest: int) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _warn(error: Exception) -> None:
    first = str(error).strip().splitlines()[:1] or [""]
    warnings.warn(
        f"MLflow does not record this run, the work goes on ({type(error).__name__}: {first[0]})",
        RuntimeWarning,
        stacklevel=2,
    )
