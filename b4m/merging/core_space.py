"""The core space of two pairs: small matrices in which entries can be compared, and nothing lost.

    dW_k = Q_U E_k Q_D^T,    Q_U: left singular basis of [dW_c | dW_s],  Q_D: right one of
                             [dW_c; dW_s],    E_k at most (r_c + r_s) square

Rules that look at entries (TIES, DARE) depend on the basis. On the factors as trained that basis is
an accident: (U G^-1)(G D) is the same dW with other factors. The singular bases of both adapters
together follow from the two dW alone, up to signs, which such rules do not see. KnOTS (2410.19735)
takes Q_U so; Core Space (2509.17786) works on both sides, with bases of the stacked factors, which
still move with the factorisation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from b4m.adapters.lowrank import LowRank

_NEGLIGIBLE = 1e-6
"""Singular values below this share of the largest one are rounding."""


@dataclass(frozen=True)
class Core:
    """Two pairs in their core space, float32 or better.

    Attributes:
        left_OK: Q_U.
        right_IL: Q_D.
        content_KL: E_c.
        style_KL: E_s.
    """

    left_OK: Tensor
    right_IL: Tensor
    content_KL: Tensor
    style_KL: Tensor

    def pair(self, core_KL: Tensor, dtype: torch.dtype) -> LowRank:
        """Q_U E Q_D^T as a pair of rank L."""
        up_OL = self.left_OK @ core_KL
        return LowRank(up_OL.to(dtype), self.right_IL.T.contiguous().to(dtype))


def core_of(content: LowRank, style: LowRank) -> Core:
    """Both pairs in their common core space; exact, by QR of the factors and small SVDs."""
    dtype = torch.promote_types(content.up.dtype, torch.float32)
    content, style = content.to(dtype=dtype), style.to(dtype=dtype)
    left_OK = _joint_basis((content.up, content.down.T), (style.up, style.down.T))
    right_IL = _joint_basis((content.down.T, content.up), (style.down.T, style.up))

    def core(pair: LowRank) -> Tensor:
        return (left_OK.T @ pair.up) @ (pair.down @ right_IL)

    return Core(left_OK, right_IL, core(content), core(style))


def _joint_basis(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Left singular basis of [X_1 Y_1^T | X_2 Y_2^T ...], without what only rounding tells apart.

    With [X_1 X_2] = Q [R_1 R_2] and Y_k = P_k L_k, the matrix is Q [R_1 L_1^T ...] diag(P_k)^T.
    """
    basis_OR, inner_RR = torch.linalg.qr(torch.cat([x for x, _ in pairs], dim=1))
    parts = inner_RR.split([x.shape[1] for x, _ in pairs], dim=1)
    small = torch.cat(
        [
            part @ torch.linalg.qr(y, mode="r").R.T
            for part, (_, y) in zip(parts, pairs, strict=True)
        ],
        dim=1,
    )
    left, sigma, _ = torch.linalg.svd(small, full_matrices=False)
    kept = sigma > _NEGLIGIBLE * sigma.max().clamp(min=torch.finfo(sigma.dtype).tiny)
    return basis_OR @ left[:, kept]
