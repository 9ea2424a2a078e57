"""Twenty kills at random moments, over caching, training, validating and writing: one result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = {
    "rank": 2,
    "steps": 24,
    "batch_size": 2,
    "accumulation": 1,
    "checkpoint_every": 2,
    "ema_decay": 0.9,
    "text_lr": 1e-2,
    "text_stop": 0.6,
    "validate_every": 5,
    "validate_draws": 2,
    "keep": "best",
    "caption_dropout": 0.2,
    "rank_dropout": 0.2,
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("optimizer", "lr", "kills"), [("adamw", 1e-2, 7), ("prodigy", 1.0, 7), ("riemannian", 1e-2, 6)]
)
def test_killed_trainings_end_with_the_same_bytes(
    tiny_base: Path, prepared: Path, tmp_path: Path, repo_root: Path, optimizer: str, lr: float,
    kills: int,
) -> None:  # fmt: skip
    text_lr = 1.0 if optimizer == "prodigy" else 1e-2
    settings = json.dumps({**SETTINGS, "optimizer": optimizer, "lr": lr, "text_lr": text_lr})
    arguments = [str(tiny_base), str(prepared), str(tmp_path), settings, str(kills), optimizer]
    quiet = {"OMP_NUM_THREADS": "1", "B4M_PROGRESS": "off", "PYTHONPATH": str(repo_root)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.kills", *arguments],
        env=os.environ | quiet, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] == kills
    assert told["files"] == 1, "every run that got through wrote the bytes of the whole one"
    assert told["left"] == 0, "finished runs leave no checkpoint"
