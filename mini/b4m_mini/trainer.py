"""How the three trainings of the offline world use the library's loop.

Arithmetic is bfloat16, weights are float32: a GPU gets autocast, a CPU bfloat16 copies of the
weights in each forward (autocast on a CPU is several times slower).
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from datetime import date
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from b4m.training.key import key
from b4m.training.loop import Batch, fit
from b4m.training.state import ParameterGroup
from b4m_mini.recipe import Training
from b4m_mini.tiles import Tiles

Loss = Callable[[nn.Module, Batch, torch.Generator], Mapping[str, Tensor]]


def is_main_process() -> bool:
    """Whether this process is the one that writes files."""
    return int(os.environ.get("RANK", "0")) == 0


class Bfloat16(nn.Module):
    """A model with float32 weights that computes in bfloat16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Any:
        if inputs[0].is_cuda:
            with torch.autocast("cuda", torch.bfloat16):
                return self.model(*inputs)
        tensors = chain(self.model.named_parameters(), self.model.named_buffers())
        copies = {name: _halved(tensor) for name, tensor in tensors}
        return functional_call(self.model, copies, tuple(map(_halved, inputs)))


def _halved(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.is_floating_point() else tensor


def train(
    name: str, model: nn.Module, loss: Loss, data: Tensor, training: Training, tiles: Tiles
) -> None:
    """Train in place; afterwards the model has the averaged weights.

    Args:
        name: for the progress bar and the history.
        model: its parameters that require gradients are trained.
        loss: takes the model in bfloat16, the batch and its generator on the model's device;
            returns losses by name, of which "loss" is minimised.
        data: N images or latents; a batch's rows are indices below N.
        training: how long and how fast; with the data it says which checkpoint is this run's.
        tiles: `tiles.work` gets the checkpoint, and a line in history.md.
    """
    parameters = {part: value for part, value in model.named_parameters() if value.requires_grad}
    device = data.device
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=training.lr,
        betas=(0.9, 0.99),
        weight_decay=training.weight_decay,
        fused=device.type == "cuda",
    )
    shown = hashlib.sha256(data.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()

    def step(working: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        seed = batch.generator.initial_seed()
        return loss(working, batch, torch.Generator(device).manual_seed(seed))

    fit(
        step,
        Bfloat16(model),
        [ParameterGroup(parameters, optimizer)],
        len(data),
        training.loop,
        workdir=tiles.work,
        fingerprint=key(name, training, tiles.recipe.architecture, shown),
        name=name,
    )
    if is_main_process():
        images = training.loop.batch_size * int(os.environ.get("WORLD_SIZE", "1"))
        with (tiles.work / "history.md").open("a") as history:
            history.write(
                f"- {date.today()} {name}: {training.loop.steps} steps of {images} images, "
                f"learning rate up to {training.lr}, seed {training.loop.seed}\n"
            )
