"""The one training loop, for adapters, for masks and for whole models.

A method gives a model, groups of parameters with their optimizers, and a step function that returns
per-example losses; the loop makes exactly the optimizer steps asked for, accumulates, clips,
schedules, averages, checkpoints, resumes and reports. On a CPU a resumed run ends with the same
bits as one that was never stopped.
"""

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from b4m.errors import B4MError
from b4m.training.checkpoint import (
    checkpoint_path,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from b4m.training.ema import ParameterAverage
from b4m.training.randomness import ShuffledIndices, derive_seed
from b4m.training.schedule import SCHEDULES, rate_factor

_log = logging.getLogger(__name__)
_LOG_EVERY = 10


class Tracker(Protocol):
    """Where numbers and images of a run go."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers after `step` optimizer steps."""

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """Record an image after `step` optimizer steps."""


class NullTracker:
    """Records nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing."""

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters by name, and the optimizer that moves them; clipped on their own."""

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer


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
    ema_decay: float = 0.0
    checkpoint_every: int = 100
    sample_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise B4MError(f"setting {name}={getattr(self, name)} must be 1 or more")
        for name in ("warmup", "checkpoint_every", "sample_every"):
            if getattr(self, name) < 0:
                raise B4MError(f"setting {name}={getattr(self, name)} must be 0 or more")
        if self.schedule not in SCHEDULES:
            raise B4MError(f"setting schedule={self.schedule!r} must be {' or '.join(SCHEDULES)}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise B4MError(f"setting ema_decay={self.ema_decay} must be at least 0 and below 1")


@dataclass(frozen=True)
class Batch:
    """One forward's share: indices of the examples, position in the run, its own CPU generator."""

    rows: list[int]
    position: int
    generator: torch.Generator = field(compare=False)


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
) -> None:
    """Train in place; `config.steps` optimizer steps whatever the number of examples.

    Args:
        step: called with the model (as accelerate wraps it) and a batch; returns per-example losses
            by name. The mean of "loss" is minimised, further entries are only reported.
        model: holds the parameters; usually an `AdaptedModel`.
        groups: what is trained; each is clipped to `config.clip` on its own.
        examples: number of examples; a batch's rows are indices below it.
        config: steps, batches, schedule, seed.
        workdir: where the checkpoint lies while the run is unfinished.
        fingerprint: hash of everything that decides the result; its checkpoint is resumed.
        tracker: gets every 10 steps the mean losses, the gradient norm before clipping (over all
            groups), the learning rate (of the first group) and the steps per second.
        name: shown by the progress bar, and the prefix of the metrics.
        preview: draws images every `config.sample_every` steps.

    Raises:
        B4MError: if there is no example, or a loss or gradient is not finite; the parameters and
            the checkpoint are then those of the step before.
    """
    if examples < 1:
        raise B4MError(f"{name}: there is no image to train on")
    accelerator, model = _accelerate(model)
    main = accelerator.is_main_process
    tracker = tracker if tracker is not None and main else NullTracker()
    path = checkpoint_path(workdir, fingerprint)
    base_rates = [[group["lr"] for group in one.optimizer.param_groups] for one in groups]
    state = _State(groups, model, config.ema_decay)
    done = state.resume(path, fingerprint)
    report = _Report()
    bar = _progress(name, done, config.steps, main)
    for index in bar:
        factor = rate_factor(config.schedule, index, config.steps, config.warmup)
        _set_rates(groups, base_rates, factor)
        positions = range(index * config.accumulation, (index + 1) * config.accumulation)
        batches = [_batch(accelerator, config, examples, position) for position in positions]
        losses = _accumulate(accelerator, model, step, state.scaler, batches)
        norms = _clip(groups, state.scaler, config.clip)
        finished = index + 1
        report.add(_finite(name, finished, losses, norms, state.scaler.is_enabled()))
        state.update(finished)
        if finished % _LOG_EVERY == 0 or finished == config.steps:
            means = report.means(groups[0].optimizer.param_groups[0]["lr"])
            tracker.metrics({f"{name}/{key}": value for key, value in means.items()}, finished)
            bar.set_postfix({key: f"{value:.3g}" for key, value in means.items()}, refresh=False)
        if main and _due(finished, config.checkpoint_every, config.steps):
            state.write(path, fingerprint, finished)
        if main and preview is not None and _due(finished, config.sample_every, config.steps):
            with state.averaged():
                for key, image in preview(finished).items():
                    tracker.image(key, image, finished)
    if state.average is not None:
        state.average.swap()
    accelerator.wait_for_everyone()
    if main:
        remove_checkpoint(path)


