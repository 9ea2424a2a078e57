"""What a run prints: one line per task, and on failure which task and why."""

import io
import json
import threading
from pathlib import Path

from pipelines.transcript import Transcript


def _executor_input(folder: Path, **parameters: object) -> list[str]:
    """The lines that KFP's executor prints before a task's own."""
    given = {
        "inputs": {"parameterValues": parameters},
        "outputs": {"outputFile": str(folder / "executor_output.json")},
    }
    head = "[KFP Executor 2026-01-01 00:00:00,000 INFO]: Got executor_input:"
    return [head, *json.dumps(given, indent=4).splitlines()]


def _transcript(**names: str) -> tuple[Transcript, io.StringIO, io.StringIO]:
    screen, log = io.StringIO(), io.StringIO()
    return Transcript(screen, log, names), screen, log


def test_a_task_is_named_as_people_see_it_with_what_it_works_on(tmp_path: Path) -> None:
    transcript, screen, _ = _transcript(train="train")
    lines = _executor_input(tmp_path / "train", shard={"name": "content-octopus-b4m"})
    print(*lines, sep="\n", file=transcript)
    print("[KFP Executor 2026 INFO]: Wrote executor output file to x.", file=transcript)
    assert "train (content-octopus-b4m) ..." in screen.getvalue()
    assert "train (content-octopus-b4m) done in" in screen.getvalue()
    assert transcript.tasks[0].ended is not None


def test_tasks_that_print_at_the_same_time_are_told_apart(tmp_path: Path) -> None:
    transcript, _, _ = _transcript()
    turn = threading.Barrier(2, timeout=10)

    def speak(name: str) -> None:
        for line in [*_executor_input(tmp_path / name), f"I am {name}"]:
            turn.wait()
            transcript.write("    ")  # KFP prints its indentation apart from the line
            transcript.write(f"{line}\n")

    threads = [threading.Thread(target=speak, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {task.title: task.lines for task in transcript.tasks} == {
        "one": ["I am one"],
        "two": ["I am two"],
    }


def test_the_reason_of_a_failure_is_the_sentence_of_the_library(tmp_path: Path) -> None:
    transcript, _, log = _transcript()
    print(*_executor_input(tmp_path / "merge"), sep="\n", file=transcript)
    print("Traceback (most recent call last):", file=transcript)
    print("b4m.errors.B4MError: no adapter here; train one", file=transcript)
    print("\n10:00:00.000 - ERROR - Task 'merge' finished with status FAILURE", file=transcript)
    print("-" * 80, file=transcript)
    print("10:00:00.000 - INFO - Streamed logs:\n\nsomething else", file=transcript)
    assert transcript.tasks[0].reason() == ["no adapter here; train one"]
    assert "merge | Traceback" in log.getvalue()


def test_a_foreign_exception_keeps_its_name(tmp_path: Path) -> None:
    transcript, _, _ = _transcript()
    print(*_executor_input(tmp_path / "merge"), sep="\n", file=transcript)
    print("torch.OutOfMemoryError: CUDA out of memory.", file=transcript)
    assert transcript.tasks[0].reason() == ["OutOfMemoryError: CUDA out of memory."]


def test_progress_is_shown_now_and_then_and_logged_always(tmp_path: Path) -> None:
    transcript, screen, log = _transcript()
    print(*_executor_input(tmp_path / "train"), sep="\n", file=transcript)
    for percent in range(100):
        print(f"train: {percent:3d}%|##   | loss 0.5", file=transcript)
    assert screen.getvalue().count("%|") <= 1
    assert log.getvalue().count("%|") == 100
