"""Seconds of the jobs of a comparison, in one small table that several processes append to."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

TIMES = "times.csv"


@dataclass(frozen=True)
class Time:
    """How long one job took.

    Attributes:
        key: the job's name.
        stage: training, merge or images.
        method: way of training, method, or label of the images.
        seconds: of wall time, which says little where processes shared a core.
    """

    key: str
    stage: str
    method: str
    seconds: float


@dataclass(frozen=True)
class Spent:
    """What a comparison cost, as far as it is known.

    Attributes:
        times: of its jobs.
        numbers: how many numbers a row's adapter files hold, by its label.
    """

    times: Sequence[Time] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)


def note_time(folder: Path, time: Time) -> None:
    """Append one line; those of several processes do not mix."""
    with (folder / TIMES).open("a", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerow(astuple(time))


def read_times(folder: Path) -> list[Time]:
    """The jobs that were done in a comparison's folder; none if there is no record."""
    file = folder / TIMES
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.reader(stream) if len(row) == len(fields(Time))]
    return [Time(key, stage, method, float(seconds)) for key, stage, method, seconds in rows]
