"""A run that is killed, a server that goes away: started again it is whole and nothing is open."""

import csv
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
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


class _Server:
    """An MLflow server that can be killed and comes back with all it had."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> Path:
        return self.folder / "server.db"

    def start(self) -> None:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{self.database}", "--port", str(self.port)),
                *("--artifacts-destination", str(self.folder / "files")),
            ],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        end = time.monotonic() + LONGEST_S
        while time.monotonic() < end:
            with socket.socket() as there:
                if there.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise AssertionError("the MLflow server does not start")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "server"
    folder.mkdir()
    server = _Server(folder)
    server.start()
    yield server
    server.kill()


def test_two_runs_at_once_outlive_their_mlflow_server_and_a_killed_training(
    repo_root: Path, tmp_path: Path, flags: list[str], server: _Server
) -> None:
    surroundings = {
        "MLFLOW_TRACKING_URI": server.address,
        "B4M_TRACKING_WAIT": "600",
        "NO_PROXY": "127.0.0.1",
    }
    first, second = tmp_path / "first", tmp_path / "second"
    works = {out: str(tmp_path / f"work of {out.name}") for out in (first, second)}
    with (
        _running(repo_root, first, flags, **surroundings, B4M_WORK=works[first]) as one,
        _running(repo_root, second, flags, **surroundings, B4M_WORK=works[second]) as other,
    ):
        _until(lambda: "train" in _printed(first), one, first)
        server.kill()
        time.sleep(10)
        server.start()
        _kill_a_training(other, second)
        assert other.wait(LONGEST_S) == 1
        assert "Task failed: train" in _printed(second)
        assert one.wait(LONGEST_S) == 0, _printed(first)
    _run(repo_root, second, flags, **surroundings, B4M_WORK=works[second])
    assert _scores(first) == _scores(second)
    assert "RUNNING" not in _states(server.database)
    with sqlite3.connect(server.database) as connection:
        tags = "select value, count(*) from tags where key = 'b4m.stage' group by value"
        stages = dict(connection.execute(tags))
    assert stages["evaluate"] == 2
    assert stages["pipeline"] == 3


def _kill_a_training(run: subprocess.Popen[bytes], out: Path) -> None:
    """Kill the process of the task `train` that is running in a run."""
    found: list[int] = []

    def training() -> bool:
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--sid", str(run.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line.split(None, 1) for line in listed.stdout.splitlines()]
        found[:] = [int(pid) for pid, line in lines if "--function_to_execute train" in line]
        return bool(found)

    _until(training, run, out)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
