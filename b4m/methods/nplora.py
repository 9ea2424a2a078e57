"""NP-LoRA: null-space projection of content against style (arXiv 2511.11051).

    hard:  dW = S + C (I - Q Q^T)
    soft:  dW = S + C (I - mu / (1 + mu) Q Q^T)          mu -> infinity is hard; mu = 0 is direct

Q (I x K) is an orthonormal basis of the style's row space, so only content's down factor changes:
down_c (I - a Q Q^T). The result has rank r_c + r_s and is exact. Soft projection minimises ||X -
C||^2 + mu ||X Q||^2 over X, which gives the factor above. The paper takes Q from a thin QR of the
style's down^T; here it also leaves out directions that the style's up factor cancels, which is
the same wherever up has full column rank. Weights scale the adapters and do not change Q. The
paper names mu = 0.5; no released code was found.

Of more than two adapters each one is kept off the directions that any later one reads, so the last
one is kept whole: dW = sum_k A_k (I - a Q_k Q_k^T), Q_k of the row spaces of A_(k+1), ..., A_n
together. Merging two at a time would not do that: a second projection brings back a part of what
the first one took away, wherever the later adapters read in common.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import merge_layers, weighted_sum
from b4m.methods import Merge
from b4m.settings import MergeSettings


class Settings(MergeSettings):
    """What NP-LoRA reads."""

    mu: float = Field(0.5, ge=0, description="strength of the soft projection")
    projection: Literal["soft", "hard"] = Field("soft", description="kind of projection")


def merge(adapters: Sequence[Adapter], context: MergeContext[Settings]) -> Adapter:
    """Every adapter without its part in the row spaces of the later ones, all added."""
    settings = context.settings
    amount = 1.0 if settings.projection == "hard" else settings.mu / (1.0 + settings.mu)

    def projected_sum(pairs: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
        return weighted_sum(kept_apart(pairs, amount), weights)

    return merge_layers("nplora", adapters, settings, projected_sum, known=sum)


def kept_apart(pairs: Sequence[LowRank], amount: float) -> list[LowRank]:
    """A_k (I - amount Q_k Q_k^T) of each of some pairs of one layer."""
    apart = []
    for k, pair in enumerate(pairs):
        later = [other for other in pairs[k + 1 :] if other.rank]
        if pair.rank and later:
            pair = pair.project_out(joint_row_space(later), amount)
        apart.append(pair)
    return apart


def joint_row_space(pairs: Sequence[LowRank]) -> Tensor:
    """Orthonormal basis (I x K) of all that some pairs read, whatever their sizes."""
    if len(pairs) == 1:
        return pairs[0].row_space()
    bases_IK = torch.cat([pair.row_space() for pair in pairs], dim=1)
    return LowRank(torch.eye(bases_IK.shape[1]).to(bases_IK), bases_IK.T).row_space()


MERGE = Merge(Settings, merge)
