"""A training that is killed at a random moment and run again ends with the same file."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from b4m.bases.base import Base
from b4m.files import write_adapter
from tests import runs

SETTINGS = {"rank": 2, "steps": 40, "batch_size": 2, "accumulation": 1, "checkpoint_every": 3}
SCRIPT = """
import sys
from pathlib import Path
from b4m.bases import load_base
from b4m.files import write_adapter
from tests import runs

base, data, work, out = sys.argv[1:]
adapter = runs.train(
    "b4m", "style", Path(data), "stripes", load_base(base, device="cpu"), Path(work), **SETTINGS
)
write_adapter(out, adapter)
"""


def test_killed_training_ends_with_the_same_bytes(
    base: Base, tiny_base: Path, prepared: Path, tmp_path: Path, repo_root: Path
) -> None:
    whole = runs.train("b4m", "style", prepared, "stripes", base, tmp_path / "a", **SETTINGS)
    write_adapter(tmp_path / "whole.safetensors", whole)

    work, out = tmp_path / "b", tmp_path / "killed.safetensors"
    script = tmp_path / "train.py"
    script.write_text(f"SETTINGS = {SETTINGS!r}\n{SCRIPT}")
    command = [sys.executable, str(script), str(tiny_base), str(prepared), str(work), str(out)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(repo_root),
        "B4M_PROGRESS": "off",
    }
    process = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not list(work.glob("checkpoint-*.pt")):
        assert process.poll() is None, "the training ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the training was over before it was killed"
    assert not out.exists()

    subprocess.run(command, env=environment, check=True)
    assert out.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not list(work.glob("checkpoint-*"))
