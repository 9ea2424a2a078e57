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
    ridge = damping * _mean_curvature(system_RR.diagonal())
    eye_RR = torch.eye(len(right_R), dtype=up_OR.dtype, device=up_OR.device)
    mask_R = torch.linalg.solve(system_RR + ridge * eye_RR, right_R + ridge)
    return mask_R[: content.rank].float(), mask_R[content.rank :].float()


def solve_rows(content: LowRank, style: LowRank, moments: Moments, damping: float) -> Masks:
    """Masks (O,) and (O,) that minimise f over output rows; exact."""
    of_content_O3 = _row_moments(content, style, moments.content_RR)
    of_style_O3 = _row_moments(content, style, moments.style_RR)
    total_O3 = of_content_O3 + of_style_O3
    right_O2 = of_content_O3[:, :2] + of_style_O3[:, 1:]
    ridge = damping * _mean_curvature(total_O3[:, [0, 2]])
    masks_2O = _solve_pairs(total_O3, right_O2 + ridge, ridge)
    return masks_2O[0].float(), masks_2O[1].float()


def solve_columns(
    content: LowRank,
    style: LowRank,
    content_inputs_NI: Tensor,
    style_inputs_NI: Tensor,
    damping: float,
    iterations: int = 30,
    tolerance: float = 1e-5,
) -> Masks:
    """Masks (I,) and (I,) that minimise f over input columns, by conjugate gradients.

    Args:
        content: the content adapter of the layer, rank r_c.
        style: the style adapter of the layer, rank r_s.
        content_inputs_NI: recorded inputs of the content teacher.
        style_inputs_NI: recorded inputs of the style teacher; any number of rows.
        damping: pull towards masks of 1, relative to the mean curvature.
        iterations: most steps of conjugate gradients.
        tolerance: relative residual at which they end.
    """
    problem = _Columns(content, style, (content_inputs_NI, style_inputs_NI))
    diagonal_I3 = problem.blocks()
    ridge = damping * _mean_curvature(diagonal_I3[:, [0, 2]])
    ones_2I = torch.ones_like(problem.right_2I)
    mask_2I = ones_2I.clone()
    residual_2I = problem.right_2I - problem.times(mask_2I)
    start = float(residual_2I.norm())
    step_2I = _solve_pairs(diagonal_I3, residual_2I.T, ridge)
    direction_2I, product = step_2I, float((residual_2I * step_2I).sum())
    for _ in range(iterations):
        if float(residual_2I.norm()) <= tolerance * start or product <= 0.0:
            break
        image_2I = problem.times(direction_2I) + ridge * direction_2I
        length = product / float((direction_2I * image_2I).sum())
        mask_2I = mask_2I + length * direction_2I
        residual_2I = residual_2I - length * image_2I
        step_2I = _solve_pairs(diagonal_I3, residual_2I.T, ridge)
        following = float((residual_2I * step_2I).sum())
        direction_2I = step_2I + following / product * direction_2I
        product = following
    return mask_2I[0].float(), mask_2I[1].float()


class _Columns:
    """H and the right side of the column problem, applied through the factors only."""

    def __init__(self, content: LowRank, style: LowRank, inputs: tuple[Tensor, Tensor]) -> None:
        self.inputs = [x_NI.float() for x_NI in inputs]
        self.rank = content.rank
        self.downs = (content.down.float(), style.down.float())
        up_OR = torch.cat([content.up, style.up], dim=1).float()
        self.gram_RR = up_OR.T @ up_OR
        ones_I = torch.ones(content.in_features, device=up_OR.device)
        zeros_I = torch.zeros_like(ones_I)
        self.right_2I = self._side(0, torch.stack([ones_I, zeros_I]))
        self.right_2I = self.right_2I + self._side(1, torch.stack([zeros_I, ones_I]))

    def times(self, mask_2I: Tensor) -> Tensor:
        """H m, of both teachers together."""
        return self._side(0, mask_2I) + self._side(1, mask_2I)

    def _side(self, side: int, mask_2I: Tensor) -> Tensor:
        x_NI = self.inputs[side]
        masked = (down_RI * mask_I for down_RI, mask_I in zip(self.downs, mask_2I, strict=True))
        low_NR = torch.cat([x_NI @ down_RI.T for down_RI in masked], dim=1)
        back_NR = low_NR @ self.gram_RR / len(x_NI)
        parts = back_NR[:, : self.rank], back_NR[:, self.rank :]
        # sum_n x_ni (W D)_ni without forming W D for all tokens at once: (W^T X) is only R x I.
        both = zip(parts, self.downs, strict=True)
        return torch.stack([((part.T @ x_NI) * down_RI).sum(dim=0) for part, down_RI in both])

    def blocks(self) -> Tensor:
        """(I, 3): for every column the entries (cc, cs, ss) of its own 2 x 2 block of H."""
        energy_I = sum((x_NI.square().mean(dim=0) for x_NI in self.inputs), torch.zeros(()))
        content_RI, style_RI = self.downs
        split = self.rank
        gram_cc, gram_cs = self.gram_RR[:split, :split], self.gram_RR[:split, split:]
        gram_ss = self.gram_RR[split:, split:]
        dots = [
            (content_RI * (gram_cc @ content_RI)).sum(dim=0),
            (content_RI * (gram_cs @ style_RI)).sum(dim=0),
            (style_RI * (gram_ss @ style_RI)).sum(dim=0),
        ]
        return torch.stack([dot_I * energy_I for dot_I in dots], dim=1)


def _row_moments(content: LowRank, style: LowRank, moments_RR: Tensor) -> Tensor:
    """(O, 3): mean of (C x)_o^2, (C x)_o (S x)_o, (S x)_o^2."""
    split = content.rank
    up_c, up_s, k = content.up.double(), style.up.double(), moments_RR.double()
    return torch.stack(
        [
            (up_c @ k[:split, :split] * up_c).sum(dim=1),
            (up_c @ k[:split, split:] * up_s).sum(dim=1),
            (up_s @ k[split:, split:] * up_s).sum(dim=1),
        ],
        dim=1,
    )


def _solve_pairs(system_N3: Tensor, right_N2: Tensor, ridge: float) -> Tensor:
    """(2, N): solutions of N symmetric 2 x 2 systems [[a, b], [b, d]] + ridge."""
    a, b, d = system_N3[:, 0] + ridge, system_N3[:, 1], system_N3[:, 2] + ridge
    determinant = (a * d - b * b).clamp(min=torch.finfo(a.dtype).tiny)
    first = (d * right_N2[:, 0] - b * right_N2[:, 1]) / determinant
    second = (a * right_N2[:, 1] - b * right_N2[:, 0]) / determinant
    return torch.stack([first, second])


def _mean_curvature(diagonal: Tensor) -> float:
    """Mean of the diagonal; 1 where a layer has no curvature at all, so that masks stay at 1."""
    mean = float(diagonal.mean())
    return mean if mean > 0.0 else 1.0
