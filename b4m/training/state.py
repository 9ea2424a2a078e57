"""What a training changes: parameters, optimizers, loss scale, averages, and what judges it."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from b4m.training.checkpoint import read_checkpoint, write_checkpoint
from b4m.training.ema import ParameterAverage
from b4m.training.judging import Judge

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters by name, and the optimizer that moves them; clipped on their own.

    Attributes:
        parameters: by name.
        optimizer: moves them.
        until: steps after which they stay as they are; None moves them to the end.
    """

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    until: int | None = None

    def moves(self, index: int) -> bool:
        """Whether step `index`, counted from 0, changes them."""
        return self.until is None or index < self.until


class TrainingState:
    """Parameters, optimizers, loss scale, averages and judgement of one training.

    Args:
        groups: what is trained.
        model: whose dtype says whether losses are scaled.
        ema_decay: of the averages; 0 keeps none.
        judge: whose state belongs to the training's, or None.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        model: nn.Module,
        ema_decay: float,
        judge: Judge | None,
    ) -> None:
        self._groups, self.judge = groups, judge
        self.scaler = torch.amp.GradScaler("cuda", enabled=_needs_loss_scale(model))
        # the group's number keeps equal names apart
        self.parameters = {
            f"{number}.{key}": parameter
            for number, one in enumerate(groups)
            for key, parameter in one.parameters.items()
        }
        self.average = ParameterAverage(self.parameters, ema_decay) if ema_decay else None
        self._zero_gradients()  # a training that failed leaves its last ones behind

    def moving(self, index: int) -> list[ParameterGroup]:
        """The groups that step `index` changes; the parameters of others get no gradients."""
        for one in self._groups:
            if one.until == index:
                for parameter in one.parameters.values():
                    parameter.requires_grad_(False)
        return [one for one in self._groups if one.moves(index)]

    def update(self, moving: Sequence[ParameterGroup], finished: int) -> None:
        """Make the optimizer step number `finished`, counted from 1, and forget the gradients."""
        for one in moving:
            self.scaler.step(one.optimizer)
        self.scaler.update()
        self._zero_gradients()
        if self.average is not None:
            self.average.update(finished)

    def _zero_gradients(self) -> None:
        for one in self._groups:
            one.optimizer.zero_grad(set_to_none=True)

    def averaged(self) -> AbstractContextManager[None]:
        """Context in which the parameters hold their averages, if there are any."""
        return nullcontext() if self.average is None else self.average.applied()

    def finish(self) -> None:
        """Leave in the parameters what is the result: the last, the averaged or the best ones."""
        if self.average is not None:
            self.average.swap()
        if self.judge is not None:
            self.judge.restore(self.parameters)

    def resume(self, path: Path, fingerprint: str) -> int:
        """Load this run's checkpoint if there is one; return the number of finished steps."""
        content = read_checkpoint(path, fingerprint)
        if content is None:
            return 0
        with torch.no_grad():
            for key, parameter in self.parameters.items():
                parameter.copy_(content["parameters"][key])
        for one, state in zip(self._groups, content["optimizers"], strict=True):
            one.optimizer.load_state_dict(state)
            if one.until is not None and one.until < content["step"]:
                for parameter in one.parameters.values():
                    parameter.requires_grad_(False)
        self.scaler.load_state_dict(content["scaler"])
        if self.average is not None:
            self.average.load(content["averages"])
        if self.judge is not None:
            self.judge.load_state_dict(content["judge"])
        _log.info("resumed %s after step %d", path, content["step"])
        return int(content["step"])

    def write(self, path: Path, fingerprint: str, finished: int) -> None:
        """Replace this run's checkpoint."""
        write_checkpoint(
            path,
            fingerprint,
            {
                "step": finished,
                "parameters": {k: value.detach().cpu() for k, value in self.parameters.items()},
                "averages": {} if self.average is None else self.average.state_dict(),
                "optimizers": [one.optimizer.state_dict() for one in self._groups],
                "scaler": self.scaler.state_dict(),
                "judge": {} if self.judge is None else self.judge.state_dict(),
            },
        )
        _log.debug("checkpoint after step %d in %s", finished, path)


def _needs_loss_scale(model: nn.Module) -> bool:
    """Float16 activations underflow in the backward pass; other dtypes do not."""
    return any(p.dtype == torch.float16 and p.is_cuda for p in model.parameters())
