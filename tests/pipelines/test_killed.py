"""A run that is killed: started again it does what was missing, and leaves nothing open."""

import csv
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
LONGEST_S = 1500.0


@pytest.fixture
def flags(own_pictures: Path, tiny_base: Path, tiny_evaluator: Path) -> list[str]:
    return [
        *("--source", str(own_pictures), "--contents", "cat", "--styles", "ink", "chalk"),
        *("--base", str(tiny_base), "--evaluator", str(tiny_evaluator)),
        *("--methods", "b4m", "direct", "--seeds", "0", "1", "--tasks", "1"),
        *("--train-settings", "steps=2", "rank=4", "--merge-settings", "b4m.steps=2"),
        *("--sample-settings", "steps=2"),
    ]


@contextmanager
def _running(
    repo_root: Path, out: Path, flags: list[str], **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A run of `compare` with all its tasks in a process group of its own."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f"{out.name}.printed").open("ab") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", "run", "compare", "--out", str(out), *flags],
            cwd=repo_root,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _run(repo_root: Path, out: Path, flags: list[str], **environment: str) -> None:
    with _running(repo_root, out, flags, **environment) as process:
        assert process.wait(LONGEST_S) == 0, _printed(out)


def _printed(out: Path) -> str:
    return (out.parent / f"{out.name}.printed").read_text(encoding="utf-8")[-4000:]


def _until(done: Callable[[], bool], process: subprocess.Popen[bytes], out: Path) -> None:
    end = time.monotonic() + LONGEST_S
    while not done():
        assert process.poll() is None, _printed(out)
        assert time.monotonic() < end, _printed(out)
        time.sleep(0.1)


def _table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _scores(out: Path) -> list[tuple[str, ...]]:
    rows = _table(out / "scores.csv")
    kept = ("method", "content", "style", "seed", "metric", "value", "encoder")
    return sorted(tuple(row[name] for name in kept) for row in rows)


def _states(database: Path) -> list[str]:
    with sqlite3.connect(database) as connection:
        return [row[0] for row in connection.execute("select status from runs")]


def test_a_run_killed_half_way_does_only_what_was_missing_and_gives_the_same_scores(
    repo_root: Path, tmp_path: Path, flags: list[str]
) -> None:
    _run(repo_root, tmp_path / "whole", flags, B4M_WORK=str(tmp_path / "a"), B4M_TRACKING="off")
    database, work, out = tmp_path / "mlflow.db", tmp_path / "b", tmp_path / "killed"
    surroundings = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}", "B4M_WORK": str(work)}
    with _running(repo_root, out, flags, **surroundings) as process:
        _until(lambda: len(list(work.glob("adapters/*.safetensors"))) >= 3, process, out)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = {file: file.stat().st_mtime_ns for file in work.glob("adapters/*.safetensors")}
    assert "RUNNING" in _states(database)
    _run(repo_root, out, flags, **surroundings)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    states = [row["state"] for row in _table(out / "outcomes.csv")]
    assert states.count("kept") >= 3
    assert "failed" not in states
    assert _scores(out) == _scores(tmp_path / "whole")
    assert set(_states(database)) == {"FINISHED", "KILLED"}
    _run(repo_root, out, flags, **surroundings)
    again = _table(out / "outcomes.csv")
    made = {row["key"] for row in again if row["state"] == "made"}
    assert {key for key in made if not key.endswith("-direct")} == set()
