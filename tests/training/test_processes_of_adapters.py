"""Two processes train an adapter as one with the larger batch; also the script for torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from b4m.adapters.adapter import Adapter
from b4m.bases import load_base
from b4m.bases.base import Base
from b4m.files import read_adapter, write_adapter
from tests import runs

SETTINGS = {
    "rank": 2,
    "steps": 8,
    "accumulation": 2,
    "lr": 1e-3,
    "text_lr": 1e-3,
    "caption_dropout": 0.3,
    "rank_dropout": 0.2,
    "noise_offset": 0.1,
    "flip": True,
    "ema_decay": 0.5,
    "checkpoint_every": 3,
}


def distance(one: Adapter, other: Adapter) -> float:
    """How far two adapters are apart, by their size."""
    pairs = [
        (a[name].dense(), b[name].dense())
        for a, b in ((one.layers, other.layers), (one.text_layers, other.text_layers))
        for name in a
    ]
    gap = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
    return float((gap / torch.stack([b.square().sum() for _, b in pairs]).sum()).sqrt())


@pytest.mark.long
@pytest.mark.parametrize("way", ["lora", "b4m"])
def test_two_processes_train_an_adapter_as_one_with_twice_the_batch(
    base: Base, tiny_base: Path, prepared: Path, tmp_path: Path, repo_root: Path, way: str
) -> None:
    settings = json.dumps({**SETTINGS, "batch_size": 2})
    arguments = [str(tiny_base), str(prepared), str(tmp_path), way, settings]
    quiet = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "B4M_PROGRESS": "off"}
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", str(Path(__file__))),
            *arguments,
        ],
        check=True,
        env=os.environ | quiet | {"PYTHONPATH": str(repo_root)},
    )
    both = [read_adapter(tmp_path / f"rank-{rank}.safetensors") for rank in (0, 1)]
    alone = runs.train(
        way, "style", prepared, "stripes", base, tmp_path / "alone", **SETTINGS, batch_size=4
    )
    assert distance(both[0], both[1]) == 0.0, "both processes have the same"
    # sums of floats in another order, which Adam's first steps magnify
    assert distance(both[0], alone) < 1e-3
    assert not list(tmp_path.glob("work/checkpoint-*"))


if __name__ == "__main__":
    name, data, folder, how, text = sys.argv[1:]
    torch.set_num_threads(1)
    trained = runs.train(
        how, "style", Path(data), "stripes", load_base(name, device="cpu"),
        Path(folder) / "work", **json.loads(text),
    )  # fmt: skip
    write_adapter(Path(folder) / f"rank-{torch.distributed.get_rank()}.safetensors", trained)
