"""Several processes that make one training, each on its share of every batch.

torchrun, `accelerate launch` or a cluster's trainer starts them and says in WORLD_SIZE how many
there are. Every process holds all parameters, begins with the same values and makes the same steps,
because gradients are averaged before each; so nothing is wrapped, and whatever has a gradient is
trained: text encoders as well as the denoiser.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from b4m.errors import B4MError


@dataclass(frozen=True)
class Processes:
    """This process among its like.

    Attributes:
        count: how many there are.
        rank: which one this is, counted from 0.
    """

    count: int = 1
    rank: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and tells."""
        return self.rank == 0

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over the processes; all must give the same ones."""
        if self.count == 1:
            return
        listed = list(tensors)
        for kind in dict.fromkeys((one.dtype, one.device) for one in listed):
            same = [one for one in listed if (one.dtype, one.device) == kind]
            flat = torch.cat([one.flatten() for one in same])
            dist.all_reduce(flat)
            flat /= self.count
            for one, part in zip(same, flat.split([one.numel() for one in same]), strict=True):
                one.copy_(part.view_as(one))

    def wait(self) -> None:
        """Wait for all others."""
        if self.count > 1:
            dist.barrier()


def is_first() -> bool:
    """Whether this process is the one that tells and writes, by what its starter says."""
    return int(os.environ.get("RANK", "0")) == 0


def join(model: nn.Module) -> Processes:
    """Find the other processes of this training.

    Raises:
        B4MError: if fewer or more have come than WORLD_SIZE says.
    """
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if expected == 1:
        return Processes()
    if not dist.is_initialized():
        on_cpu = all(parameter.is_cpu for parameter in model.parameters())
        dist.init_process_group("gloo" if on_cpu else "nccl")
    if dist.get_world_size() != expected:
        raise B4MError(
            f"{dist.get_world_size()} processes have come and WORLD_SIZE says {expected}; "
            "start them all anew"
        )
    return Processes(expected, dist.get_rank())
