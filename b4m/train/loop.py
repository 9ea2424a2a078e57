"""The one training loop, for adapters and for masks.

A method gives a model, the learners (parameters with their optimizer) and a step function that
returns per-example losses; the loop makes exactly the optimizer steps asked for, accumulates,
clips, checkpoints, resumes and reports. On a CPU a resumed run ends with the same bits as one that
was never stopped.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from b4m.errors import B4MError
from b4m.train.checkpoint import (
    checkpoint_path,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)
from b4m.train.randomness import ShuffledIndices, derive_seed

_LOG_EVERY = 10


class Tracker(Protocol):
    """Where numbers and pictures of a run go."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers after `step` optimizer steps."""

    def image(self, name: str, image: Image.Image, step: int) -> None:
        """Record a picture after `step` optimizer steps."""


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
    """How long and in what portions: see `b4m.config.TrainSettings` for the meanings."""

    steps: int
    batch_size: int = 1
    accumulation: int = 1
    clip: float = 1.0
    warmup: int = 0
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
    plan: LoopConfig,
    *,
    workdir: Path,
    fingerprint: str,
    tracker: Tracker | None = None,
    name: str = "train",
    preview: Preview | None = None,
) -> None:
    """Train in place; `plan.steps` optimizer steps whatever the number of examples.

    Args:
        step: called with the model (as accelerate wraps it) and a batch; returns per-example losses
            by name. The mean of "loss" is minimised, further entries are only reported.
        model: holds the parameters; usually an `AdaptedUNet`.
        groups: what is trained; each is clipped to `plan.clip` on its own.
        examples: number of examples; a batch's rows are indices below it.
        plan: steps, portions, seed.
        workdir: where the checkpoint lies while the run is unfinished.
        fingerprint: hash of everything that decides the result; its checkpoint is resumed.
        tracker: gets the mean losses every 10 steps.
        name: shown by the progress bar, and the prefix of the metrics.
        preview: draws pictures every `plan.sample_every` steps.

    Raises:
        B4MError: if there is no example, or the loss is no longer a number.
    """
    if examples < 1:
        raise B4MError(f"{name}: there is no picture to train on")
    accelerator, model = _accelerate(model)
    main = accelerator.is_main_process
    tracker = tracker if tracker is not None and main else NullTracker()
    scaler = torch.amp.GradScaler("cuda", enabled=_needs_loss_scale(model))
    path = checkpoint_path(workdir, fingerprint)
    base_rates = [[group["lr"] for group in one.optimizer.param_groups] for one in groups]
    done = _resume(path, fingerprint, groups, scaler)
    report = _Report(name)
    for index in _progress(name, done, plan.steps, main):
        _set_rates(groups, base_rates, _warmup_factor(index, plan.warmup))
        portion = range(index * plan.accumulation, (index + 1) * plan.accumulation)
        batches = [_batch(accelerator, plan, examples, position) for position in portion]
        report.add(_accumulate(accelerator, model, step, scaler, batches))
        _update(groups, scaler, plan.clip)
        finished = index + 1
        if finished % _LOG_EVERY == 0 or finished == plan.steps:
            tracker.metrics(report.means(finished), finished)
        if main and _due(finished, plan.checkpoint_every, plan.steps):
            _write(path, fingerprint, finished, groups, scaler)
        if main and preview is not None and _due(finished, plan.sample_every, plan.steps):
            for key, image in preview(finished).items():
                tracker.image(key, image, finished)
    accelerator.wait_for_everyone()
    if main:
        remove_checkpoint(path)


