"""TIES merge (arXiv 2306.01708): trim, elect a sign, average those who agree.

    trim    E_i  keeps its `density` share of largest entries, the others become zero
    elect   s = sign(sum_i E_i), entry by entry (zero counts as +)
    merge   E = sum_i w_i E_i [sign E_i = s] / #{i: sign E_i = s}

space "core": E_i are the adapters in their common core space (`b4m.merging.core_space`), as
KnOTS-TIES and Core Space do it; the result depends on both dW alone.

space "factors": E_i are down and up, one after the other, with the signed root of the weight on
each so that the product carries the weight: PEFT's add_weighted_adapter("ties"). It depends on how
the factors share their scale and order, and cross terms U_1 D_2 appear (huggingface/peft#3004).
Deviations from PEFT: unequal ranks are met by padding with zeros and a layer that one lacks
counts as zero, where PEFT refuses. Alpha is folded into the factors when a file is read, so for
alpha != rank the election here sees the scaled factors, PEFT's sees the raw ones. PEFT's results
for sources with rsLoRA are too large by sqrt(rank) (#3761), and those with a rank_pattern cannot
be reloaded (#3737).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext
from b4m.merging.core_space import core_of
from b4m.merging.layerwise import merge_layers, padded, split_weights
from b4m.methods import Merge
from b4m.settings import MergeSettings


class Settings(MergeSettings):
    """What TIES reads."""

    density: float = Field(0.5, gt=0, le=1, description="share of entries that is kept")
    space: Literal["core", "factors"] = Field("core", description="where entries are compared")


def merge(adapters: Sequence[Adapter], context: MergeContext[Settings]) -> Adapter:
    """Trim, elect and merge every layer; rank at most sum_k r_k, of factors max_k r_k."""
    settings = context.settings

    def elected_core(pairs: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
        core = core_of(pairs)
        return core.pair(ties(core.cores, weights, settings.density), pairs[0].up.dtype)

    def elected_factors(pairs: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
        pairs = padded(pairs)
        roots, signed = split_weights(weights)
        down_RI = ties([pair.down for pair in pairs], signed, settings.density)
        up_OR = ties([pair.up for pair in pairs], roots, settings.density)
        return LowRank(up_OR, down_RI)

    rule = elected_core if settings.space == "core" else elected_factors
    return merge_layers("ties", adapters, settings, rule)


def trim(factor: Tensor, density: float) -> Tensor:
    """`factor` with all but its floor(density * size) entries of largest magnitude set to zero.

    Entries as large as the largest dropped one are dropped with it.
    """
    dropped = factor.numel() - int(density * factor.numel())
    if dropped == 0:
        return factor
    size = factor.abs()
    # One order statistic is enough; NumPy selects it ten times faster than torch.
    order = np.partition(size.float().cpu().numpy().ravel(), dropped - 1)
    return factor * (size > float(order[dropped - 1]))


def ties(factors: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """The elected mean of trimmed factors of one shape, see the module's equations."""
    trimmed = [trim(factor, density) for factor in factors]
    positive = torch.stack(trimmed).sum(dim=0) >= 0
    total = torch.zeros_like(trimmed[0])
    count = torch.zeros_like(trimmed[0])
    for factor, weight in zip(trimmed, weights, strict=True):
        agrees = torch.where(positive, factor > 0, factor < 0)
        total += weight * factor * agrees
        count += agrees
    return total / count.clamp_(min=1)


MERGE = Merge(Settings, merge)
