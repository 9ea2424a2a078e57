"""Claims of the core space and of the merges that work in it: what they depend on is dW alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from b4m.adapters.lowrank import LowRank
from b4m.merging.core_space import core_of
from b4m.merging.least_squares import Moments
from b4m.methods import dare, nplora, ssr, ties, tsv


def pair(out: int, into: int, rank: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    size = {"generator": generator, "dtype": torch.float64}
    return LowRank(torch.randn(out, rank, **size), torch.randn(rank, into, **size))


def refactored(one: LowRank, seed: int) -> LowRank:
    """The same dW with other factors: (U G^-1)(G D), G far from orthogonal."""
    generator = torch.Generator().manual_seed(seed)
    change = torch.randn(one.rank, one.rank, generator=generator, dtype=torch.float64)
    change += torch.diag(torch.logspace(-1, 1, one.rank, dtype=torch.float64))
    return LowRank(one.up @ torch.linalg.inv(change), change @ one.down)


def ties_in_core(content: LowRank, style: LowRank) -> Tensor:
    core = core_of(content, style)
    merged = ties.ties([core.content_KL, core.style_KL], [1.0, 0.7], 0.3)
    return core.pair(merged, torch.float64).dense()


def dare_in_core(content: LowRank, style: LowRank) -> Tensor:
    core = core_of(content, style)
    # signs of singular vectors are an accident of the factors: squares of a basis are not
    generator = torch.Generator().manual_seed(0)
    merged = dare.dare([core.content_KL, core.style_KL], [1.0, 0.7], 0.6, generator)
    return core.pair(merged, torch.float64).dense()


def tsv_of_both(content: LowRank, style: LowRank) -> Tensor:
    return tsv.tsv([content, style], (1.0, 0.7)).dense()


def ssr_of_both(content: LowRank, style: LowRank) -> Tensor:
    """Inputs are drawn once, so their moments follow the factorisation as recorded ones do."""
    generator = torch.Generator().manual_seed(5)
    x_content, x_style = torch.randn(2, content.in_features, 60, generator=generator).double()
    down = torch.cat([content.down, style.down])
    moments = Moments(*((down @ x) @ (down @ x).T / 60 for x in (x_content, x_style)))
    return ssr.routed(content, style, moments, (1.0, 0.7), 0.5).dense()


def svd_of_sum(content: LowRank, style: LowRank) -> Tensor:
    return (content + style.scale(0.7)).truncate(4)[0].dense()


def null_space(content: LowRank, style: LowRank) -> Tensor:
    assert nplora.MERGE.settings().mu == 0.5
    return (content.project_out(style.row_space(), 1 / 3) + style).dense()


@pytest.mark.parametrize(
    "rule", [ties_in_core, dare_in_core, tsv_of_both, ssr_of_both, svd_of_sum, null_space]
)
@pytest.mark.parametrize("ranks", [(4, 4), (3, 6)])
def test_another_factorisation_of_the_same_adapters_gives_the_same_merge(
    rule: Callable[[LowRank, LowRank], Tensor], ranks: tuple[int, int]
) -> None:
    content, style = pair(17, 23, ranks[0], 1), pair(17, 23, ranks[1], 2)
    plain = rule(content, style)
    other = rule(refactored(content, 3), refactored(style, 4))
    assert float((plain - other).norm() / plain.norm()) < 1e-5


def test_ties_on_factors_depends_on_the_factorisation() -> None:
    """The reason for the core space: the same two matrices, another merge."""

    def on_factors(content: LowRank, style: LowRank) -> Tensor:
        up = ties.ties([content.up, style.up], [1.0, 1.0], 0.3)
        return up @ ties.ties([content.down, style.down], [1.0, 1.0], 0.3)

    content, style = pair(17, 23, 4, 1), pair(17, 23, 4, 2)
    plain = on_factors(content, style)
    other = on_factors(refactored(content, 3), refactored(style, 4))
    assert float((plain - other).norm() / plain.norm()) > 0.5


@pytest.mark.parametrize("ranks", [(4, 4), (3, 6), (0, 5)])
def test_the_core_space_loses_nothing(ranks: tuple[int, int]) -> None:
    content, style = pair(17, 23, ranks[0], 1), pair(17, 23, ranks[1], 2)
    core = core_of(content, style)
    for one, small in ((content, core.content_KL), (style, core.style_KL)):
        torch.testing.assert_close(core.pair(small, torch.float64).dense(), one.dense())
    assert max(core.content_KL.shape) <= sum(ranks)


def test_the_left_basis_is_that_of_both_matrices_side_by_side() -> None:
    content, style = pair(17, 23, 3, 1), pair(17, 23, 5, 2)
    dense = torch.cat([content.dense(), style.dense()], dim=1)
    left, sigma, _ = torch.linalg.svd(dense, full_matrices=False)
    core = core_of(content, style)
    overlap = (left[:, :8].T @ core.left_OK).abs()
    torch.testing.assert_close(overlap, torch.eye(8, dtype=torch.float64), atol=1e-8, rtol=0)
    assert float(sigma[8]) < 1e-9


def test_dare_in_the_core_space_is_the_direct_merge_on_average() -> None:
    content, style = pair(9, 11, 2, 1), pair(9, 11, 3, 2)
    core = core_of(content, style)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(9, 11, dtype=torch.float64)
    for _ in range(4000):
        merged = dare.dare([core.content_KL, core.style_KL], [1.0, 1.0], 0.5, generator)
        total += core.pair(merged, torch.float64).dense()
    direct = (content + style).dense()
    assert float((total / 4000 - direct).norm() / direct.norm()) < 0.1


def test_tsv_is_the_direct_merge_where_the_adapters_share_no_direction() -> None:
    basis = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64)).Q
    content = LowRank(basis[:, :3] * 2.0, basis[:3].contiguous())
    style = LowRank(basis[:, 3:7].contiguous(), basis[3:7] * 0.5)
    merged = tsv.tsv([content, style], (1.0, 1.0)).dense()
    torch.testing.assert_close(merged, (content + style).dense(), atol=1e-10, rtol=0)


def test_tsv_turns_shared_directions_apart() -> None:
    content = pair(20, 24, 3, 1)
    same = tsv.tsv([content, content], (1.0, 1.0))
    twice = (content + content).dense()
    assert float(same.dense().norm()) < float(twice.norm())


def test_tsv_keeps_one_adapter_when_the_other_is_zero() -> None:
    content = pair(12, 14, 3, 1)
    zero = LowRank.zero(12, 14, content.up)
    torch.testing.assert_close(tsv.tsv([content, zero], (1.0, 1.0)).dense(), content.dense())


def moments_of(content: LowRank, style: LowRank, tokens: int) -> tuple[Moments, list[Tensor]]:
    generator = torch.Generator().manual_seed(7)
    inputs = [
        torch.randn(content.in_features, tokens, generator=generator).double() * scale
        for scale in (1.0, 1.7)
    ]
    down = torch.cat([content.down, style.down])
    return Moments(*((down @ x) @ (down @ x).T / tokens for x in inputs)), inputs


def test_without_an_anchor_ssr_is_ordinary_least_squares() -> None:
    content, style = pair(10, 30, 3, 1), pair(10, 30, 4, 2)
    moments, (x_content, x_style) = moments_of(content, style, 50)
    routed = ssr.routed(content, style, moments, (1.0, 1.0), 0.0)
    # all of U M at once, as a regression of the two teachers' outputs on z = D x
    down = torch.cat([content.down, style.down])
    z = torch.cat([down @ x_content, down @ x_style], dim=1)
    y = torch.cat([content.dense() @ x_content, style.dense() @ x_style], dim=1)
    best = torch.linalg.lstsq(z.T, y.T).solution.T @ down
    torch.testing.assert_close(routed.dense(), best, atol=1e-8, rtol=1e-8)


def test_a_strong_anchor_gives_the_direct_merge_and_equal_inputs_the_average() -> None:
    content, style = pair(10, 30, 3, 1), pair(10, 30, 4, 2)
    moments, _ = moments_of(content, style, 50)
    direct = (content + style).dense()
    strong = ssr.routed(content, style, moments, (1.0, 1.0), 1e9).dense()
    torch.testing.assert_close(strong, direct, atol=1e-5, rtol=1e-5)
    alike = Moments(moments.content_RR, moments.content_RR)
    average = ssr.routed(content, style, alike, (1.0, 1.0), 0.0).dense()
    torch.testing.assert_close(average, direct / 2, atol=1e-8, rtol=1e-8)


def test_ssr_passes_an_adapter_through_when_the_other_is_zero() -> None:
    content = pair(10, 30, 3, 1)
    zero = LowRank.zero(10, 30, content.up)
    moments, _ = moments_of(content, zero, 50)
    routed = ssr.routed(content, zero, moments, (2.0, 1.0), 0.5).dense()
    torch.testing.assert_close(routed, 2.0 * content.dense())
