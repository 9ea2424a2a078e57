"""DARE merge (arXiv 2311.03099): drop entries at random and rescale the others.

    E = sum_i w_i b_i * E_i / density,     b_i ~ Bernoulli(density), entry by entry

space "core": E_i are the adapters in their common core space (`b4m.merging.core_space`), as Core
Space does it; the expectation is the direct merge, and the result depends on both dW alone.

space "factors": E_i are down and up, one after the other, with the signed root of the weight on
each so that the product carries the weight: PEFT's add_weighted_adapter("dare_linear"). The
expectation then has cross terms U_1 D_2 (huggingface/peft#3004). With density 1 it is PEFT's
"linear". Deviations from PEFT: unequal ranks are padded with zeros and a layer that one lacks
counts as zero, where PEFT refuses; it also goes wrong on sources with rsLoRA (#3761) or a
rank_pattern (#3737).

The draws of a layer come from a generator seeded by the setting `seed` and the layer's name, down
before up and one adapter after the other, so equal seeds give equal files.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext
from b4m.merging.core_space import core_of
from b4m.merging.layerwise import merge_layers, padded, split_weights
from b4m.methods import Merge
from b4m.settings import SEEDS, MergeSettings


class Settings(MergeSettings):
    """What DARE reads."""

    density: float = Field(0.5, gt=0, le=1, description="share of entries that is kept")
    space: Literal["core", "factors"] = Field("core", description="where entries are dropped")
    seed: int = Field(0, ge=0, lt=SEEDS, description="seed of what is dropped")


def merge(adapters: Sequence[Adapter], context: MergeContext[Settings]) -> Adapter:
    """Drop entries at random, rescale and add; rank at most sum_k r_k, of factors max_k r_k."""
    settings = context.settings
    generator = torch.Generator().manual_seed(settings.seed)

    def dropped_core(pairs: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
        core = core_of(pairs)
        merged_KL = dare(core.cores, weights, settings.density, generator)
        return core.pair(merged_KL, pairs[0].up.dtype)

    def dropped_factors(pairs: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
        pairs = padded(pairs)
        roots, signed = split_weights(weights)
        down_RI = dare([pair.down for pair in pairs], signed, settings.density, generator)
        up_OR = dare([pair.up for pair in pairs], roots, settings.density, generator)
        return LowRank(up_OR, down_RI)

    rule = dropped_core if settings.space == "core" else dropped_factors
    return merge_layers("dare", adapters, settings, rule, draws=generator)


def dare(
    factors: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    generator: torch.Generator,
) -> Tensor:
    """The weighted sum of randomly thinned and rescaled factors of one shape."""
    total = torch.zeros_like(factors[0])
    for factor, weight in zip(factors, weights, strict=True):
        if density < 1.0:
            share = torch.full(factor.shape, density, dtype=torch.float32)
            kept = torch.bernoulli(share, generator=generator).to(factor)
            factor = factor * kept / density
        total = total + weight * factor
    return total


MERGE = Merge(Settings, merge)
