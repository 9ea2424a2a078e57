"""Learning-rate schedules as pure functions of the step, so that resuming needs no stored state."""

import math
from collections.abc import Callable, Mapping

# The share of the way from the end to the peak that is left after a share `progress` of the decay.
_DECAYS: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
}
SCHEDULES = tuple(_DECAYS)


def rate_factor(
    schedule: str, step: int, steps: int, warmup: int = 0, restarts: int = 0, lr_end: float = 0.0
) -> float:
    """What the peak learning rate is multiplied by at a step, in [0, 1].

    The rate rises linearly over the warm-up, reaches its peak with the last warm-up step, and then
    falls as the schedule says; it would be `lr_end` at step `steps`, which is never made. With
    restarts (arXiv 1608.03983, all of one length) the steps after the warm-up are cut into
    restarts + 1 equal parts, and it falls in each of them.

    Args:
        schedule: "constant", "cosine" or "linear".
        step: number of the optimizer step, counted from 0.
        steps: steps of the whole training.
        warmup: steps of the warm-up; 0 is none.
        restarts: how often a falling rate jumps back to its peak.
        lr_end: factor at the end of each fall, in [0, 1].
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    if restarts:
        progress = progress * (restarts + 1) % 1.0
    return lr_end + (1.0 - lr_end) * _DECAYS[schedule](progress)
