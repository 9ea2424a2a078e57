"""Where the numbers and files of a run go: into MLflow, or nowhere."""

import json
import re
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from b4m.data.repository import without_credentials
from b4m.tracking.patience import try_again, unreachable

# MLflow's own limits: 100 parameters per request, 6000 characters in one, 8000 in a tag.
_BATCH, _LONGEST_PARAM, LONGEST_TAG = 100, 6000, 8000
_LONGEST_NAME, _LONGEST_DIGEST = 500, 36  # of a dataset
_SLOW_S, _PAUSE_S = 5.0, 60.0
_MOST_MISSED = 10_000  # of an hour-long absence the last ones


class Tracker(Protocol):
    """Where parameters, numbers, pictures and files of a run go."""

    @property
    def run_id(self) -> str:
        """Id, for `children_of`; "" when nothing is recorded."""
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

    def dataset(self, name: str, digest: str, source: str, use: str = "training") -> None:
        """Record what data went in: name, hash, where it is from, and what for."""


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

    def dataset(self, name: str, digest: str, source: str, use: str = "training") -> None:
        """Do nothing."""


class MLflowTracker:
    """One MLflow run. Failures are reported once; what an absent server misses is made up for."""

    def __init__(self, client: Any, run_id: str, owned: bool) -> None:
        self.run_id = run_id
        self._client = client
        self._owned = owned
        self._warned = False
        self._paused_until = 0.0
        self._missed: deque[Callable[[], object]] = deque(maxlen=_MOST_MISSED)

    def params(self, values: Mapping[str, object]) -> None:
        """Record settings; nested mappings and dataclasses are flattened with dots."""
        from mlflow.entities import Param

        named = flatten(values, "" if self._owned else "b4m.")
        entries = [Param(key, cut(value, _LONGEST_PARAM)) for key, value in named]
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
            self._missed.append(partial(send, self.run_id, str(path), folder or None))
        self.settle()  # at once: they may be gone later

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags; empty values are left out."""
        for key, value in values.items():
            if value:
                text = cut(value, LONGEST_TAG)
                self._try(partial(self._client.set_tag, self.run_id, key, text))

    def dataset(self, name: str, digest: str, source: str, use: str = "training") -> None:
        """Record what data went in: name, hash, where it is from, and what for."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        place = json.dumps({"uri": source})
        data = Dataset(cut(name, _LONGEST_NAME), digest[:_LONGEST_DIGEST], "local", place)
        inputs = [DatasetInput(data, [InputTag("mlflow.data.context", use)])]
        self._try(partial(self._client.log_inputs, self.run_id, inputs))

    def monitor(self) -> Any:
        """MLflow's own watcher of the machine, not yet started; it writes to this run."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        return SystemMetricsMonitor(
            self.run_id, resume_logging=not self._owned, tracking_uri=self._client.tracking_uri
        )

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED; a platform's run is the platform's."""
        if self._owned:
            self._missed.append(partial(self._client.set_terminated, self.run_id, status))
        self.settle()

    def settle(self) -> None:
        """Record now what a server that was away has missed, if need be after a while."""
        self._paused_until = 0.0
        while (error := self._catch_up()) is not None:
            if not try_again(error):
                self._warn(error)
                return

    def _try(self, action: Callable[[], object]) -> None:
        self._missed.append(action)
        start = time.monotonic()
        if start < self._paused_until:
            return
        error = self._catch_up()
        if error is not None:
            if time.monotonic() - start > _SLOW_S:
                # A server that is gone costs seconds per call; ask again in a minute.
                self._paused_until = time.monotonic() + _PAUSE_S
            self._warn(error)

    def _catch_up(self) -> Exception | None:
        """Record what is waiting, in its order; the error if the server does not answer."""
        while self._missed:
            try:
                self._missed[0]()
            except Exception as error:  # whatever MLflow, SQLAlchemy or requests raise
                if unreachable(error):
                    return error
                self._warn(error)
            self._missed.popleft()
        return None

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            warn(error)


def flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Names joined with dots and their values: {"adapter": {"rank": 8}} gives adapter.rank."""
    for key, value in values.items():
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield _name(f"{prefix}{key}"), value


def _name(text: str) -> str:
    """A name with the characters that MLflow allows."""
    return re.sub(r"[^\w\-./ ]", "_", text, flags=re.ASCII)[:250]


def cut(value: object, longest: int) -> str:
    """A value as text of at most `longest` characters."""
    text = str(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def warn(error: Exception) -> None:
    """Say that MLflow failed and nothing else did."""
    first = str(error).strip().splitlines()[:1] or [""]
    warnings.warn(
        "MLflow does not record this run, the work goes on "
        f"({type(error).__name__}: {without_credentials(first[0])})",
        RuntimeWarning,
        stacklevel=2,
    )
