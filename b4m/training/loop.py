"""The one training loop, for adapters, for masks and for whole models.

A method gives a model, groups of parameters with their optimizers, and a step function that returns
per-example losses; the loop makes exactly the optimizer steps asked for, accumulates, clips,
schedules, averages, checkpoints, resumes and reports. On a CPU a resumed run ends with the same
bits as one that was never stopped.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from b4m.errors import B4MError
from b4m.training.checkpoint import checkpoint_path, remove_checkpoint
from b4m.training.judging import Judge
from b4m.training.optimizers import numbers
from b4m.training.processes import Processes, join
from b4m.training.randomness import ShuffledIndices, derive_seed
from b4m.training.report import NullTracker, Report, Tracker, progress
from b4m.training.schedule import SCHEDULES, rate_factor
from b4m.training.state import ParameterGroup, TrainingState

_LOG_EVERY = 10


@dataclass(frozen=True)
class LoopConfig:
    """How long, in what batches and at what rate.

    Attributes:
        steps: optimizer steps, whatever the number of examples.
        batch_size: examples in one forward of one process.
        accumulation: micro-batches per optimizer step.
        clip: largest gradient norm of a parameter group; 0 clips nothing.
        schedule: how the learning rate goes on after the warm-up: "constant", or falling to zero
            as a "cosine" or "linear"; the optimizers' own rates are the peak.
        warmup: steps over which the learning rate rises linearly to its peak.
        restarts: how often a falling rate begins anew.
        lr_end: share of the peak that is left where a falling rate ends.
        ema_decay: decay of the averaged parameters, which are the result; 0 averages nothing.
        checkpoint_every: steps between checkpoints; 0 writes none.
        sample_every: steps between previews; 0 draws none.
        seed: of the examples' order and of the noise.
    """

    steps: int
    batch_size: int = 1
    accumulation: int = 1
    clip: float = 1.0
    schedule: str = "constant"
    warmup: int = 0
    restarts: int = 0
    lr_end: float = 0.0
    ema_decay: float = 0.0
    checkpoint_every: int = 100
    sample_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise B4MError(f"setting {name}={getattr(self, name)} must be 1 or more")
        for name in ("warmup", "restarts", "checkpoint_every", "sample_every"):
            if getattr(self, name) < 0:
                raise B4MError(f"setting {name}={getattr(self, name)} must be 0 or more")
        if self.schedule not in SCHEDULES:
            raise B4MError(f"setting schedule={self.schedule!r} must be {' or '.join(SCHEDULES)}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise B4MError(f"setting ema_decay={self.ema_decay} must be at least 0 and below 1")


@dataclass(frozen=True)
class Batch:
    """One forward's share of the examples, and where its randomness comes from.

    Attributes:
        rows: indices of this process's examples.
        position: of the batch in the run.
        generator: of this process alone, on the CPU.
        whole: indices of all processes' examples; `rows` are whole[mine].
        mine: this process's part of the whole batch.
        common: a generator that gives all processes the same, on the CPU; who draws for the whole
            batch and takes `mine` of it trains as one process with the larger batch does.
    """

    rows: list[int]
    position: int
    generator: torch.Generator = field(compare=False)
    whole: list[int]
    mine: slice
    common: torch.Generator = field(compare=False)


class Order(Protocol):
    """Which examples come when: a pure function of the position."""

    def batch(self, position: int) -> list[int]:
        """Indices of batch number `position`, counted from 0."""
        ...


Step = Callable[[nn.Module, Batch], Mapping[str, Tensor]]
Preview = Callable[[int], Mapping[str, Image.Image]]


def fit(
    step: Step,
    model: nn.Module,
    groups: Sequence[ParameterGroup],
    examples: int,
    config: LoopConfig,
    *,
    workdir: Path,
    fingerprint: str,
    tracker: Tracker | None = None,
    name: str = "train",
    preview: Preview | None = None,
    order: Callable[[int], Order] | None = None,
    judge: Judge | None = None,
) -> None:
    """Train in place; `config.steps` optimizer steps whatever the number of examples.

    Args:
        step: called with the model and a batch; returns per-example losses by name. The mean of
            "loss" is minimised, further entries are only reported.
        model: holds the parameters; usually an `AdaptedModel`.
        groups: what is trained; each is clipped to `config.clip` on its own.
        examples: number of examples; a batch's rows are indices below it.
        config: steps, batches, schedule, seed.
        workdir: where the checkpoint lies while the run is unfinished.
        fingerprint: hash of everything that decides the result; its checkpoint is resumed.
        tracker: gets every 10 steps the mean losses, the gradient norm before clipping (over all
            groups), the learning rate and the optimizer's own numbers (of the first group), steps
            and images per second and the peak memory.
        name: shown by the progress bar, and the prefix of the metrics.
        preview: draws images every `config.sample_every` steps.
        order: makes the order of the examples for a batch size; None shuffles them all.
        judge: looks at the training, may end it and choose the result; None does neither.

    Raises:
        B4MError: if there is no example, or a loss or gradient is not finite; the parameters and
            the checkpoint are then those of the step before.
    """
    if examples < 1:
        raise B4MError(f"{name}: there is no image to train on")
    processes = join(model)
    tracker = tracker if tracker is not None and processes.main else NullTracker()
    path = checkpoint_path(workdir, fingerprint)
    base_rates = [[group["lr"] for group in one.optimizer.param_groups] for one in groups]
    state = TrainingState(groups, model, config.ema_decay, judge)
    done = state.resume(path, fingerprint)
    size = config.batch_size * processes.count
    shown = order(size) if order else ShuffledIndices(examples, size, config.seed)
    report = Report(size * config.accumulation)
    bar = progress(name, done, config.steps, processes.main)
    for index in bar:
        _set_rates(groups, base_rates, _rate_factor(config, index))
        moving = state.moving(index)
        positions = range(index * config.accumulation, (index + 1) * config.accumulation)
        batches = [_batch(processes, config, shown, position) for position in positions]
        losses = _accumulate(model, step, state.scaler, batches)
        processes.average(_gradients(moving))
        norms = _clip(moving, state.scaler, config.clip)
        finished = index + 1
        report.add(_finite(name, finished, losses, norms, state.scaler.is_enabled()))
        state.update(moving, finished)
        if finished % _LOG_EVERY == 0 or finished == config.steps:
            optimizer = groups[0].optimizer
            means = report.means() | {"lr": optimizer.param_groups[0]["lr"]} | numbers(optimizer)
            tracker.metrics(_named(name, means), finished)
            bar.set_postfix({key: f"{value:.3g}" for key, value in means.items()}, refresh=False)
        if judge is not None and judge.due(finished, config.steps):
            with state.averaged():
                tracker.metrics(_named(name, judge.look(finished, state.parameters)), finished)
            if judge.over:
                break
        if processes.main and _due(finished, config.checkpoint_every, config.steps):
            state.write(path, fingerprint, finished)
        if processes.main and preview and _due(finished, config.sample_every, config.steps):
            with state.averaged():
                for key, image in preview(finished).items():
                    tracker.image(key, image, finished)
    state.finish()
    processes.wait()
    if processes.main:
        remove_checkpoint(path)


def _named(name: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}/{key}": value for key, value in values.items()}


def _rate_factor(config: LoopConfig, index: int) -> float:
    return rate_factor(
        config.schedule, index, config.steps, config.warmup, config.restarts, config.lr_end
    )


def _gradients(groups: Sequence[ParameterGroup]) -> list[Tensor]:
    """All gradients; what the model does not use has none, in any process."""
    parameters = [one for group in groups for one in group.parameters.values()]
    return [one.grad for one in parameters if one.grad is not None]


def _batch(processes: Processes, config: LoopConfig, order: Order, position: int) -> Batch:
    """This process's slice of batch `position`."""
    size, rank = config.batch_size, processes.rank
    mine = slice(rank * size, (rank + 1) * size)
    whole = order.batch(position)
    own, common = (
        torch.Generator("cpu").manual_seed(derive_seed(config.seed, "noise", position, number))
        for number in (rank, 0)
    )
    return Batch(whole[mine], position, own, whole, mine, common)


