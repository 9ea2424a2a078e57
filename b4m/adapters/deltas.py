"""Trainable deltas: the plain low-rank pair, B4M's partly learnable projection, a fixed pair.

    Pair    dW = g up down                    everything learnable, g = alpha / rank
    PLP     up = [A; B], down = [C  D]        A, C frozen and orthogonal; B, D learnable

            dW = [ AC  AD ]   rows:    first d = floor(split O) and the rest
                 [ BC  BD ]   columns: first floor(split I) and the rest

PLP is the parametrization of Break-for-Make (arXiv 2403.19456; ACM TOG 44(2), 2025). Content learns
one of B, D as its main factor and style the other; *make* joins content's half and style's half
around the frozen blocks that both share. Every linear gets it, square or not. In the released code
only 280 of SDXL's 560 linears do; in the others A is zero, so that AC = AD = 0 for ever.

Frozen blocks are buffers: no gradient, no optimizer state, no weight decay. The released code masks
gradients instead, so weight decay shrinks its frozen half.

Size of the frozen blocks. The released A and C are rows sampled from one orthonormal 1280 x r
matrix, so A^T A and C C^T are about split I in a 1280-wide layer. Here they are exactly orthonormal
times scale sqrt(split): A^T A = C C^T = scale^2 split I, the released magnitude for scale 1. B
starts at zero and D at N(0, 1/r^2), so the base is perturbed before the first step by

    ||dW||_F^2 = ||AC||^2 + ||AD||^2 ~ scale^4 split^2 r + scale^2 split (1 - split) I / r

which is 4.6^2 for a 1280-wide layer at rank 64. A smaller scale starts closer to the base.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from b4m.adapters.lowrank import LowRank
from b4m.adapters.orthogonal import generator_for, orthonormal
from b4m.errors import B4MError

ROLES = ("content-down", "content-up")


class LowRankDelta(nn.Module):
    """A learnable low-rank delta, y = gain up (down x), computed in x's dtype.

    Args:
        up_OR: start of up; becomes the parameter `up_learnable`.
        down_RI: start of down; becomes the parameter `down_learnable`.
        scaling: alpha / rank, folded into up by `lowrank`.

    `kept_R`, if it is set, weighs the ranks in a forward and in nothing else (`RankDropout`).
    """

    def __init__(self, up_OR: Tensor, down_RI: Tensor, scaling: float = 1.0) -> None:
        super().__init__()
        self.up_learnable = nn.Parameter(up_OR.detach().clone())
        self.down_learnable = nn.Parameter(down_RI.detach().clone())
        self.scaling = scaling
        self.kept_R: Tensor | None = None

    @property
    def up(self) -> Tensor:
        """The whole up factor (O x R), frozen rows included; differentiable."""
        return self.up_learnable

    @property
    def down(self) -> Tensor:
        """The whole down factor (R x I), frozen columns included; differentiable."""
        return self.down_learnable

    @property
    def rank(self) -> int:
        """R, the inner size."""
        return self.down_learnable.shape[0]

    @property
    def out_features(self) -> int:
        """O of the linear that this is added to."""
        return self.up.shape[0]

    @property
    def in_features(self) -> int:
        """I of the linear that this is added to."""
        return self.down.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.linear(x, self.down.to(x.dtype))
        if self.kept_R is not None:
            hidden = hidden * self.kept_R.to(x.dtype)
        y = nn.functional.linear(hidden, self.up.to(x.dtype))
        return y if self.scaling == 1.0 else self.scaling * y

    def lowrank(self) -> LowRank:
        """A detached copy of the factors, with the gain folded into up."""
        up_OR, down_RI = self.up.detach().clone(), self.down.detach().clone()
        return LowRank(up_OR if self.scaling == 1.0 else up_OR * self.scaling, down_RI)


class RankDropout:
    """Leave out ranks of every layer at random, and weigh the others so that the mean stays.

    Args:
        deltas: the layers.
        share: of the ranks that a forward leaves out, in [0, 1).
    """

    def __init__(self, deltas: Iterable[LowRankDelta], share: float) -> None:
        self._deltas, self._share = list(deltas), share

    def draw(self, generator: torch.Generator) -> None:
        """Draw which ranks the next forward has, layer by layer."""
        if self._share:
            for delta in self._deltas:
                kept_R = (torch.rand(delta.rank, generator=generator) >= self._share).float()
                delta.kept_R = (kept_R / (1 - self._share)).to(delta.down_learnable.device)

    def rest(self) -> None:
        """Let all ranks take part again."""
        for delta in self._deltas:
            delta.kept_R = None


class LoRADelta(LowRankDelta):
    """A plain LoRA pair: the whole of up and down is learnable."""

    @classmethod
    def start(
        cls,
        out_features: int,
        in_features: int,
        rank: int,
        generator: torch.Generator,
        scaling: float = 1.0,
    ) -> LoRADelta:
        """A plain LoRA at its start: down ~ N(0, 1/r^2), up = 0, so dW = 0."""
        return cls(torch.zeros(out_features, rank), _normal(rank, in_features, generator), scaling)


class PLP(LowRankDelta):
    """B4M's partly learnable projection: up = [A; B], down = [C  D], A and C frozen.

    Args:
        up_frozen: A, d x R, a buffer.
        up_learnable: B, (O - d) x R, a parameter.
        down_frozen: C, R x k, a buffer.
        down_learnable: D, R x (I - k), a parameter.
    """

    up_frozen: Tensor
    down_frozen: Tensor

    def __init__(
        self, up_frozen: Tensor, up_learnable: Tensor, down_frozen: Tensor, down_learnable: Tensor
    ) -> None:
        super().__init__(up_learnable, down_learnable)
        self.register_buffer("up_frozen", up_frozen.detach().clone())
        self.register_buffer("down_frozen", down_frozen.detach().clone())

    @classmethod
    def start(
        cls,
        out_features: int,
        in_features: int,
        rank: int,
        generator: torch.Generator,
        *,
        layer: str,
        basis_seed: int,
        split: float = 0.5,
        scale: float = 1.0,
    ) -> PLP:
        """A PLP before the first step: A, C orthogonal from the basis seed, B = 0, D ~ N(0, 1/r^2).

        Args:
            out_features: O.
            in_features: I.
            rank: R.
            generator: draws D; the run's own.
            layer: name of the linear; with `basis_seed` it fixes A and C.
            basis_seed: the same for a content and a style run that will be joined.
            split: share of up's rows and down's columns that is frozen, in [0, 1); 0 is plain LoRA.
            scale: size of A and C relative to the released code's; see the module.
        """
        rows, columns = frozen_size(out_features, split), frozen_size(in_features, split)
        size = scale * math.sqrt(split)
        up_frozen = orthonormal(rows, rank, generator_for(basis_seed, layer, "A")) * size
        down_frozen = orthonormal(rank, columns, generator_for(basis_seed, layer, "C")) * size
        return cls(
            up_frozen,
            torch.zeros(out_features - rows, rank),
            down_frozen,
            _normal(rank, in_features - columns, generator),
        )

    @classmethod
    def cut(cls, pair: LowRank, split: float) -> PLP:
        """The PLP whose whole factors are this pair's, cut at the split."""
        rows = frozen_size(pair.out_features, split)
        columns = frozen_size(pair.in_features, split)
        return cls(pair.up[:rows], pair.up[rows:], pair.down[:, :columns], pair.down[:, columns:])

    @property
    def up(self) -> Tensor:
        return torch.cat([self.up_frozen, self.up_learnable], dim=0)

    @property
    def down(self) -> Tensor:
        return torch.cat([self.down_frozen, self.down_learnable], dim=1)


