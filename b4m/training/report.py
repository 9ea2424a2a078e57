"""What a training tells while it goes on: to a tracker, and on the progress bar."""

import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from PIL import Image

from b4m.training.memory import peak_memory


class Tracker(Protocol):
    """Where numbers and images of a run go."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers after `step` optimizer steps."""

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """Record an image after `step` optimizer steps."""


class NullTracker:
    """Records nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """Do nothing."""


class Report:
    """Losses, gradient norms, speed and memory since the last report.

    Args:
        images: that one step shows, in all processes.
    """

    def __init__(self, images: int) -> None:
        self._images = images
        self._values: dict[str, list[float]] = {}
        self._steps, self._begun = 0, time.monotonic()

    def add(self, values: Mapping[str, float]) -> None:
        """Take in the numbers of one step; the infinite norm of a skipped step says nothing."""
        for key, value in values.items():
            if math.isfinite(value):
                self._values.setdefault(key, []).append(value)
        self._steps += 1

    def means(self) -> dict[str, float]:
        """Mean of each number, speed, and the largest memory so far; the next starts empty."""
        now = time.monotonic()
        means = {key: math.fsum(values) / len(values) for key, values in self._values.items()}
        speed = self._steps / max(now - self._begun, 1e-9)
        means |= {"steps_per_second": speed, "images_per_second": speed * self._images}
        means["peak_gib"] = peak_gib()
        self._values, self._steps, self._begun = {}, 0, now
        return means


def peak_gib() -> float:
    """The most GiB held so far: of the fullest GPU if there is one, else of this process."""
    peaks = peak_memory()
    of_gpus = [value for name, value in peaks.items() if "gpu" in name]
    return max(of_gpus or peaks.values(), default=0.0) / 1024


def progress(name: str, done: int, steps: int, shown: bool) -> Any:
    """Step numbers still to do, with a bar on standard error."""
    from tqdm import tqdm

    return tqdm(
        range(done, steps),
        desc=name,
        initial=done,
        total=steps,
        unit="step",
        file=sys.stderr,
        disable=not shown or os.environ.get("B4M_PROGRESS") == "off",
        mininterval=1.0,
    )
