"""TSV-M (arXiv 2412.00081, CVPR 2025): merge singular vectors, their overlap taken out first.

    dW_k = U_k S_k V_k^T
    dW   = orth([U_1 U_2 ...]) diag(w_1 S_1, w_2 S_2, ...) orth([V_1 V_2 ...])^T

orth(X) = P W^T for X = P s W^T is the nearest matrix with orthonormal columns (Procrustes). Where
the adapters share no direction it is the direct merge; shared directions are turned apart. It
depends on the dW alone. The paper keeps 1/T of the ranks of full-rank matrices for T tasks; a LoRA
has few ranks and all are kept, but for directions that have no size, which would turn others for
nothing: a zero adapter, or one of weight 0, is as if it were not there. Where the ranks together
exceed a side of the layer, columns cannot all be orthonormal and the nearest such matrix has fewer
independent ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import merge_layers, weighted_sum
from b4m.methods import Merge
from b4m.settings import MergeSettings

_NEGLIGIBLE = 1e-7
"""Singular values below this share of their sum are rounding."""


def merge(adapters: Sequence[Adapter], context: MergeContext[MergeSettings]) -> Adapter:
    """The adapters' singular directions, orthogonalised against each other; rank sum_k r_k."""
    return merge_layers("tsv", adapters, context.settings, tsv)


def tsv(pairs: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """The merge of some pairs of one shape, see the module's equation."""
    parts = [
        (left[:, kept], weight * sigma[kept], right[:, kept])
        for pair, weight in zip(pairs, weights, strict=True)
        for left, sigma, right in [pair.svd()]
        for kept in [(sigma > _NEGLIGIBLE * sigma.sum()) & (weight != 0)]
    ]
    if not any(len(sigma) for _, sigma, _ in parts):
        return weighted_sum(pairs, weights)  # zero, as a layer that keeps its ranks
    left_OR = orth(torch.cat([left for left, _, _ in parts], dim=1))
    right_IR = orth(torch.cat([right for _, _, right in parts], dim=1))
    sigma_R = torch.cat([sigma for _, sigma, _ in parts])
    root_R = sigma_R.abs().sqrt()
    dtype = pairs[0].up.dtype
    up_OR = left_OR * root_R * sigma_R.sign()
    return LowRank(up_OR.to(dtype), (right_IR * root_R).T.contiguous().to(dtype))


def orth(columns: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns, P W^T of the SVD P s W^T."""
    left, _, right = torch.linalg.svd(columns, full_matrices=False)
    return left @ right


MERGE = Merge(MergeSettings, merge)