def _accumulate(
    model: nn.Module, step: Step, scaler: Any, batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Leave the mean gradient of this process's micro-batches.

    Returns:
        the mean of each loss over them.
    """
    values: dict[str, list[Tensor]] = {}
    for batch in batches:
        losses = step(model, batch)
        scaler.scale(losses["loss"].mean() / len(batches)).backward()
        for key, value in losses.items():
            values.setdefault(key, []).append(value.detach().float().mean())
    return {key: torch.stack(parts).mean() for key, parts in values.items()}


def _clip(
    groups: Sequence[ParameterGroup], scaler: torch.amp.GradScaler, clip: float
) -> list[Tensor]:
    """Clip each group's gradient on its own; return the norms from before."""
    norms = []
    for one in groups:
        scaler.unscale_(one.optimizer)
        # without a limit the norm is only measured
        limit = clip if clip > 0 else math.inf
        norms.append(nn.utils.clip_grad_norm_(list(one.parameters.values()), limit))
    return norms


def _finite(
    name: str, step: int, losses: Mapping[str, Tensor], norms: Sequence[Tensor], scaled: bool
) -> dict[str, float]:
    """The step's numbers, brought from the device at once.

    A scaled loss may overflow in the backward pass: the scaler then skips the step by itself, and
    an infinite norm is no error.

    Raises:
        B4MError: for the first number that is not finite.
    """
    numbers = torch.stack([value.float() for value in (*losses.values(), *norms)]).tolist()
    values = dict(zip(losses, numbers, strict=False))
    values["grad_norm"] = math.hypot(*numbers[len(losses) :])
    for key, value in values.items():
        if not math.isfinite(value) and not (scaled and key == "grad_norm"):
            what = {"loss": "the loss", "grad_norm": "the gradient"}.get(key, f"the loss {key!r}")
            raise B4MError(
                f"{name}: {what} is not finite at step {step}, which was not made; "
                "lower the learning rate"
            )
    return values


def _set_rates(
    groups: Sequence[ParameterGroup], base_rates: Sequence[Sequence[float]], factor: float
) -> None:
    for one, rates in zip(groups, base_rates, strict=True):
        for group, rate in zip(one.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor


def _due(finished: int, every: int, steps: int) -> bool:
    return every > 0 and finished % every == 0 and finished < steps
