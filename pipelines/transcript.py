"""What a local run prints: one line per task and its progress; everything goes into a log file.

KFP's local runner prints the output of all tasks, two at a time, through the standard output of
this process: each task in the thread that waits for it. `Transcript` stands in for that output and
tells the tasks apart by their thread and by the executor input, which every task prints first.
"""

import io
import json
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Optional, TextIO

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_EXECUTOR = re.compile(r"^\[KFP Executor [^]]*\]: ")
_RUNNER = re.compile(r"^(\d\d:\d\d:\d\d\.\d{3} - [A-Z]+ - |(ERROR|WARNING|INFO):root:|-{20,}$)")
_PROGRESS = re.compile(r"\d+%\|")
_ERROR = re.compile(r"^(?:[\w.]+\.)?(\w*(?:Error|Exception|Interrupt|Exit)): ?(.*)")
_EVERY = 10.0  # seconds between two progress lines of a task


@dataclass
class Task:
    """One task of the run, as far as its output tells."""

    folder: Path
    title: str
    started: float
    ended: Optional[float] = None
    shown: float = 0.0
    lines: List[str] = field(default_factory=list)

    def reason(self) -> List[str]:
        """Why it failed: the exception that ended it, else its last lines."""
        for number in range(len(self.lines) - 1, -1, -1):
            match = _ERROR.match(self.lines[number])
            if match:
                sentence = [match[2] or match[1], *self.lines[number + 1 :]]
                if match[1] != "B4MError":
                    sentence[0] = f"{match[1]}: {match[2]}"
                return [line for line in sentence if line][:5]
        return self.lines[-5:] or ["it printed nothing"]


@dataclass
class _Stream:
    """What one thread has written and not yet ended with a newline, and its task."""

    rest: str = ""
    executor_input: Optional[List[str]] = None
    task: Optional[Task] = None


class Transcript(io.TextIOBase):
    """Standard output while a pipeline runs."""

    def __init__(self, screen: TextIO, log: TextIO, names: Mapping[str, str]) -> None:
        """Write to `screen` and `log`; `names` are display names by KFP's task names."""
        self.tasks: List[Task] = []
        self._screen = screen
        self._log = log
        self._names = names
        self._streams: Dict[int, _Stream] = {}
        self._lock = threading.Lock()
        self._start = time.monotonic()

    def write(self, text: str) -> int:
        """Take any text; whole lines are sorted and shown."""
        with self._lock:
            stream = self._streams.setdefault(threading.get_ident(), _Stream())
            *lines, stream.rest = (stream.rest + text).split("\n")
            for line in lines:
                # KFP's indentation grows with every task that runs beside another
                self._line(stream, _COLOURS.sub("", line).strip())
        return len(text)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._screen.flush()

    def _line(self, stream: _Stream, line: str) -> None:
        if not line:
            return
        self._log.write(f"{stream.task.title if stream.task else 'kfp'} | {line}\n")
        self._log.flush()
        message = _EXECUTOR.sub("", line)
        if message.startswith("Got executor_input:"):
            stream.executor_input = []
        elif stream.executor_input is not None:
            stream.executor_input.append(line)
            if line == "}":
                self._begin(stream)
        elif message.startswith("Wrote executor output file") and stream.task:
            self._end(stream.task)
            stream.task = None
        elif _RUNNER.match(line):
            if "finished with status FAILURE" in line:
                stream.task = None
        elif stream.task:
            self._of_task(stream.task, line)

    def _begin(self, stream: _Stream) -> None:
        try:
            given = json.loads("\n".join(stream.executor_input or []))
        except ValueError:
            return  # the end of an inner object; more lines follow
        stream.executor_input = None
        folder = Path(given["outputs"]["outputFile"]).parent
        values = given.get("inputs", {}).get("parameterValues", {})
        name = self._names.get(folder.name, folder.name)
        shard = values.get("shard") or {}
        title = f"{name} ({shard['name']})" if shard else name
        stream.task = Task(folder, title, started=time.monotonic())
        self.tasks.append(stream.task)
        self._show(f"{title} ...")

    def _end(self, task: Task) -> None:
        task.ended = time.monotonic()
        self._show(f"{task.title} done in {task.ended - task.started:.0f} s")

    def _of_task(self, task: Task, line: str) -> None:
        task.lines.append(line)
        now = time.monotonic()
        if _PROGRESS.search(line) and now - task.shown >= _EVERY:
            task.shown = now
            self._show(f"{task.title}: {line}")

    def _show(self, text: str) -> None:
        self._screen.write(f"[{time.monotonic() - self._start:4.0f} s] {text}\n")
        self._screen.flush()
