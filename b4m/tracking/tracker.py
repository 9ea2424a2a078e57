"""Where the numbers and files of a run go: into MLflow, or nowhere."""

import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

# MLflow's own limits: 100 parameters per request, 6000 characters in one, 8000 in a tag.
_BATCH, _LONGEST_PARAM, LONGEST_TAG = 100, 6000, 8000
_SLOW_S, _PAUSE_S = 5.0, 60.0


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
            self._try(partial(send, self.run_id, str(path), folder or None))

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags; empty values are left out."""
        for key, value in values.items():
            if value:
                text = cut(value, LONGEST_TAG)
                self._try(partial(self._client.set_tag, self.run_id, key, text))

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
        f"MLflow does not record this run, the work goes on ({type(error).__name__}: {first[0]})",
        RuntimeWarning,
        stacklevel=2,
    )
