"""Least-squares masks: the best masks of one layer for recorded inputs, from normal equations.

With frozen adapters C and S of one linear layer, recorded inputs x_c (of the content teacher) and
x_s (of the style teacher), the merge M(m) is linear in its masks, so the layer's share of the two
fidelity terms is quadratic and convex:

    f(m) = mean ||M(m) x_c - C x_c||^2 + mean ||M(m) x_s - S x_s||^2 + damping * h ||m - 1||^2

h is the mean curvature of f over the masks of the layer, so that damping has no unit; masks that do
not matter stay at 1, the direct merge. Everything works on the factors: with U = [U_c U_s],
D = [D_c; D_s] and second moments K = mean (D x)(D x)^T, (r_c + r_s) square,

    ranks    (H_c + H_s) m = H_c [1; 0] + H_s [0; 1],    H = (U^T U) * K   entry by entry
    rows     for each output row o, 2 x 2, from the diagonals of U_a K_ab U_b^T
    columns  2 I unknowns that all meet; H v costs O(tokens * I * r), so conjugate gradients,
             preconditioned by the 2 x 2 block of every column, on a sample of the inputs
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from b4m.adapters.lowrank import LowRank

Masks = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Moments:
    """Second moments of D x over the recorded inputs of each teacher, R = r_c + r_s square."""

    content_RR: Tensor
    style_RR: Tensor


def solve_ranks(content: LowRank, style: LowRank, moments: Moments, damping: float) -> Masks:
    """Masks (r_c,) and (r_s,) that minimise f over ranks; exact."""
    up_OR = torch.cat([content.up, style.up], dim=1).double()
    gram_RR = up_OR.T @ up_OR
    from_content_RR = gram_RR * moments.content_RR.double()
    from_style_RR = gram_RR * moments.style_RR.double()
    is_content_R = torch.zeros(up_OR.shape[1], dtype=up_OR.dtype, device=up_OR.device)
    is_content_R[: content.rank] = 1.0
    system_RR = from_content_RR + from_style_RR
    right_R = from_content_RR @ is_content_R + from_style_RR @ (1.0 - is_content_R)
    ridge = damping * _mean_curvature(system_RR.diagonal().mean())
    eye_RR = torch.eye(len(right_R), dtype=up_OR.dtype, device=up_OR.device)
    mask_R = torch.linalg.solve(system_RR + ridge * eye_RR, right_R + ridge)
    return mask_R[: content.rank].float(), mask_R[content.rank :].float()


def solve_rows(content: LowRank, style: LowRank, moments: Moments, damping: float) -> Masks:
    """Masks (O,) and (O,) that minimise f over output rows; exact."""
    of_content_3O = _row_moments(content, style, moments.content_RR)
    of_style_3O = _row_moments(content, style, moments.style_RR)
    total_3O = of_content_3O + of_style_3O
    ridge = damping * _mean_curvature(total_3O[[0, 2]].mean())
    right_2O = of_content_3O[:2] + of_style_3O[1:] + ridge
    masks_2O = _solve_pairs(total_3O, right_2O, ridge).float()
    return masks_2O[0], masks_2O[1]


def solve_columns(
    contents: Sequence[LowRank],
    styles: Sequence[LowRank],
    content_inputs_LNI: Tensor,
    style_inputs_LNI: Tensor,
    damping: float,
    iterations: int = 30,
) -> list[Masks]:
    """Masks (I,) and (I,) of L layers of one shape that minimise f over their input columns.

    Args:
        contents: content's pair of each layer, all of one rank.
        styles: style's pairs, likewise.
        content_inputs_LNI: recorded inputs of the content teacher, N for each layer.
        style_inputs_LNI: recorded inputs of the style teacher.
        damping: pull towards masks of 1, relative to a layer's mean curvature.
        iterations: steps of conjugate gradients; from ones, so few of them already help.
    """
    problem = _Columns(contents, styles, (content_inputs_LNI, style_inputs_LNI))
    blocks_3LI = problem.blocks()
    ridge_L11 = damping * _mean_curvature(blocks_3LI[[0, 2]].mean(dim=(0, 2)))[:, None, None]
    mask_L2I = torch.ones_like(problem.right_L2I)
    residual_L2I = problem.right_L2I - problem.times(mask_L2I)
    step_L2I = _solve_pairs(blocks_3LI, residual_L2I, ridge_L11)
    direction_L2I, product_L11 = step_L2I, _dot(residual_L2I, step_L2I)
    tiny = torch.finfo(product_L11.dtype).tiny
    for _ in range(iterations):
        image_L2I = problem.times(direction_L2I) + ridge_L11 * direction_L2I
        length_L11 = product_L11 / _dot(direction_L2I, image_L2I).clamp(min=tiny)
        mask_L2I = mask_L2I + length_L11 * direction_L2I
        residual_L2I = residual_L2I - length_L11 * image_L2I
        step_L2I = _solve_pairs(blocks_3LI, residual_L2I, ridge_L11)
        following_L11 = _dot(residual_L2I, step_L2I)
        direction_L2I = step_L2I + following_L11 / product_L11.clamp(min=tiny) * direction_L2I
        product_L11 = following_L11
    return [(content_I, style_I) for content_I, style_I in mask_L2I]


class _Columns:
    """H and the right side of L column problems, applied through the factors only."""

    def __init__(
        self, contents: Sequence[LowRank], styles: Sequence[LowRank], inputs: tuple[Tensor, Tensor]
    ) -> None:
        self.inputs = [x_LNI.float() for x_LNI in inputs]
        self.split = contents[0].rank
        downs = [torch.stack([pair.down.float() for pair in kind]) for kind in (contents, styles)]
        self.downs = downs[0], downs[1]
        both = zip(contents, styles, strict=True)
        up_LOR = torch.stack([torch.cat([c.up, s.up], dim=1).float() for c, s in both])
        self.gram_LRR = up_LOR.mT @ up_LOR
        ones_LI = torch.ones_like(self.inputs[0][:, 0])
        only_content_L2I = torch.stack([ones_LI, torch.zeros_like(ones_LI)], dim=1)
        self.right_L2I = self._side(0, only_content_L2I) + self._side(1, 1 - only_content_L2I)

    def times(self, mask_L2I: Tensor) -> Tensor:
        """H m, of both teachers together."""
        return self._side(0, mask_L2I) + self._side(1, mask_L2I)

    def _side(self, side: int, mask_L2I: Tensor) -> Tensor:
        x_LNI = self.inputs[side]
        masked = [down_LRI * mask_L2I[:, k, None] for k, down_LRI in enumerate(self.downs)]
        low_LNR = x_LNI @ torch.cat(masked, dim=1).mT
        # sum_n x_ni (W D)_ni as the diagonal of (X^T W) D: no N x I product W D is formed.
        back_LRI = (low_LNR @ self.gram_LRR / x_LNI.shape[1]).mT @ x_LNI
        content_LI = (back_LRI[:, : self.split] * self.downs[0]).sum(dim=1)
        return torch.stack(
            [content_LI, (back_LRI[:, self.split :] * self.downs[1]).sum(dim=1)], dim=1
        )

    def blocks(self) -> Tensor:
        """(3, L, I): for every column the entries (cc, cs, ss) of its own 2 x 2 block of H."""
        energy_LI = sum((x.square().mean(dim=1) for x in self.inputs), torch.zeros(()))
        content_LRI, style_LRI = self.downs
        through_LRI = self.gram_LRR[:, :, : self.split] @ content_LRI
        gram_ss = self.gram_LRR[:, self.split :, self.split :]
        dots = [
            (content_LRI * through_LRI[:, : self.split]).sum(dim=1),
            (style_LRI * through_LRI[:, self.split :]).sum(dim=1),
            (style_LRI * (gram_ss @ style_LRI)).sum(dim=1),
        ]
        return torch.stack(dots) * energy_LI


def _row_moments(content: LowRank, style: LowRank, moments_RR: Tensor) -> Tensor:
    """(3, O): mean of (C x)_o^2, (C x)_o (S x)_o, (S x)_o^2."""
    split = content.rank
    up_c, up_s, k = content.up.double(), style.up.double(), moments_RR.double()
    return torch.stack(
        [
            (up_c @ k[:split, :split] * up_c).sum(dim=1),
            (up_c @ k[:split, split:] * up_s).sum(dim=1),
            (up_s @ k[split:, split:] * up_s).sum(dim=1),
        ]
    )


def _solve_pairs(blocks: Tensor, right: Tensor, ridge: Tensor) -> Tensor:
    """Solutions of many symmetric 2 x 2 systems [[a, b], [b, d]] + ridge.

    Args:
        blocks: (3, ...) the entries a, b, d.
        right: (..., 2, N) right sides, for blocks of shape (3, ..., N).
        ridge: broadcast against `right`.
    """
    a, b, d = (entry.unsqueeze(-2) for entry in blocks)
    a, d = a + ridge, d + ridge
    determinant = (a * d - b * b).clamp(min=torch.finfo(a.dtype).tiny)
    first, second = right[..., :1, :], right[..., 1:, :]
    return torch.cat([d * first - b * second, a * second - b * first], dim=-2) / determinant


def _dot(first_L2I: Tensor, second_L2I: Tensor) -> Tensor:
    return (first_L2I * second_L2I).sum(dim=(1, 2), keepdim=True)


def _mean_curvature(mean: Tensor) -> Tensor:
    """The mean of a diagonal; 1 for a layer without any curvature, so that its masks stay at 1."""
    return torch.where(mean > 0, mean, torch.ones_like(mean))
