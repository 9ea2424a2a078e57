"""DARE merge of the factors (arXiv 2311.03099), as PEFT's add_weighted_adapter("dare_linear").

For each factor F in {down, up}, with the signed root of the weight on one factor so that the
product carries the weight:

    F = sum_i w_i b_i * F_i / density,     b_i ~ Bernoulli(density), entry by entry

With density 1 nothing is dropped and the rule is PEFT's "linear". The draws come from one
generator with the setting `seed`, layer by layer in the order of the layers' names, down before
up and content before style, so equal seeds give equal files.

Deviation from the paper, shared with PEFT: the paper drops entries of dW, here it happens on the
two factors, which brings in cross terms U_c D_s (huggingface/peft#3004). Deviations from PEFT:
unequal ranks are padded with zeros and a layer that one side lacks counts as zero, where PEFT
refuses; it also goes wrong on sources with rsLoRA (#3761) or a rank_pattern (#3737).
"""

import torch
from pydantic import Field
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import merge_layers, padded
from b4m.methods import Merge
from b4m.settings import MergeSettings


class Settings(MergeSettings):
    """What DARE reads."""

    density: float = Field(0.5, gt=0, le=1, description="share of entries that is kept")
    seed: int = Field(0, ge=0, description="seed of what is dropped")


def merge(content: Adapter, style: Adapter, context: MergeContext[Settings]) -> Adapter:
    """Drop entries at random, rescale and add both factors of every layer; rank max(r_c, r_s)."""
    settings = context.settings
    generator = torch.Generator().manual_seed(settings.seed)

    def dropped(content: LowRank, style: LowRank) -> LowRank:
        content, style = padded(content, style)
        weights = (settings.content_weight, settings.style_weight)
        signed = [abs(w) ** 0.5 * (1.0 if w >= 0 else -1.0) for w in weights]
        roots = [abs(w) ** 0.5 for w in weights]
        down_RI = dare([content.down, style.down], signed, settings.density, generator)
        up_OR = dare([content.up, style.up], roots, settings.density, generator)
        return LowRank(up_OR, down_RI)

    return merge_layers("dare", content, style, settings, dropped)


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
