"""Several processes make one training: this file is also the script that torchrun starts."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from b4m.training.loop import Batch, LoopConfig, fit
from b4m.training.state import ParameterGroup

TARGETS = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))


class Point(nn.Module):
    """Three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(3))

    def forward(self) -> Tensor:
        return self.place * 1.0


def train(work: Path, batch_size: int) -> Tensor:
    """Where the point is after 12 steps towards the targets."""
    point = Point()
    optimizer = torch.optim.SGD(point.parameters(), lr=0.1)

    def step(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": (model() - TARGETS[batch.rows]).square().mean(1)}

    fit(
        step,
        point,
        [ParameterGroup(dict(point.named_parameters()), optimizer)],
        len(TARGETS),
        LoopConfig(12, batch_size=batch_size, accumulation=2, checkpoint_every=5),
        workdir=work,
        fingerprint="a",
    )
    return point.place.detach()


def test_two_processes_train_as_one_with_both_batches(tmp_path: Path, repo_root: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    free = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    quiet = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "B4M_PROGRESS": "off"}
    environment = os.environ | quiet | {"PYTHONPATH": str(repo_root)}
    script = str(Path(__file__))
    subprocess.run([*command, *free, script, str(tmp_path)], check=True, env=environment)
    alone = train(tmp_path / "alone", batch_size=4)
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f"place-{rank}.pt"), alone)
    assert not list(tmp_path.glob("checkpoint-*"))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    place = train(folder, batch_size=2)
    torch.save(place, folder / f"place-{torch.distributed.get_rank()}.pt")
