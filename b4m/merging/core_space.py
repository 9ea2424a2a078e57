"""The core space of some pairs: small matrices in which entries can be compared, and nothing lost.

    dW_k = Q_U E_k Q_D^T,    Q_U: left singular basis of [dW_1 | dW_2 ...],  Q_D: right one of
                             [dW_1; dW_2; ...],    E_k at most sum_k r_k square

Rules that look at entries (TIES, DARE) depend on the basis. On the factors as trained that basis is
an accident: (U G^-1)(G D) is the same dW with other factors. The singular bases of all adapters
together follow from the two dW alone, up to signs, which such rules do not see. KnOTS (2410.19735)
takes Q_U so; Core Space (2509.17786) works on both sides, with bases of the stacked factors, which
still move with the factorisation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from b4m.adapters.lowrank import LowRank

_NEGLIGIBLE = 1e-6
"""Singular values below this share of the largest one are rounding."""


@dataclass(frozen=True)
class Core:
    """Pairs in their core space, float32 or better.

    Attributes:
        left_OK: Q_U.
        right_IL: Q_D.
        cores: E_k of each pair, K x L.
    """

    left_OK: Tensor
    right_IL: Tensor
    cores: list[Tensor]

    def pair(self, core_KL: Tensor, dtype: torch.dtype) -> LowRank:
        """Q_U E Q_D^T as a pair of rank L."""
        up_OL = self.left_OK @ core_KL
        return LowRank(up_OL.to(dtype), self.right_IL.T.contiguous().to(dtype))


def core_of(pairs: Sequence[LowRank]) -> Core:
    """Pairs in their common core space; exact, by QR of the factors and small SVDs."""
    dtype = torch.promote_types(pairs[0].up.dtype, torch.float32)
    wide = [pair.to(dtype=dtype) for pair in pairs]
    left_OK = _joint_basis([(pair.up, pair.down.T) for pair in wide])
    right_IL = _joint_basis([(pair.down.T, pair.up) for pair in wide])
    cores = [(left_OK.T @ pair.up) @ (pair.down @ right_IL) for pair in wide]
    return Core(left_OK, right_IL, cores)


def _joint_basis(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
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