def _accelerate(model: nn.Module) -> tuple[Any, nn.Module]:
    """Wrap for as many processes as `accelerate launch` started; one process wraps nothing.

    Placement and precision are the base's, so accelerate is asked for neither.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="no")
    prepared: nn.Module = accelerator.prepare_model(model, device_placement=False)
    return accelerator, prepared


def _needs_loss_scale(model: nn.Module) -> bool:
    """Float16 activations underflow in the backward pass; other dtypes do not."""
    return any(p.dtype == torch.float16 and p.is_cuda for p in model.parameters())


def _resume(
    path: Path, fingerprint: str, groups: Sequence[ParameterGroup], scaler: torch.amp.GradScaler
) -> int:
    """Load the checkpoint of this run if there is one; return the number of finished steps."""
    content = read_checkpoint(path, fingerprint)
    if content is None:
        return 0
    with torch.no_grad():
        for key, parameter in _named(groups).items():
            parameter.copy_(content["parameters"][key])
    for one, state in zip(groups, content["optimizers"], strict=True):
        one.optimizer.load_state_dict(state)
    scaler.load_state_dict(content["scaler"])
    return int(content["step"])


def _write(
    path: Path,
    fingerprint: str,
    finished: int,
    groups: Sequence[ParameterGroup],
    scaler: torch.amp.GradScaler,
) -> None:
    states = [one.optimizer.state_dict() for one in groups]
    write_checkpoint(path, fingerprint, finished, _named(groups), states, scaler.state_dict())


def _named(groups: Sequence[ParameterGroup]) -> dict[str, nn.Parameter]:
    """All learnable parameters; the learner's number keeps equal names apart."""
    return {
        f"{number}.{key}": parameter
        for number, one in enumerate(groups)
        for key, parameter in one.parameters.items()
    }


def _batch(accelerator: Any, plan: LoopConfig, examples: int, position: int) -> Batch:
    """This process's slice of batch `position`, with noise of its own."""
    size, rank = plan.batch_size, accelerator.process_index
    order = ShuffledIndices(examples, size * accelerator.num_processes, plan.seed)
    rows = order.batch(position)[rank * size : (rank + 1) * size]
    seed = derive_seed(plan.seed, "noise", position, rank)
    return Batch(rows, position, torch.Generator("cpu").manual_seed(seed))


def _accumulate(
    accelerator: Any, model: nn.Module, step: Step, scaler: Any, batches: Sequence[Batch]
) -> list[Mapping[str, Tensor]]:
    """Leave the mean gradient of the batches; processes are synchronized at the last one only."""
    found: list[Mapping[str, Tensor]] = []
    for number, batch in enumerate(batches, start=1):
        with nullcontext() if number == len(batches) else accelerator.no_sync(model):
            losses = step(model, batch)
            accelerator.backward(scaler.scale(losses["loss"].mean() / len(batches)))
        found.append({key: value.detach().float().mean() for key, value in losses.items()})
    return found


def _update(groups: Sequence[ParameterGroup], scaler: torch.amp.GradScaler, clip: float) -> None:
    for one in groups:
        scaler.unscale_(one.optimizer)
        if clip > 0:
            nn.utils.clip_grad_norm_(list(one.parameters.values()), clip)
        scaler.step(one.optimizer)
    scaler.update()
    for one in groups:
        one.optimizer.zero_grad(set_to_none=True)


def _set_rates(
    groups: Sequence[ParameterGroup], base_rates: Sequence[Sequence[float]], factor: float
) -> None:
    for one, rates in zip(groups, base_rates, strict=True):
        for group, rate in zip(one.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor


def _warmup_factor(index: int, warmup: int) -> float:
    return min(1.0, (index + 1) / warmup) if warmup else 1.0


def _due(finished: int, every: int, steps: int) -> bool:
    return every > 0 and finished % every == 0 and finished < steps


class _Report:
    """Losses since the last report."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._values: dict[str, list[Tensor]] = {}

    def add(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        for losses in batches:
            for key, value in losses.items():
                self._values.setdefault(key, []).append(value)

    def means(self, step: int) -> dict[str, float]:
        """Mean of each loss; the next report starts empty."""
        means = {key: float(torch.stack(values).mean()) for key, values in self._values.items()}
        self._values.clear()
        if not all(math.isfinite(value) for value in means.values()):
            raise B4MError(
                f"{self._name}: the loss is no number any more after {step} steps; "
                "lower the learning rate"
            )
        return {f"{self._name}/{key}": value for key, value in means.items()}


def _progress(name: str, done: int, steps: int, shown: bool) -> Iterator[int]:
    """Step numbers still to do, with a bar on standard error."""
    from tqdm import tqdm

    quiet = not shown or os.environ.get("B4M_PROGRESS") == "off"
    bar: Iterator[int] = tqdm(
        range(done, steps),
        desc=name,
        initial=done,
        total=steps,
        file=sys.stderr,
        disable=quiet,
        mininterval=1.0,
    )
    return bar
