"""A comparison's jobs carried out by any number of processes at one folder, each job once.

A job is done when its file or folder is there. A process that begins one claims it; the claim ends
with the process, however it ends, so whoever is killed is replaced by whoever is started. Jobs that
need what another process is making wait for it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from b4m.errors import B4MError
from b4m.evaluation.times import Time, note_time
from b4m.io import claimed

_MOST_FAILURES = 5
_PAUSE = 2.0
"""Seconds between looks at what other processes are making."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One job with what it needs.

    Attributes:
        key: its name.
        stage: training, merge or images.
        method: way of training, method, or row.
        result: file or folder that it makes.
        needs: files that must be there.
        do: makes the result, whole or not at all.
    """

    key: str
    stage: str
    method: str
    result: Path
    needs: tuple[Path, ...]
    do: Callable[[], object]


def carry_out(steps: Sequence[Step], folder: Path, pause: float = _PAUSE) -> None:
    """Do what is missing and no other process does, until nothing is missing.

    A step that fails is noted, and what needs its result is left out; the others are done.

    Args:
        steps: in an order in which they can be done.
        folder: of the comparison; claims and times lie in it.
        pause: seconds between looks at what other processes are making.

    Raises:
        B4MError: at the end if some failed, with the first reason; at once after five.
    """
    waiting = [step for step in steps if not step.result.exists()]
    failed: dict[Path, str] = {}
    while waiting:
        left = [step for step in waiting if not _finished(step, folder, failed)]
        if len(left) == len(waiting):
            time.sleep(pause)
        waiting = left
    if failed:
        raise B4MError(_told(failed))


def in_order(steps: Sequence[Step], wanted: Sequence[Path]) -> list[Step]:
    """Steps so that the results that are wanted first are made first, each after what it needs."""
    makers = {step.result: step for step in steps}
    ordered: dict[Path, Step] = {}

    def visit(result: Path) -> None:
        step = makers.get(result)
        if step is not None and result not in ordered:
            for need in step.needs:
                visit(need)
            ordered[result] = step

    for result in wanted:
        visit(result)
    return [*ordered.values(), *(step for step in steps if step.result not in ordered)]


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Wait until no other process does this in the folder."""
    while True:
        with claimed(folder / "claims" / what) as mine:
            if mine:
                yield
                return
        time.sleep(_PAUSE)


def _finished(step: Step, folder: Path, failed: dict[Path, str]) -> bool:
    """Whether nothing remains to do for this step: made here or elsewhere, or it cannot be made."""
    if step.result.exists():
        return True
    if any(file in failed for file in step.needs):
        return True
    if not all(file.exists() for file in step.needs):
        return False
    with claimed(folder / "claims" / step.key) as mine:
        if not mine:
            return False
        if step.result.exists():  # made by another process between the look and the claim
            return True
        start = time.monotonic()
        try:
            step.do()
        except Exception as error:
            _log.warning("%s failed", step.key, exc_info=True)
            failed[step.result] = f"{step.key}: {str(error) or type(error).__name__}"
            if len(failed) >= _MOST_FAILURES:
                raise B4MError(_told(failed)) from error
            return True
        seconds = round(time.monotonic() - start, 2)
        note_time(folder, Time(step.key, step.stage, step.method, seconds))
    return True


def _told(failed: dict[Path, str]) -> str:
    first = next(iter(failed.values()))
    return f"{len(failed)} jobs failed, first {first}; what did not need them is done"
