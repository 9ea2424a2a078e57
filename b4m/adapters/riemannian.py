"""Riemannian-preconditioned optimizers for low-rank pairs (Zhang and Pilanci, arXiv 2402.02347).

    G_down = (up^T up + delta I)^-1 grad_down          R x R from the left
    G_up   = grad_up (down down^T + delta I)^-1        R x R from the right

both from the factors before the step. With the plain step, down -= lr G_down and up -= lr G_up,
dW's path does not depend on how dW is split into factors: for delta = 0 the step commutes with
(up, down) -> (up G, G^-1 down). `RiemannianAdamW` feeds G_down and G_up to AdamW's moments instead
of the gradients, as B4M's *make* does (ACM TOG 44(2), 2025) and as PEFT's
`create_riemannian_optimizer` does.

Partly learnable projections: the Gram matrices are those of the whole factors, frozen blocks
included, and the gradients those of the learnable blocks. R x R matrices mix ranks only, never rows
of up or columns of down, so preconditioning and freezing commute.

In the code released with B4M this optimizer steps after the gradients were cleared, so it never
acts; its moments are not part of its state_dict; and delta is 0, which is singular at up = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from b4m.errors import B4MError


class FactorPair(Protocol):
    """What an optimizer needs of a pair: whole factors, and the parameters in them."""

    up_learnable: nn.Parameter
    down_learnable: nn.Parameter

    @property
    def up(self) -> Tensor:
        """O x R, frozen rows included."""

    @property
    def down(self) -> Tensor:
        """R x I, frozen columns included."""


class RiemannianAdamW(torch.optim.AdamW):
    """AdamW on preconditioned gradients.

    The first parameter group holds every down, the second every up, so a schedule can treat the two
    factors apart. State is AdamW's own and travels in `state_dict`; the pairs do not, the optimizer
    is built on them again.

    Args:
        pairs: the pairs to train, e.g. `Pair` or `PLP` modules.
        lr: learning rate, of down and, without `lr_up`, of up.
        lr_up: learning rate of up.
        betas: decay of AdamW's moments.
        eps: AdamW's epsilon.
        weight_decay: AdamW's decoupled decay; it never reaches frozen blocks.
        damping: delta, >= 0. With 0 a singular Gram matrix gets its pseudo-inverse.

    Raises:
        B4MError: without pairs, or for a negative damping.
    """

    def __init__(
        self,
        pairs: Iterable[FactorPair],
        lr: float = 1e-4,
        *,
        lr_up: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        damping: float = 1e-2,
    ) -> None:
        self.pairs = _checked(pairs, damping)
        self.damping = damping
        groups = _groups(self.pairs, lr, lr_up)
        super().__init__(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; the parameters' own gradients stay as they are."""
        _refuse(closure)
        with preconditioned(self.pairs, self.damping):
            super().step()


@contextmanager
def preconditioned(pairs: Sequence[FactorPair], damping: float) -> Iterator[None]:
    """Within: every gradient of the pairs' parameters is its preconditioned one. After: as before.

    Both directions come from the factors at entry. A parameter without a gradient stays without.
    """
    downs = [pair for pair in pairs if pair.down_learnable.grad is not None]
    ups = [pair for pair in pairs if pair.up_learnable.grad is not None]
    parameters = [pair.down_learnable for pair in downs] + [pair.up_learnable for pair in ups]
    kept = [parameter.grad for parameter in parameters]
    with torch.no_grad():
        left = damped_inverses([_gram(pair.up.T) for pair in downs], damping)
        right = damped_inverses([_gram(pair.down) for pair in ups], damping)
        for pair, inverse_RR in zip(downs, left, strict=True):
            gradient = pair.down_learnable.grad
            assert gradient is not None
            pair.down_learnable.grad = (inverse_RR @ gradient.to(inverse_RR)).to(gradient)
        for pair, inverse_RR in zip(ups, right, strict=True):
            gradient = pair.up_learnable.grad
            assert gradient is not None
            pair.up_learnable.grad = (gradient.to(inverse_RR) @ inverse_RR).to(gradient)
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def damped_inverses(grams: Sequence[Tensor], damping: float) -> list[Tensor]:
    """(M + damping I)^-1 for symmetric positive semidefinite matrices M, in their order.

    Matrices of one size go through one batched Cholesky; a singular one (damping 0, up = 0) gets
    its pseudo-inverse, so that what has no gradient does not move.
    """
    inverses: list[Tensor] = [torch.empty(0)] * len(grams)
    sizes = {(gram.shape[0], gram.dtype, gram.device) for gram in grams}
    for size in sizes:
        members = [i for i, g in enumerate(grams) if (g.shape[0], g.dtype, g.device) == size]
        stack_NRR = torch.stack([grams[i] for i in members])
        stack_NRR = stack_NRR + damping * torch.eye(size[0], dtype=size[1], device=size[2])
        lower_NRR, failed_N = torch.linalg.cholesky_ex(stack_NRR)
        bad_N = failed_N > 0
        lower_NRR[bad_N] = torch.eye(size[0], dtype=size[1], device=size[2])
        inverse_NRR = torch.cholesky_inverse(lower_NRR)
        if bool(bad_N.any()):
            inverse_NRR[bad_N] = torch.linalg.pinv(stack_NRR[bad_N], hermitian=True)
        for i, inverse in zip(members, inverse_NRR, strict=True):
            inverses[i] = inverse
    return inverses


def _gram(wide: Tensor) -> Tensor:
    """M M^T (R x R) in float32 or better."""
    wide = wide.detach().to(torch.promote_types(wide.dtype, torch.float32))
    return wide @ wide.T


def _checked(pairs: Iterable[FactorPair], damping: float) -> list[FactorPair]:
    collected = list(pairs)
    if not collected:
        raise B4MError("no low-rank pairs to optimize; the preconditioner needs at least one")
    if damping < 0:
        raise B4MError(f"damping={damping} is negative; the preconditioner needs damping >= 0")
    return collected


def _groups(pairs: Sequence[FactorPair], lr: float, lr_up: float | None) -> list[dict[str, Any]]:
    return [
        {"params": [pair.down_learnable for pair in pairs], "lr": lr},
        {"params": [pair.up_learnable for pair in pairs], "lr": lr if lr_up is None else lr_up},
    ]


def _refuse(closure: Callable[[], float] | None) -> None:
    if closure is not None:
        raise ValueError("a closure would write fresh gradients over the preconditioned ones")
