"""TSV-M (arXiv 2412.00081, CVPR 2025): merge singular vectors, their overlap taken out first.

    dW_k = U_k S_k V_k^T,     dW = orth([U_c U_s]) diag(w_c S_c, w_s S_s) orth([V_c V_s])^T

orth(X) = P W^T for X = P s W^T is the nearest matrix with orthonormal columns (Procrustes). Where
the two adapters share no direction it is the direct merge; shared directions are turned apart. It
depends on both dW alone. The paper keeps 1/T of the ranks of full-rank matrices for T tasks; a LoRA
has few ranks and all are kept. Where r_c + r_s exceeds a side of the layer, columns cannot all be
orthonormal and the nearest such matrix has fewer independent ones.
"""

import torch
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import merge_layers
from b4m.methods import Merge
from b4m.settings import MergeSettings


def merge(content: Adapter, style: Adapter, context: MergeContext[MergeSettings]) -> Adapter:
    """Both adapters' singular directions, orthogonalised against each other; rank r_c + r_s."""
    settings = context.settings

    def orthogonalised(content: LowRank, style: LowRank) -> LowRank:
        weights = (settings.content_weight, settings.style_weight)
        return tsv([content, style], weights)

    return merge_layers("tsv", content, style, settings, orthogonalised)


def tsv(pairs: list[LowRank], weights: tuple[float, ...]) -> LowRank:
    """The merge of some pairs of one shape, see the module's equation."""
    parts = [pair.svd() for pair in pairs]
    left_OR = orth(torch.cat([left for left, _, _ in parts], dim=1))
    right_IR = orth(torch.cat([right for _, _, right in parts], dim=1))
    sigma_R = torch.cat([w * sigma for w, (_, sigma, _) in zip(weights, parts, strict=True)])
    root_R = sigma_R.abs().sqrt()
    dtype = pairs[0].up.dtype
    up_OR = left_OR * root_R * sigma_R.sign()
    return LowRank(up_OR.to(dtype), (right_IR * root_R).T.contiguous().to(dtype))


def orth(columns: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns, P W^T of the SVD P s W^T."""
    left, _, right = torch.linalg.svd(columns, full_matrices=False)
    return left @ right


MERGE = Merge(MergeSettings, merge)
