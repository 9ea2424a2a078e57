"""The loop that the three trainings of the offline world share.

It owns the clock, the learning rate, averaged weights and checkpoints; a training gives it a
function that returns the loss of one step. Adapters are trained by `b4m.train`, not here.

Arithmetic is bfloat16 everywhere, weights are float32: a GPU gets autocast, a CPU a bfloat16 copy
of the model whose gradients move to the float32 one (autocast on a CPU is several times slower).

Under `torchrun --nproc-per-node N -m b4m.mini base` each process draws its own pictures and the
gradients are averaged; two processes of one thread use two CPU cores far better than one of two.
"""

import copy
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import distributed, nn

from b4m.mini.recipe import Schedule


def pick_device() -> torch.device:
    """This process's GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def join_processes() -> int:
    """Join the other processes of torchrun, if there are any; returns this one's number."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return distributed.get_rank()


def learning_rate(schedule: Schedule, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine that ends at zero when progress is 1."""
    warm = min(1.0, (step + 1) / max(1, schedule.warmup))
    return schedule.lr * warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


class Run:
    """One resumable training.

    Args:
        name: for the log and the checkpoint's file name.
        models: what is trained and saved, by name.
        schedule: how long and how fast.
        work: folder of the checkpoint.
    """

    def __init__(
        self, name: str, models: Mapping[str, nn.Module], schedule: Schedule, work: Path
    ) -> None:
        self.name, self.models, self.schedule = name, dict(models), schedule
        self.path = work / f"{name}.checkpoint.pt"
        self.rank = join_processes()
        self.processes = distributed.get_world_size() if distributed.is_initialized() else 1
        self.step, self.elapsed = 0, 0.0
        parameters = [p for model in models.values() for p in model.parameters() if p.requires_grad]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            parameters,
            lr=schedule.lr,
            betas=(0.9, 0.99),
            weight_decay=schedule.weight_decay,
            fused=parameters[0].is_cuda,
        )
        self.averaged = {key: copy.deepcopy(model) for key, model in self.models.items()}
        for model in self.averaged.values():
            model.requires_grad_(False)
        if self.path.exists():
            self._load()
        self.on_gpu = parameters[0].is_cuda
        self.dtype = torch.float32 if self.on_gpu else torch.bfloat16
        self.working = (
            self.models
            if self.on_gpu
            else {
                key: copy.deepcopy(model).to(torch.bfloat16) for key, model in self.models.items()
            }
        )

    def arithmetic(self) -> AbstractContextManager[object]:
        """Context of a forward pass with `working` models and inputs of `dtype`."""
        return torch.autocast("cuda", torch.bfloat16) if self.on_gpu else nullcontext()

    def progress(self) -> float:
        """Share of the training that is done: of its steps or of its time, the larger."""
        return max(self.step / self.schedule.steps, self.elapsed / (60.0 * self.schedule.minutes))

    def fit(
        self,
        loss_of_step: Callable[[int], torch.Tensor],
        report: Callable[["Run"], None] | None = None,
        checkpoint_seconds: float = 120.0,
    ) -> None:
        """Train until the steps are made or the time is spent, then keep a checkpoint.

        Args:
            loss_of_step: takes the number of a draw, one per step and process; returns a scalar.
            report: called at every checkpoint, for pictures and numbers.
            checkpoint_seconds: time between checkpoints.
        """
        begun, earlier, saved, smooth = time.monotonic(), self.elapsed, time.monotonic(), 0.0
        while self.progress() < 1.0:
            rate = learning_rate(self.schedule, self.step, self.progress())
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of_step(self.step * self.processes + self.rank)
            loss.backward()
            self._collect()
            self._agree()
            norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
            if self.rank == 0 and self.step % (100 if self.on_gpu else 20) == 0:
                smooth = float(loss.detach())
                spent = time.monotonic() - begun
                print(
                    f"{self.name} step {self.step} loss {smooth:.4f} grad {float(norm):.2f} "
                    f"lr {rate:.1e} {spent:.0f}s progress {self.progress():.3f}",
                    file=sys.stderr,
                    flush=True,
                )
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._spread()
            self._average()
            self.step += 1
            self.elapsed = self._clock(earlier + time.monotonic() - begun)
            if time.monotonic() - saved > checkpoint_seconds:
                self._save()
                saved = time.monotonic()
                if report is not None:
                    report(self)
        self._save()

    def _copies(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        for key, model in self.models.items():
            yield from zip(model.parameters(), self.working[key].parameters(), strict=True)

    def _collect(self) -> None:
        """Move gradients from the working copies to the float32 weights."""
        if not self.on_gpu:
            for weight, copied in self._copies():
                weight.grad = None if copied.grad is None else copied.grad.float()
                copied.grad = None

    @torch.no_grad()
    def _agree(self) -> None:
        """Average the gradients of all processes."""
        if self.processes > 1:
            gradients = [weight.grad for weight in self.parameters if weight.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
            flat /= self.processes
            for gradient, part in zip(
                gradients, flat.split([g.numel() for g in gradients]), strict=True
            ):
                gradient.copy_(part.view_as(gradient))

    def _clock(self, seconds: float) -> float:
        """The first process's clock, so that all end at the same step."""
        if self.processes == 1:
            return seconds
        told = torch.tensor([seconds], dtype=torch.float64, device=self.parameters[0].device)
        distributed.broadcast(told, 0)
        return float(told)

    @torch.no_grad()
    def _spread(self) -> None:
        """Copy the float32 weights into the working copies, and their statistics back."""
        if not self.on_gpu:
            for weight, copied in self._copies():
                copied.copy_(weight)
            for key, model in self.models.items():
                for buffer, counted in zip(
                    model.buffers(), self.working[key].buffers(), strict=True
                ):
                    buffer.copy_(counted)

    @torch.no_grad()
    def _average(self) -> None:
        # a young average would be dominated by the random start
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        for key, model in self.models.items():
            targets: list[torch.Tensor] = list(self.averaged[key].parameters())
            torch._foreach_lerp_(targets, [p.detach() for p in model.parameters()], 1.0 - decay)
            for target, buffer in zip(self.averaged[key].buffers(), model.buffers(), strict=True):
                target.copy_(buffer)

    def _save(self) -> None:
        if self.rank != 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "elapsed": self.elapsed,
            "optimizer": self.optimizer.state_dict(),
            "models": {key: model.state_dict() for key, model in self.models.items()},
            "averaged": {key: model.state_dict() for key, model in self.averaged.items()},
            "random": torch.get_rng_state(),
        }
        temporary = self.path.with_suffix(".partial")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def _load(self) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.step, self.elapsed = state["step"], state["elapsed"]
        for key, model in self.models.items():
            model.load_state_dict(state["models"][key])
            self.averaged[key].load_state_dict(state["averaged"][key])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        print(f"{self.name} resumes at step {self.step}", file=sys.stderr)
