"""Claims of the least-squares masks: they solve the stated problem, and start a merge well."""

import pytest
import torch
from torch import Tensor

from b4m.adapters.lowrank import LowRank
from b4m.bases.base import Base
from b4m.merging.layerwise import paired
from b4m.merging.least_squares import Masks, Moments, solve_columns, solve_ranks, solve_rows
from b4m.merging.mask_learning import MaskedMerge
from b4m.merging.masks import apply_mask, mask_size
from b4m.merging.recording import start_by_least_squares
from b4m.methods.ziplora import ZipLoss
from tests.methods.draws import adapters_of, bank_of, draw_pair

AXES = ("rank", "rows", "columns")
DAMPING = 1e-2


def layer() -> tuple[LowRank, LowRank, Tensor, Tensor]:
    """A layer of 7 outputs and 9 inputs, ranks 2 and 3, and inputs with correlated entries."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(9, 9, generator=generator)
    of_content = torch.randn(40, 9, generator=generator) @ mix
    of_style = torch.randn(50, 9, generator=generator) + 0.5
    return draw_pair(7, 9, 2, 1), draw_pair(7, 9, 3, 2), of_content, of_style


def moments(content: LowRank, style: LowRank, x_c: Tensor, x_s: Tensor) -> Moments:
    down_RI = torch.cat([content.down, style.down])
    low_c, low_s = x_c @ down_RI.T, x_s @ down_RI.T
    return Moments(low_c.T @ low_c / len(x_c), low_s.T @ low_s / len(x_s))


def columns(
    content: LowRank, style: LowRank, x_c: Tensor, x_s: Tensor, damping: float, iterations: int = 30
) -> Masks:
    (masks,) = solve_columns([content], [style], x_c[None], x_s[None], damping, iterations)
    return masks


def solve(axis: str, damping: float) -> Masks:
    content, style, x_c, x_s = layer()
    if axis == "columns":
        return columns(content, style, x_c, x_s, damping, iterations=60)
    solver = solve_ranks if axis == "rank" else solve_rows
    return solver(content, style, moments(content, style, x_c, x_s), damping)


def outputs(axis: str, masks_M: Tensor) -> Tensor:
    """Both teachers' error-free merge as one long vector, linear in the masks."""
    content, style, x_c, x_s = layer()
    split = mask_size(content, axis)
    dense = apply_mask(content, masks_M[:split], axis) + apply_mask(style, masks_M[split:], axis)
    return torch.cat([(x @ dense.dense().T).flatten() / len(x) ** 0.5 for x in (x_c, x_s)])


def wanted() -> Tensor:
    content, style, x_c, x_s = layer()
    both = ((content, x_c), (style, x_s))
    return torch.cat([(x @ pair.dense().T).flatten() / len(x) ** 0.5 for pair, x in both])


@pytest.mark.parametrize("axis", AXES)
def test_masks_solve_the_dense_least_squares_problem(axis: str) -> None:
    content, style, _, _ = layer()
    size = mask_size(content, axis) + mask_size(style, axis)
    design = torch.stack([outputs(axis, unit) for unit in torch.eye(size)], dim=1).double()
    ridge = DAMPING * design.square().sum(0).mean()
    square = torch.cat([design, ridge.sqrt() * torch.eye(size, dtype=torch.float64)])
    right = torch.cat([wanted().double(), ridge.sqrt() * torch.ones(size, dtype=torch.float64)])
    best = torch.linalg.lstsq(square, right).solution
    solved = torch.cat(solve(axis, DAMPING)).double()
    torch.testing.assert_close(solved, best, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("axis", AXES)
def test_strong_damping_keeps_the_direct_merge(axis: str) -> None:
    for mask in solve(axis, 1e9):
        torch.testing.assert_close(mask, torch.ones_like(mask), rtol=1e-5, atol=1e-5)


def test_layers_that_are_solved_together_do_not_meet() -> None:
    content, style, x_c, x_s = layer()
    other = draw_pair(5, 9, 2, 7), draw_pair(5, 9, 3, 8)
    inputs = torch.stack([x_c, -2.0 * x_c]), torch.stack([x_s, x_s + 1.0])
    wide = LowRank(torch.cat([other[0].up, torch.zeros(2, 2)]), other[0].down)
    tall = LowRank(torch.cat([other[1].up, torch.zeros(2, 3)]), other[1].down)
    together = solve_columns([content, wide], [style, tall], *inputs, DAMPING)
    alone = (
        columns(content, style, x_c, x_s, DAMPING),
        columns(*other, *(x[1] for x in inputs), DAMPING),
    )
    for pair, single in zip(together, alone, strict=True):
        torch.testing.assert_close(torch.cat(pair), torch.cat(single), rtol=1e-3, atol=1e-3)


def test_masks_of_a_layer_that_does_nothing_stay_at_one() -> None:
    zero, x = LowRank(torch.zeros(7, 2), torch.zeros(2, 9)), torch.randn(10, 9)
    nothing = moments(zero, zero, x, x)
    for masks in (
        solve_ranks(zero, zero, nothing, DAMPING),
        solve_rows(zero, zero, nothing, DAMPING),
        columns(zero, zero, x, x, DAMPING),
    ):
        for mask in masks:
            torch.testing.assert_close(mask, torch.ones_like(mask))


@pytest.mark.parametrize("axis", AXES)
def test_adapters_that_answer_different_inputs_need_no_compromise(axis: str) -> None:
    """Where content's inputs are silent for style and the other way round, ones are optimal."""
    first, second = torch.zeros(6, 4), torch.zeros(6, 4)
    first[:, :2], second[:, 2:] = torch.randn(6, 2), torch.randn(6, 2)
    content = LowRank(torch.eye(2), torch.eye(2, 4))
    style = LowRank(torch.eye(2), torch.eye(4)[2:])
    if axis == "columns":
        masks = columns(content, style, first, second, 1e-6)
    else:
        solver = solve_ranks if axis == "rank" else solve_rows
        masks = solver(content, style, moments(content, style, first, second), 1e-6)
    for mask in masks:
        torch.testing.assert_close(mask, torch.ones_like(mask), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axis", AXES)
def test_the_start_brings_the_merge_closer_to_both_teachers(axis: str, base: Base) -> None:
    content, style = adapters_of(base, 4, 4)
    bank = bank_of(base, 4)
    merge = MaskedMerge(base, paired(content.layers, style.layers), axis)
    rows = list(range(len(bank)))
    try:
        loss = ZipLoss(merge, bank, similarity=0.0)
        with torch.no_grad():
            before = loss(*merge.predictions(merge.adapted, bank, rows), rows)["loss"].mean()
            start_by_least_squares(merge, bank)
            after = loss(*merge.predictions(merge.adapted, bank, rows), rows)["loss"].mean()
        assert after < 0.85 * before
    finally:
        merge.close()
    assert not base.model.get_submodule(next(iter(content.layers)))._forward_pre_hooks
