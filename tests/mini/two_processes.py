"""A small training for torchrun: `two_processes.py FOLDER` writes FOLDER/line.checkpoint.pt."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from b4m.mini.recipe import Schedule
from b4m.mini.run import Run

SCHEDULE = Schedule(steps=12, minutes=60, batch=4, lr=0.05, ema=0.9, warmup=3)


def fit(work: Path, draws: Callable[[int], tuple[int, ...]]) -> Run:
    """Fit a line; `draws` says which batches one step of one process looks at."""
    torch.manual_seed(0)
    run = Run("line", {"model": nn.Linear(3, 1)}, SCHEDULE, work)

    def loss_of_step(draw: int) -> torch.Tensor:
        losses = []
        for seed in draws(draw):
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)).to(run.dtype)
            wanted = x.float().sum(1, keepdim=True)
            losses.append((run.working["model"](x).float() - wanted).square().mean())
        return torch.stack(losses).mean()

    run.fit(loss_of_step)
    return run


if __name__ == "__main__":
    fit(Path(sys.argv[1]), lambda draw: (draw,))