class FrozenDelta(nn.Module):
    """A low-rank pair as a delta without parameters."""

    up: Tensor
    down: Tensor

    def __init__(self, pair: LowRank) -> None:
        super().__init__()
        self.register_buffer("up", pair.up.detach())
        self.register_buffer("down", pair.down.detach())

    @property
    def out_features(self) -> int:
        """O of the linear that this is added to."""
        return self.up.shape[0]

    @property
    def in_features(self) -> int:
        """I of the linear that this is added to."""
        return self.down.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.lowrank().apply(x)

    def lowrank(self) -> LowRank:
        """The pair."""
        return LowRank(self.up, self.down)


def join(
    content: LowRank, style: LowRank, *, split: float, role: str = "content-down", layer: str = ""
) -> PLP:
    """*Make*'s start: the PLP with content's learnt half and style's learnt half, nothing lost.

    role "content-down" takes D from content and B from style, as the released code does;
    "content-up" takes B from content and D from style, as the paper's figure draws it. The frozen
    blocks A and C must be the same in both, bit for bit.

    Args:
        content: a layer of the content adapter, as trained (never truncated or merged).
        style: the same layer of the style adapter.
        split: the split that both were broken with.
        role: "content-down" or "content-up".
        layer: name of the layer, for the message of an error.

    Raises:
        B4MError: when shape, rank or frozen blocks of the two differ.
    """
    where = f" in {layer}" if layer else ""
    if role not in ROLES:
        raise B4MError(f"role={role!r}; choose one of {', '.join(ROLES)}")
    shapes = [(p.out_features, p.in_features) for p in (content, style)]
    if shapes[0] != shapes[1]:
        raise B4MError(
            f"content is {shapes[0]} and style is {shapes[1]}{where}: the two halves were broken "
            "on different bases; train both on one base"
        )
    if content.rank != style.rank:
        raise B4MError(
            f"content has rank {content.rank} and style has rank {style.rank}{where}; "
            "halves can be joined only when both were trained with one rank"
        )
    content_plp, style_plp = PLP.cut(content, split), PLP.cut(style, split)
    same_up = torch.equal(content_plp.up_frozen, style_plp.up_frozen)
    same_down = torch.equal(content_plp.down_frozen, style_plp.down_frozen)
    if not (same_up and same_down):
        factor = "down" if same_up else "up"
        raise B4MError(
            f"the frozen blocks of {factor} differ{where}: content and style were not broken on "
            "the same orthogonal basis; train both with one basis_seed, rank, split and "
            "basis_scale, and store both in one dtype"
        )
    halves = (style_plp, content_plp) if role == "content-down" else (content_plp, style_plp)
    return PLP(
        content_plp.up_frozen,
        halves[0].up_learnable,
        content_plp.down_frozen,
        halves[1].down_learnable,
    )


def frozen_size(features: int, split: float) -> int:
    """floor(split * features), the frozen rows of up or columns of down."""
    if not 0.0 <= split < 1.0:
        raise B4MError(f"split={split} is outside [0, 1); it is the frozen share of each factor")
    return math.floor(split * features + 1e-9)  # 0.29 * 100 is 28.999999999999996


def _normal(rank: int, columns: int, generator: torch.Generator) -> Tensor:
    """R x columns from N(0, 1/r^2), diffusers' start of down."""
    return torch.randn(rank, columns, generator=generator) / rank
