"""Trainable low-rank pairs on a base's text encoders.

A base knows a look by its words, so a new look is learned best where words get their meaning. The
pairs of all attention and MLP linears are trained together with the denoiser's and stay in the same
file. Captions are then encoded at every step instead of once.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from b4m.adapters.attach import AdaptedModel
from b4m.adapters.deltas import LoRADelta
from b4m.adapters.lowrank import LowRank
from b4m.bases.base import Base, Conditioning
from b4m.bases.sampling import text_module
from b4m.errors import B4MError
from b4m.settings import TrainSettings
from b4m.training.loop import ParameterGroup
from b4m.training.run import Run, exported


class TextLayers:
    """Pairs on all text encoders of a base, and what they make of captions.

    Args:
        run: base, rank, learning rate and the randomness of the start.

    Raises:
        B4MError: if the base has no text encoders that adapters may have layers of.
    """

    def __init__(self, run: Run[TrainSettings]) -> None:
        self.base: Base = run.base
        rank = run.settings.text_rank or run.settings.rank
        linears = self.base.text_linears()
        if not linears:
            raise B4MError(f"{self.base.family.title} has no text encoders to train; leave text_lr")
        self.deltas = {
            name: LoRADelta.start(
                linear.out_features, linear.in_features, rank, run.generator(name)
            ).to(self.base.device)
            for name, linear in linears.items()
        }
        parameters = {
            f"{layer}.{factor}": parameter
            for layer, delta in self.deltas.items()
            for factor, parameter in delta.named_parameters()
        }
        settings = run.settings
        self.group = ParameterGroup(
            parameters,
            torch.optim.AdamW(
                parameters.values(), lr=settings.text_lr, weight_decay=settings.weight_decay
            ),
        )

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hang the pairs on the encoders for the block's time."""
        self.base.to_device()
        with ExitStack() as stack:
            for network, encoder in self.base.encoders.items():
                layers = {
                    text_module(encoder, name.removeprefix(f"{network}.")): delta
                    for name, delta in self.deltas.items()
                    if name.startswith(f"{network}.")
                }
                stack.callback(AdaptedModel(encoder, layers).remove)
            yield

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """The captions' conditioning under the pairs, with gradients."""
        return self.base.encode_prompts(captions)

    def exported(self) -> dict[str, LowRank]:
        """The trained pairs in float32 on the CPU."""
        return exported(self.deltas)


@contextmanager
def text_layers(run: Run[TrainSettings]) -> Iterator[TextLayers | None]:
    """The run's text layers, attached, or None if it trains none."""
    if not run.settings.text_lr:
        yield None
        return
    layers = TextLayers(run)
    with layers.attached():
        yield layers
