"""Rates are pure functions of the step, and those of diffusers' schedulers."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from b4m.training.schedule import rate_factor


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedules_fall_as_those_of_diffusers_do(schedule: str) -> None:
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=40)
    for index in range(40):
        if index >= 5:  # their warm-up starts with a step of rate zero
            expected = optimizer.param_groups[0]["lr"]
            assert rate_factor(schedule, index, 40, 5) == pytest.approx(expected, abs=1e-12)
        else:
            assert rate_factor(schedule, index, 40, 5) == pytest.approx((index + 1) / 5)
        optimizer.step()
        theirs.step()


def test_restarts_are_those_of_diffusers_cosine_with_hard_restarts() -> None:
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(
        "cosine_with_restarts", optimizer, num_warmup_steps=5, num_training_steps=47, num_cycles=3
    )
    for index in range(47):
        if index >= 5:
            expected = optimizer.param_groups[0]["lr"]
            assert rate_factor("cosine", index, 47, 5, 2) == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("schedule", "closed"),
    [
        ("cosine", lambda x: 0.1 + 0.9 * (1 + math.cos(math.pi * x)) / 2),
        ("linear", lambda x: 1 - 0.9 * x),
        ("constant", lambda x: 1.0),
    ],
)
def test_a_falling_rate_ends_at_the_share_that_is_asked_for(
    schedule: str, closed: Callable[[float], float]
) -> None:
    for index in range(40):
        assert rate_factor(schedule, index, 40, lr_end=0.1) == pytest.approx(closed(index / 40))
