"""DARE merge (arXiv 2311.03099): drop entries at random and rescale the others.

    E = sum_i w_i b_i * E_i / density,     b_i ~ Bernoulli(density), entry by entry

space "core": E_i are the adapters in their common core space (`b4m.merging.core_space`), as Core
Space does it; the expectation is the direct merge, and the result depends on both dW alone.

space "factors": E_i are down and up, one after the other, with the signed root of the weight on
each so that the product carries the weight: PEFT's add_weighted_adapter("dare_linear"). The
expectation then has cross terms U_c D_s (huggingface/peft#3004). With density 1 it is PEFT's
"linear". Deviations from PEFT: unequal ranks are padded with zeros and a layer that one side lacks
counts as zero, where PEFT refuses; it also goes wrong on sources with rsLoRA (#3761) or a
rank_pattern (#3737).

The draws come from one generator with the setting `seed`, layer by layer in the order of the
layers' names, down before up and content before style, so equal seeds give equal files.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext
from b4m.merging.core_space import core_of
from b4m.merging.layerwise import merge_layers, padded
from b4m.methods import Merge
from b4m.settings import SEEDS, MergeSettings


class Settings(MergeSettings):
    """What DARE reads."""

    density: float = Field(0.5, gt=0, le=1, description="share of entries that is kept")
    space: Literal["core", "factors"] = Field("core", description="where entries are dropped")
    seed: int = Field(0, ge=0, lt=SEEDS, description="seed of what is dropped")


def merge(content: Adapter, style: Adapter, context: MergeContext[Settings]) -> Adapter:
    """Drop entries at random, rescale and add; rank at most r_c + r_s, of factors max(r_c, r_s)."""
    settings = context.settings
    generator = torch.Generator().manual_seed(settings.seed)

    def dropped_core(content: LowRank, style: LowRank) -> LowRank:
        core, weights = core_of(content, style), [settings.content_weight, settings.style_weight]
        cores = [core.content_KL, core.style_KL]
        return core.pair(dare(cores, weights, settings.density, generator), content.up.dtype)

    def dropped_factors(content: LowRank, style: LowRank) -> LowRank:
        content, style = padded(content, style)
        weights = (settings.content_weight, settings.style_weight)
        signed = [abs(w) ** 0.5 * (1.0 if w >= 0 else -1.0) for w in weights]
        roots = [abs(w) ** 0.5 for w in weights]
        down_RI = dare([content.down, style.down], signed, settings.density, generator)
        up_OR = dare([content.up, style.up], roots, settings.density, generator)
        return LowRank(up_OR, down_RI)

    rule = dropped_core if settings.space == "core" else dropped_factors
    return merge_layers("dare", content, style, settings, rule)


def dare(
    factors: list[Tensor], weights: list[float], density: float, generator: torch.Generator
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
