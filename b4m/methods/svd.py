"""SVD merge: the best approximation of the direct merge at a smaller rank (Eckart-Young).

    the R leading terms of  U diag(sigma) V^T = sum_k w_k dW_k

from the QR of the concatenated factors and the SVD of the core, sum_k r_k square, so no dense
dW is ever formed; PEFT's "svd" decomposes the dense O x I matrix and gets the same numbers. R is
the setting `rank` or, as in PEFT, the largest of the adapters' ranks, here layer by layer. The
share of the energy ||dW||_F^2 that is lost is written into the file.
"""

from collections.abc import Sequence

from pydantic import Field

from b4m.adapters.adapter import Adapter
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import merge_layers, weighted_sum
from b4m.methods import Merge
from b4m.settings import MergeSettings


class Settings(MergeSettings):
    """What the SVD merge reads."""

    rank: int = Field(0, ge=0, description="rank of the result; 0 takes the adapters' largest")


def merge(adapters: Sequence[Adapter], context: MergeContext[Settings]) -> Adapter:
    """The direct merge truncated to `rank`, or to the largest rank of the adapters."""
    settings = context.settings

    def kept(ranks: Sequence[int]) -> int:
        return settings.rank or max(ranks)

    return merge_layers("svd", adapters, settings, weighted_sum, rank=kept, known=sum)


MERGE = Merge(Settings, merge)
