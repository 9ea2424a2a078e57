"""Exponential moving average of parameters: less noisy weights than those of the last step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ParameterAverage:
    """average <- d * average + (1 - d) * parameter after every step, beside the parameters.

    After n steps d is the smaller of `decay` and (1 + n) / (10 + n): a young average would
    otherwise be little but the initial values.

    Args:
        parameters: what is averaged, by name; the average starts at their values.
        decay: in (0, 1); about the last 1 / (1 - decay) steps count.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = dict(parameters), decay
        self.values: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in parameters.items()
        }

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the parameters after `steps` optimizer steps."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        for name, parameter in self._parameters.items():
            self.values[name].lerp_(parameter, 1.0 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name, on the CPU."""
        return {name: value.cpu() for name, value in self.values.items()}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from stored averages."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and parameters in place."""
        for name, parameter in self._parameters.items():
            current = parameter.clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(current)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the averages for the block's time."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
