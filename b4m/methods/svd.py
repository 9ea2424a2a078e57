"""SVD merge: the best approximation of the direct merge at a smaller rank (Eckart-Young).

    dW_k = U_k diag(sigma_k) V_k^T  of  w_c C + w_s S

from the QR of the concatenated factors and the SVD of the core, (r_c + r_s) square, so no dense
dW is ever formed; PEFT's "svd" decomposes the dense O x I matrix and gets the same numbers. The
rank is the setting `rank` or, as in PEFT, the larger of the two adapters' ranks, here layer by
layer. The share of the energy ||dW||_F^2 that is lost is written into the file.
"""

from pydantic import Field

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import merge_layers
from b4m.methods import Merge
from b4m.settings import MergeSettings


class Settings(MergeSettings):
    """What the SVD merge reads."""

    rank: int = Field(0, ge=0, description="rank of the result; 0 takes the larger of the two")


def merge(content: Adapter, style: Adapter, context: MergeContext[Settings]) -> Adapter:
    """The direct merge truncated to `rank`, or to the larger rank of the two adapters."""
    settings = context.settings

    def weighted_sum(content: LowRank, style: LowRank) -> LowRank:
        return content.scale(settings.content_weight) + style.scale(settings.style_weight)

    def kept(content: LowRank, style: LowRank) -> int:
        return settings.rank or max(content.rank, style.rank)

    return merge_layers("svd", content, style, settings, weighted_sum, rank=kept)


MERGE = Merge(Settings, merge)
