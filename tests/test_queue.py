"""Jobs of a comparison shared by several processes: each once, whoever is killed is replaced."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from b4m.errors import B4MError
from b4m.evaluation.times import read_times
from b4m.verbs.queue import Step, carry_out, in_order

COUNT = 12


def steps(folder: Path, who: str, seconds: float = 0.01) -> list[Step]:
    """A chain of two for each number; the first ones write who made them."""

    def make(result: Path) -> None:
        with (folder / "made").open("a") as stream:
            stream.write(f"{result.name} {who}\n")
        time.sleep(seconds)
        result.touch()

    def step(key: str, *needs: Path) -> Step:
        result = folder / key
        return Step(key, "merge", "direct", result, needs, lambda: make(result))

    first = [step(f"a{number}") for number in range(COUNT)]
    return [*first, *(step(f"b{n}", one.result) for n, one in enumerate(first))]


def made(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "made").read_text().splitlines()]


def test_workers_at_one_folder_share_the_jobs_and_do_each_once(tmp_path: Path) -> None:
    workers = [
        threading.Thread(target=carry_out, args=(steps(tmp_path, who), tmp_path, 0.01))
        for who in ("one", "two", "three")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(made(tmp_path)) == sorted(step.key for step in steps(tmp_path, ""))
    assert len({line.split()[1] for line in (tmp_path / "made").read_text().splitlines()}) > 1
    assert len(read_times(tmp_path)) == 2 * COUNT


def test_what_a_killed_process_had_begun_is_done_by_another(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    killed = fork.Process(target=carry_out, args=(steps(tmp_path, "killed", 60.0), tmp_path, 0.01))
    killed.start()
    while not (tmp_path / "made").exists():
        time.sleep(0.01)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert not (tmp_path / "a0").exists()
    carry_out(steps(tmp_path, "other", 0.0), tmp_path, 0.01)
    assert sorted(made(tmp_path)) == sorted(["a0", *(s.key for s in steps(tmp_path, ""))])


def test_what_is_wanted_first_is_made_first_with_all_that_it_needs(tmp_path: Path) -> None:
    chain = steps(tmp_path, "one", 0.0)
    ordered = in_order(chain, [tmp_path / "b7", tmp_path / "b2"])
    assert [step.key for step in ordered[:5]] == ["a7", "b7", "a2", "b2", "a0"]
    assert {step.key for step in ordered} == {step.key for step in chain}


def test_what_needs_a_failed_job_is_left_out_and_the_others_are_done(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    chain = steps(tmp_path, "one", 0.0)
    broken = Step("a0", "merge", "direct", tmp_path / "a0", (), fail)
    with pytest.raises(B4MError, match="1 jobs failed, first a0: out of memory"):
        carry_out([broken, *chain[1:]], tmp_path, 0.01)
    assert set(made(tmp_path)) == {step.key for step in chain} - {"a0", "b0"}
