"""K-LoRA (arXiv 2502.18461, CVPR 2025): per layer and step, either content or style.

With T_K(X) the sum of the K largest |entries| of an O x I matrix X, K = r_c r_s, and step i of n,

    content is taken where   T_K(C) / gamma > T_K(S) (alpha i / n + beta),     style elsewhere
    gamma = sum_layers sum |C| / sum_layers sum |S|

so content draws the early steps and style the late ones. Pattern "s*" is (alpha i / n + beta) mod
alpha: with the released scripts' alpha 1.5 and beta 1.275, style leads the first 15 % of the steps,
then content, then style again; both released inference scripts take it by default. It depends on
the step, hence there is no file: it is a sampler. The two sums are computed once per layer,
exactly, from blocks of rows, so that no whole dW exists; the released code (HVision-NKU/K-LoRA
893d0f9) multiplies dW out and sorts it in every forward.

score "energy" is EST-LoRA's (arXiv 2508.02165): ||X||_F^2, from Gram matrices, stands for T_K and
for the sums of gamma.

Deviations of the released code: time counts calls of linears out of 28,000, which fits 50 steps of
SDXL only; gamma is the mean over layers of the layers' ratios, without those of three times the
mean and more, which one layer with a near-zero style still moves. The paper's formulas are kept.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.attach import AdaptedModel
from b4m.adapters.lowrank import LowRank
from b4m.bases.base import Base
from b4m.bases.sampling import Attachment, StepHook
from b4m.merging.context import require_same_base
from b4m.merging.layerwise import paired
from b4m.methods import Sampler
from b4m.settings import SampleSettings

_BLOCK = 1 << 20  # entries of dW that exist at one time


class Settings(SampleSettings):
    """What K-LoRA reads."""

    alpha: float = Field(1.5, ge=0, description="how strongly style grows with time")
    beta: float = Field(0.5, ge=0, description="where content and style balance")
    pattern: Literal["s", "s*"] = Field("s", description="course of style's factor over the steps")
    score: Literal["topk", "energy"] = Field(
        "topk", description="size of a layer: its largest entries, or EST-LoRA's energy"
    )


@dataclass(frozen=True)
class EntrySums:
    """Size of one dW: the sum of its K largest |entries|, and of all."""

    top: float
    total: float


class SelectedDelta(nn.Module):
    """A delta that is content's pair or style's, as `chosen` says.

    Args:
        content: content's pair of the layer.
        style: style's pair.
    """

    def __init__(self, content: LowRank, style: LowRank) -> None:
        super().__init__()
        self.pairs = {"content": content, "style": style}
        self.selected = "content"
        self.out_features = content.out_features
        self.in_features = content.in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.pairs[self.selected].apply(x)


def sampler(
    content: Adapter, style: Adapter, base: Base, settings: Settings
) -> tuple[Attachment, StepHook]:
    """Deltas and step hook for `bases.sampling.sample`; text-encoder layers are added up.

    Args:
        content: content adapter.
        style: style adapter.
        base: says device and dtype, and which adapters fit.
        settings: `alpha`, `beta`, `scale` and the number of `steps`.
    """
    require_same_base([content, style], base)
    pairs = paired(content.layers, style.layers)
    weights = {name: weigh(*both, settings.score) for name, both in pairs.items()}
    gamma = balance(list(weights.values()))
    choices: dict[str, SelectedDelta] = {}
    for name, both in pairs.items():
        first, second = (
            pair.scale(settings.scale).to(dtype=base.dtype, device=base.device) for pair in both
        )
        choices[name] = SelectedDelta(first, second)

    def choose(index: int, adapted: AdaptedModel) -> None:
        time = settings.alpha * index / settings.steps + settings.beta
        if settings.pattern == "s*":
            time %= settings.alpha
        for name, choice in choices.items():
            choice.selected = prefer(*weights[name], gamma, time)

    text = (content + style).scale(settings.scale)
    return Attachment(choices, text), choose


def prefer(content: EntrySums, style: EntrySums, gamma: float, time: float) -> str:
    """Which adapter a layer takes when style's factor has grown to `time`."""
    return "content" if content.top > style.top * gamma * time else "style"


def balance(weights: list[tuple[EntrySums, EntrySums]]) -> float:
    """The ratio gamma of all |entries| of content to all of style; 1 if either has none."""
    of_content = sum(content.total for content, _ in weights)
    of_style = sum(style.total for _, style in weights)
    return of_content / of_style if of_content > 0 and of_style > 0 else 1.0


def weigh(content: LowRank, style: LowRank, score: str = "topk") -> tuple[EntrySums, EntrySums]:
    """Sizes of content's and style's dW, with K = r_c r_s, or their energies."""
    if score == "energy":
        sums = [EntrySums(pair.inner(pair), pair.inner(pair)) for pair in (content, style)]
        return sums[0], sums[1]
    k = max(1, content.rank * style.rank)
    return weight_of(content, k), weight_of(style, k)


@torch.no_grad()
def weight_of(pair: LowRank, k: int) -> EntrySums:
    """Sum of the k largest |entries| and of all |entries| of dW, block by block; exact."""
    rows = max(1, _BLOCK // pair.in_features)
    top = pair.up.new_zeros(0, dtype=torch.float32)
    total = 0.0
    for start in range(0, pair.out_features, rows):
        block_OI = (pair.up[start : start + rows].float() @ pair.down.float()).abs()
        total += float(block_OI.sum(dtype=torch.float64))
        both = torch.cat([top, block_OI.flatten()])
        top = both.topk(min(k, both.numel())).values
    return EntrySums(math.fsum(top.tolist()), total)


SAMPLER = Sampler(Settings, sampler)
