"""The optimizers by name: a row says how one is built and what it has to tell.

Whatever a row builds keeps its state in `state_dict`, so that a resumed training repeats it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from typing import Any

import torch
from torch import nn

from b4m.adapters.riemannian import FactorPair, RiemannianAdamW
from b4m.errors import B4MError
from b4m.training.settings import OPTIMIZERS, Optimization

Groups = Sequence[Mapping[str, Any]]


class Lion(torch.optim.Optimizer):
    """Lion (arXiv 2302.06675): the sign of an interpolated momentum, decay decoupled.

        p <- p - lr (sign(b1 m + (1 - b1) g) + decay p)        m <- b2 m + (1 - b2) g

    Args:
        groups: parameters, or groups of them.
        lr: learning rate; three to ten times smaller than AdamW's.
        betas: b1 and b2.
        weight_decay: decay.
    """

    def __init__(
        self,
        groups: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step on the gradients that are there."""
        for group in self.param_groups:
            lr, (b1, b2), decay = group["lr"], group["betas"], group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                m = state["momentum"]
                direction = (b1 * m + (1 - b1) * p.grad).sign_()
                p.mul_(1 - lr * decay).sub_(lr * direction)
                m.lerp_(p.grad, 1 - b2)


@dataclass(frozen=True)
class Learnable:
    """What one optimizer moves.

    Attributes:
        ups: parameters of up factors.
        downs: parameters of down factors.
        pairs: the pairs that both are of, for an optimizer that works on pairs; may be empty where
            only one factor of each is trained.
        what: named in messages, e.g. "the text encoders".
    """

    ups: Sequence[nn.Parameter]
    downs: Sequence[nn.Parameter]
    pairs: Sequence[FactorPair] = ()
    what: str = "the denoiser"

    @classmethod
    def of(cls, pairs: Iterable[FactorPair], what: str = "the denoiser") -> "Learnable":
        """Both factors of all pairs."""
        listed = list(pairs)
        ups, downs = [p.up_learnable for p in listed], [p.down_learnable for p in listed]
        return cls(ups, downs, listed, what)


def build(
    settings: Optimization, learnable: Learnable, lr: float, up_ratio: float = 1.0
) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    Args:
        settings: name and weight decay.
        learnable: what it moves.
        lr: rate of the down factors.
        up_ratio: rate of the up factors by that of the down factors (LoRA+, arXiv 2402.12354).

    Raises:
        B4MError: for a missing package, or an optimizer that does not go with this.
    """
    name = settings.optimizer
    if name == "riemannian":
        return _riemannian(learnable, lr, settings.weight_decay, up_ratio)
    if name == "prodigy":
        _check_prodigy(lr, up_ratio)
    parts = [(learnable.downs, lr), (learnable.ups, lr * up_ratio)]
    if up_ratio == 1.0:
        parts = [([p for pair in _zipped(learnable) for p in pair], lr)]
    groups = [{"params": list(params), "lr": rate} for params, rate in parts if params]
    return _BUILDERS[name](groups, settings.weight_decay)


def numbers(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What an optimizer has to tell of itself: Prodigy's d, the rate that it has found."""
    d = optimizer.param_groups[0].get("d")
    return {} if d is None else {"d": float(d)}


def _zipped(learnable: Learnable) -> Iterable[tuple[nn.Parameter, ...]]:
    """Both factors of a pair side by side where there are both, as `nn.Module` lists them."""
    if learnable.ups and learnable.downs:
        return zip(learnable.ups, learnable.downs, strict=True)
    return ((p,) for p in (*learnable.ups, *learnable.downs))


def _adamw(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=weight_decay)  # type: ignore[arg-type]


def _adamw8bit(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    kind = _imported("bitsandbytes", "adamw8bit").optim.AdamW8bit
    built: torch.optim.Optimizer = kind(groups, weight_decay=weight_decay)
    return built


def _prodigy(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    """Prodigy (arXiv 2306.06101) with the settings that its authors recommend for diffusion."""
    kind = _imported("prodigyopt", "prodigy").Prodigy
    with redirect_stdout(StringIO()):  # it prints that its decay is decoupled
        built: torch.optim.Optimizer = kind(
            groups, weight_decay=weight_decay, use_bias_correction=True, safeguard_warmup=True
        )
    return built


def _lion(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    return Lion(groups, weight_decay=weight_decay)


def _adafactor(groups: Groups, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(groups, weight_decay=weight_decay)  # type: ignore[arg-type]


_BUILDERS: Mapping[str, Callable[[Groups, float], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "prodigy": _prodigy,
    "lion": _lion,
    "adafactor": _adafactor,
}
assert {*_BUILDERS, "riemannian"} == set(OPTIMIZERS)


def _riemannian(
    learnable: Learnable, lr: float, weight_decay: float, up_ratio: float
) -> torch.optim.Optimizer:
    if not learnable.pairs:
        raise B4MError(
            f"optimizer riemannian needs both factors of a pair, and of {learnable.what} one half "
            "is trained at a time; choose another one"
        )
    return RiemannianAdamW(learnable.pairs, lr, lr_up=lr * up_ratio, weight_decay=weight_decay)


def _check_prodigy(lr: float, up_ratio: float) -> None:
    if not 0.1 <= lr <= 10.0:
        raise B4MError(f"optimizer prodigy finds the rate itself; set it to 1, not to {lr:g}")
    if up_ratio != 1.0:
        raise B4MError("optimizer prodigy has one rate for both factors; leave out up_lr_ratio")


def _imported(package: str, optimizer: str) -> Any:
    try:
        return import_module(package)
    except ModuleNotFoundError:
        raise B4MError(
            f"optimizer {optimizer} needs the package {package}: pip install {package}"
        ) from None
