"""The algebra of low-rank pairs: dW = up @ down, closed under everything that a merge needs.

    scale      w dW                    up <- w up
    add        dW_a + dW_b             up <- [up_a, up_b], down <- [down_a; down_b]    (exact)
    mask       diag(m) dW, dW diag(m), up diag(m) down
    project    dW (I - a Q Q^T)        down <- down - a (down Q) Q^T
    truncate   best rank k             QR of both factors, SVD of the R x R core
    norm, <,>  small Gram matrices     <dW_a, dW_b> = sum((up_a^T up_b) * (down_a down_b^T))

An O x I matrix is formed nowhere but in `dense`, which is for tests and small layers. Elementwise
operations keep the factors' dtype; decompositions run in float32 or better and are cast back; norms
and inner products run in float64, because a Gram matrix squares the condition number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from b4m.errors import B4MError


@dataclass(frozen=True, eq=False)
class LowRank:
    """A matrix dW (O x I) held as `up` (O x R) and `down` (R x I), with alpha folded in.

    Attributes:
        up: left factor, O x R.
        down: right factor, R x I. R may be 0, which stands for dW = 0.

    Raises:
        B4MError: when the factors are not two matrices of one inner size and one dtype.
    """

    up: Tensor
    down: Tensor

    def __post_init__(self) -> None:
        up, down = self.up, self.down
        if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
            raise B4MError(
                f"up {tuple(up.shape)} and down {tuple(down.shape)} are not a low-rank pair; "
                "up is out x rank and down is rank x in"
            )
        if up.dtype != down.dtype:
            raise B4MError(f"up is {up.dtype} and down is {down.dtype}; give both one dtype")

    @classmethod
    def zero(cls, out_features: int, in_features: int, like: Tensor | None = None) -> LowRank:
        """The zero matrix as a pair of rank 0, in the dtype and on the device of `like`."""
        like = torch.empty(0) if like is None else like
        return cls(like.new_zeros(out_features, 0), like.new_zeros(0, in_features))

    @property
    def rank(self) -> int:
        """R, the inner size; the rank of dW is at most this."""
        return self.up.shape[1]

    @property
    def out_features(self) -> int:
        """O, rows of dW."""
        return self.up.shape[0]

    @property
    def in_features(self) -> int:
        """I, columns of dW."""
        return self.down.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return self.out_features, self.in_features

    @property
    def size(self) -> str:
        """The shape in words, "O x I"."""
        return f"{self.out_features} x {self.in_features}"

    def scale(self, weight: float | Tensor) -> LowRank:
        """The multiple weight * dW; the weight goes into `up`, as alpha does."""
        if isinstance(weight, float | int) and weight == 1:
            return self
        return LowRank(self.up * weight, self.down)

    def __neg__(self) -> LowRank:
        return self.scale(-1.0)

    def __add__(self, other: LowRank) -> LowRank:
        self._same_shape(other)
        dtype = torch.promote_types(self.up.dtype, other.up.dtype)
        up_OR = torch.cat([self.up.to(dtype), other.up.to(dtype)], dim=1)
        down_RI = torch.cat([self.down.to(dtype), other.down.to(dtype)], dim=0)
        return LowRank(up_OR, down_RI)

    def __sub__(self, other: LowRank) -> LowRank:
        return self + (-other)

    def mask_ranks(self, mask_R: Tensor) -> LowRank:
        """ZipRank's up diag(m) down (DuoLoRA); depends on the factors, not on dW alone."""
        self._fits(mask_R, self.rank, "ranks")
        return LowRank(self.up * mask_R, self.down)

    def mask_rows(self, mask_O: Tensor) -> LowRank:
        """Rows of dW times one number per output, diag(m) dW."""
        self._fits(mask_O, self.out_features, "rows")
        return LowRank(self.up * mask_O[:, None], self.down)

    def mask_columns(self, mask_I: Tensor) -> LowRank:
        """Columns of dW times one number per input, dW diag(m): ZipLoRA's masks."""
        self._fits(mask_I, self.in_features, "columns")
        return LowRank(self.up, self.down * mask_I)

    def project_out(self, basis_IK: Tensor, amount: float = 1.0) -> LowRank:
        """Weaken what dW reads from the span of a basis: dW (I - amount Q Q^T), NP-LoRA.

        Args:
            basis_IK: Q, K orthonormal columns of length I, e.g. another pair's `row_space()`.
            amount: 1 removes that part, 0 leaves dW; mu / (1 + mu) is NP-LoRA's soft form.
        """
        if basis_IK.ndim != 2 or basis_IK.shape[0] != self.in_features:
            raise B4MError(
                f"a basis of shape {tuple(basis_IK.shape)} cannot be projected out of a layer "
                f"with {self.in_features} inputs; a basis has one row per input"
            )
        dtype = _at_least_float32(self.down)
        down_RI, basis = self.down.to(dtype), basis_IK.to(dtype)
        projected_RI = down_RI - amount * (down_RI @ basis) @ basis.T
        return LowRank(self.up, projected_RI.to(self.down.dtype))

    def svd_basis(self) -> LowRank:
        """The same dW in its own singular basis, balanced: up = U s^(1/2), down = s^(1/2) V^T.

        Rank index i then stands for the i-th singular direction, so masks on ranks cut dW by
        energy (Eckart-Young); on the factors as trained they do not. R <= min(R, O, I).
        """
        left_OK, sigma_K, right_IK = self.svd()
        root_K = sigma_K.sqrt()
        dtype = self.up.dtype
        return LowRank((left_OK * root_K).to(dtype), (right_IK * root_K).T.to(dtype))

    def truncate(self, rank: int) -> tuple[LowRank, float]:
        """The best approximation of dW of at most this rank (Eckart-Young), in the SVD basis.

        Args:
            rank: ranks kept, at least 1. A pair of no larger rank comes back as it is.

        Returns:
            The pair and the lost share of the energy, sum_{i>k} s_i^2 / sum_i s_i^2, in [0, 1].
        """
        if rank < 1:
            raise B4MError(f"cannot truncate to rank {rank}; the smallest rank is 1")
        if rank >= self.rank:
            return self, 0.0
        left_OK, sigma_K, right_IK = self.svd()
        energy_K = sigma_K.double().square()
        total = float(energy_K.sum())
        lost = float(energy_K[rank:].sum()) / total if total > 0 else 0.0
        root_K = sigma_K[:rank].sqrt()
        dtype = self.up.dtype
        up_OK, down_KI = left_OK[:, :rank] * root_K, (right_IK[:, :rank] * root_K).T
        return LowRank(up_OK.to(dtype), down_KI.to(dtype)), lost

    def singular_values(self) -> Tensor:
        """Singular values of dW, largest first: min(R, O, I) of them, the others are zero."""
        left_KR, right_KR = _triangle(self.up), _triangle(self.down.T)
        return torch.linalg.svdvals(left_KR @ right_KR.T)

    def row_space(self) -> Tensor:
        """Orthonormal basis Q (I x K) of the inputs that dW reads; K is the rank of dW, <= R.

        Directions that only rounding can tell from zero (singular values below 10 eps of the
        largest) are left out, so that projecting Q out of another pair never removes what dW does
        not read. A plain QR of down^T invents directions where rows of down are dependent.
        """
        _, sigma_K, right_IK = self.svd()
        if sigma_K.numel() == 0:
            return right_IK
        return right_IK[:, sigma_K > 10 * torch.finfo(sigma_K.dtype).eps * sigma_K[0]]

    def norm(self) -> float:
        """Frobenius norm of dW."""
        return max(self.inner(self), 0.0) ** 0.5

    def inner(self, other: LowRank) -> float:
        """Frobenius inner product <dW, dW_other> = tr(dW^T dW_other)."""
        self._same_shape(other)
        up_gram = self.up.double().T @ other.up.double()
        down_gram = self.down.double() @ other.down.double().T
        return float((up_gram * down_gram).sum())

    def apply(self, x: Tensor) -> Tensor:
        """The product dW x for x (..., I), computed in x's dtype."""
        down_RI, up_OR = self.down.to(x.dtype), self.up.to(x.dtype)
        return torch.nn.functional.linear(torch.nn.functional.linear(x, down_RI), up_OR)

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> LowRank:
        """The pair in another dtype or on another device."""
        dtype = dtype or self.up.dtype
        return LowRank(self.up.to(device, dtype), self.down.to(device, dtype))

    def dense(self) -> Tensor:
        """The O x I matrix dW itself: for tests and small layers only."""
        return self.up @ self.down

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U (O x K), s (K), V (I x K) with dW = U diag(s) V^T, K = min(R, O, I).

        dW = (Q_u R_u)(Q_d R_d)^T = Q_u (R_u R_d^T) Q_d^T, and the core is at most R x R.
        """
        dtype = _at_least_float32(self.up)
        left_OK, left_KR = torch.linalg.qr(self.up.to(dtype))
        right_IK, right_KR = torch.linalg.qr(self.down.to(dtype).T)
        core_U, sigma, core_Vh = torch.linalg.svd(left_KR @ right_KR.T, full_matrices=False)
        return left_OK @ core_U, sigma, right_IK @ core_Vh.T

    def _same_shape(self, other: LowRank) -> None:
        if self.shape != other.shape:
            raise B4MError(
                f"layers of {self.size} and {other.size} cannot be combined; "
                "are the two adapters made for the same base?"
            )

    @staticmethod
    def _fits(mask: Tensor, size: int, what: str) -> None:
        if mask.shape != (size,):
            raise B4MError(
                f"a mask of shape {tuple(mask.shape)} does not fit {size} {what}; "
                "a mask has one entry for each"
            )


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _triangle(tall: Tensor) -> Tensor:
    """R of the QR of a factor, in float32 or better."""
    return torch.linalg.qr(tall.to(_at_least_float32(tall)), mode="r").R