def _accelerate(model: nn.Module) -> tuple[Any, nn.Module]:
    """Wrap for as many processes as `accelerate launch` or torchrun started; one wraps nothing.

    Placement and precision are the base's, so accelerate is asked for neither.
    """
    from accelerate import Accelerator

    # torchrun's processes on CPUs would not find one another without being told of the CPU
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_cpu = several and all(parameter.is_cpu for parameter in model.parameters())
    accelerator = Accelerator(mixed_precision="no", cpu=on_cpu)
    prepared: nn.Module = accelerator.prepare_model(model, device_placement=False)
    return accelerator, prepared


class _State:
    """What a training changes: parameters, optimizers, loss scale and averages."""

    def __init__(
        self, groups: Sequence[ParameterGroup], model: nn.Module, ema_decay: float
    ) -> None:
        self._groups = groups
        self.scaler = torch.amp.GradScaler("cuda", enabled=_needs_loss_scale(model))
        # the group's number keeps equal names apart
        self._parameters = {
            f"{number}.{key}": parameter
            for number, one in enumerate(groups)
            for key, parameter in one.parameters.items()
        }
        self.average = ParameterAverage(self._parameters, ema_decay) if ema_decay else None
        self._zero_gradients()  # a training that failed leaves its last ones behind

    def update(self, finished: int) -> None:
        """Make the optimizer step number `finished`, counted from 1, and forget the gradients."""
        for one in self._groups:
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

    def resume(self, path: Path, fingerprint: str) -> int:
        """Load this run's checkpoint if there is one; return the number of finished steps."""
        content = read_checkpoint(path, fingerprint)
        if content is None:
            return 0
        with torch.no_grad():
            for key, parameter in self._parameters.items():
                parameter.copy_(content["parameters"][key])
        for one, state in zip(self._groups, content["optimizers"], strict=True):
            one.optimizer.load_state_dict(state)
        self.scaler.load_state_dict(content["scaler"])
        if self.average is not None:
            self.average.load(content["averages"])
        _log.info("resumed %s after step %d", path, content["step"])
        return int(content["step"])

    def write(self, path: Path, fingerprint: str, finished: int) -> None:
        """Replace this run's checkpoint."""
        write_checkpoint(
            path,
            fingerprint,
            finished,
            self._parameters,
            [one.optimizer.state_dict() for one in self._groups],
            self.scaler.state_dict(),
            {} if self.average is None else self.average.values,
        )
        _log.debug("checkpoint after step %d in %s", finished, path)


def _needs_loss_scale(model: nn.Module) -> bool:
    """Float16 activations underflow in the backward pass; other dtypes do not."""
    return any(p.dtype == torch.float16 and p.is_cuda for p in model.parameters())


def _batch(accelerator: Any, config: LoopConfig, examples: int, position: int) -> Batch:
    """This process's slice of batch `position`, with noise of its own."""
    size, rank = config.batch_size, accelerator.process_index
    order = ShuffledIndices(examples, size * accelerator.num_processes, config.seed)
    rows = order.batch(position)[rank * size : (rank + 1) * size]
    seed = derive_seed(config.seed, "noise", position, rank)
    return Batch(rows, position, torch.Generator("cpu").manual_seed(seed))


def _accumulate(
    accelerator: Any, model: nn.Module, step: Step, scaler: Any, batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """Leave the mean gradient of the micro-batches; processes meet at the last one only.

    Returns:
        the mean of each loss over the micro-batches of this process.
    """
    values: dict[str, list[Tensor]] = {}
    for number, batch in enumerate(batches, start=1):
        with nullcontext() if number == len(batches) else accelerator.no_sync(model):
            losses = step(model, batch)
            accelerator.backward(scaler.scale(losses["loss"].mean() / len(batches)))
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


class _Report:
    """Losses, gradient norms and time since the last report."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._steps, self._begun = 0, time.monotonic()

    def add(self, values: Mapping[str, float]) -> None:
        """Take in the numbers of one step; the infinite norm of a skipped step says nothing."""
        for key, value in values.items():
            if math.isfinite(value):
                self._values.setdefault(key, []).append(value)
        self._steps += 1

    def means(self, lr: float) -> dict[str, float]:
        """Mean of each number, the learning rate and the speed; the next report starts empty."""
        now = time.monotonic()
        means = {key: math.fsum(values) / len(values) for key, values in self._values.items()}
        means |= {"lr": lr, "steps_per_second": self._steps / max(now - self._begun, 1e-9)}
        self._values, self._steps, self._begun = {}, 0, now
        return means


def _progress(name: str, done: int, steps: int, shown: bool) -> Any:
    """Step numbers still to do, with a bar on standard error."""
    from tqdm import tqdm

    return tqdm(
        range(done, steps),
        desc=name,
        initial=done,
        total=steps,
        unit="step",
        file=sys.stderr,
        disable=not shown or os.environ.get("B4M_PROGRESS") == "off",
        mininterval=1.0,
    )
