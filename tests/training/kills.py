"""A training that is killed again and again: the program that tests/training/test_kills starts.

    python -m tests.training.kills BASE DATA WORK SETTINGS_AS_JSON KILLS SEED

It imports and loads once, and every attempt is a fork of it, so attempts cost what they train.
Prints how many attempts were killed, at which times, and how many different files came out.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from b4m.bases import load_base
from b4m.bases.base import Base
from b4m.files import write_adapter
from b4m.io import sha256
from tests import runs


def attempt(base: Base, data: Path, work: Path, settings: dict[str, object]) -> int:
    """Start one attempt; returns its process."""
    process = os.fork()
    if process == 0:
        adapter = runs.train("lora", "style", data, "stripes", base, work, **settings)
        write_adapter(work / "done.safetensors", adapter)
        os._exit(0)
    return process


def whole(base: Base, data: Path, work: Path, settings: dict[str, object]) -> float:
    """Seconds of an attempt that nobody kills."""
    start = time.monotonic()
    _, status = os.waitpid(attempt(base, data, work, settings), 0)
    assert status == 0
    return time.monotonic() - start


def main() -> None:
    """Kill as often as asked for; whenever an attempt gets through, begin anew in a new folder."""
    torch.set_num_threads(1)
    name, data, work, text, kills, seed = sys.argv[1:]
    settings, chance, root = json.loads(text), random.Random(seed), Path(work)
    base = load_base(name, device="cpu")
    seconds = whole(base, Path(data), root / "whole", settings)
    files = {sha256(root / "whole/done.safetensors")}
    killed, runs_done = 0, 0
    while killed < int(kills):
        folder = root / f"run-{runs_done}"
        process = attempt(base, Path(data), folder, settings)
        time.sleep(chance.uniform(0, 0.7 * seconds))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        if (folder / "done.safetensors").is_file():
            files.add(sha256(folder / "done.safetensors"))
            runs_done += 1
    last = root / f"run-{runs_done}"
    whole(base, Path(data), last, settings)
    files.add(sha256(last / "done.safetensors"))
    left = [path for path in root.glob("*/checkpoint-*")]
    print(
        json.dumps(
            {"killed": killed, "runs": runs_done + 1, "files": len(files), "left": len(left)}
        )
    )


if __name__ == "__main__":
    main()
