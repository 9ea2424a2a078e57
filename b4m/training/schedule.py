"""Learning-rate schedules as pure functions of the step, so that resuming needs no stored state."""

import math
from collections.abc import Callable, Mapping

# The share of the peak rate that is left after a share `progress` in [0, 1] of the decay.
_DECAYS: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
}
SCHEDULES = tuple(_DECAYS)


def rate_factor(schedule: str, step: int, steps: int, warmup: int = 0) -> float:
    """What the peak learning rate is multiplied by at a step, in (0, 1].

    The rate rises linearly over the warm-up, reaches its peak with the last warm-up step, and then
    falls as the schedule says; it would be zero at step `steps`, which is never made.

    Args:
        schedule: "constant", "cosine" or "linear".
        step: number of the optimizer step, counted from 0.
        steps: steps of the whole training.
        warmup: steps of the warm-up; 0 is none.
    """
    if step < warmup:
        return (step + 1) / warmup
    return _DECAYS[schedule]((step - warmup) / max(1, steps - warmup))
