"""Judging while training: a loss that is not trained on, the best weights by it, an early end.

What is measured is the caller's; this keeps the series' best value and decides. All of it lies in
the checkpoint, so a resumed training decides as one that was never stopped.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)


@dataclass
class Judge:
    """Looks at a training every so many steps.

    Attributes:
        measure: the loss to judge by, lower is better; it must not depend on when it is called.
        every: steps between two looks; the last step is looked at too.
        keep_best: the result is the parameters of the best look instead of the last ones.
        patience: looks without a new best value after which the training ends; 0 never ends it.
    """

    measure: Callable[[], float]
    every: int
    keep_best: bool = False
    patience: int = 0
    best: float = math.inf
    best_step: int = 0
    waited: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)

    def due(self, finished: int, steps: int) -> bool:
        """Whether to look after so many steps."""
        return finished % self.every == 0 or finished == steps

    def look(self, finished: int, parameters: Mapping[str, Tensor]) -> dict[str, float]:
        """Measure, and remember the parameters if they are the best so far.

        Args:
            finished: steps made.
            parameters: as the result would have them now.

        Returns:
            The value and the best one so far, by name; a value that is not finite is never best.
        """
        value = self.measure()
        if value < self.best:
            self.best, self.best_step, self.waited = value, finished, 0
            if self.keep_best:
                self.kept = {key: one.detach().clone() for key, one in parameters.items()}
        else:
            self.waited += 1
        if self.over:
            _log.info(
                "ended after step %d: no validation loss below %.4g of step %d for %d looks",
                finished, self.best, self.best_step, self.waited,
            )  # fmt: skip
        return {"validation": value, "best_validation": self.best}

    @property
    def over(self) -> bool:
        """Whether the training should end."""
        return 0 < self.patience <= self.waited

    @torch.no_grad()
    def restore(self, parameters: Mapping[str, Tensor]) -> None:
        """Put the best values into the parameters, if they were kept."""
        for key, value in self.kept.items():
            parameters[key].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what comes."""
        kept = {key: value.cpu() for key, value in self.kept.items()}
        return {"best": self.best, "step": self.best_step, "waited": self.waited, "kept": kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.best, self.best_step, self.waited = state["best"], state["step"], state["waited"]
        self.kept = dict(state["kept"])
