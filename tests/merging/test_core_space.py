"""Claims of the core space and of the merges that work in it: what they depend on is dW alone."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from b4m.adapters.lowrank import LowRank
from b4m.merging.core_space import core_of
from b4m.merging.layerwise import weighted_sum
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


WEIGHTS = (1.0, 0.7, -0.4)


def weights(pairs: Sequence[LowRank]) -> list[float]:
    return list(WEIGHTS[: len(pairs)])


def ties_in_core(pairs: Sequence[LowRank]) -> LowRank:
    core = core_of(pairs)
    return core.pair(ties.ties(core.cores, weights(pairs), 0.3), torch.float64)


def dare_in_core(pairs: Sequence[LowRank]) -> LowRank:
    # signs of singular vectors are an accident of the factors: squares of a basis are not
    generator = torch.Generator().manual_seed(0)
    core = core_of(pairs)
    return core.pair(dare.dare(core.cores, weights(pairs), 0.6, generator), torch.float64)


def tsv_of_all(pairs: Sequence[LowRank]) -> LowRank:
    return tsv.tsv(pairs, weights(pairs))


def ssr_of_all(pairs: Sequence[LowRank]) -> LowRank:
    """Inputs are drawn once, so their moments follow the factorisation as recorded ones do."""
    return ssr.routed(pairs, moments_of(pairs, 60)[0], weights(pairs), 0.5)


def svd_of_sum(pairs: Sequence[LowRank]) -> LowRank:
    return weighted_sum(pairs, weights(pairs)).truncate(4)[0]


def null_space(pairs: Sequence[LowRank]) -> LowRank:
    return weighted_sum(nplora.kept_apart(pairs, 1 / 3), weights(pairs))


@pytest.mark.parametrize(
    "rule", [ties_in_core, dare_in_core, tsv_of_all, ssr_of_all, svd_of_sum, null_space]
)
@pytest.mark.parametrize("ranks", [(4, 4), (3, 6), (4, 4, 4), (2, 6, 3)])
def test_another_factorisation_of_the_same_adapters_gives_the_same_merge(
    rule: Callable[[Sequence[LowRank]], LowRank], ranks: tuple[int, ...]
) -> None:
    pairs = [pair(17, 23, rank, seed) for seed, rank in enumerate(ranks, 1)]
    plain = rule(pairs)
    other = rule([refactored(one, seed) for seed, one in enumerate(pairs, 5)])
    assert (plain - other).norm() / plain.norm() < 1e-5


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
    core = core_of([content, style])
    for one, small in zip((content, style), core.cores, strict=True):
        torch.testing.assert_close(core.pair(small, torch.float64).dense(), one.dense())
    assert max(core.cores[0].shape) <= sum(ranks)


def test_the_left_basis_is_that_of_both_matrices_side_by_side() -> None:
    content, style = pair(17, 23, 3, 1), pair(17, 23, 5, 2)
    dense = torch.cat([content.dense(), style.dense()], dim=1)
    left, sigma, _ = torch.linalg.svd(dense, full_matrices=False)
    core = core_of([content, style])
    overlap = (left[:, :8].T @ core.left_OK).abs()
    torch.testing.assert_close(overlap, torch.eye(8, dtype=torch.float64), atol=1e-8, rtol=0)
    assert float(sigma[8]) < 1e-9


def test_dare_in_the_core_space_is_the_direct_merge_on_average() -> None:
    content, style = pair(9, 11, 2, 1), pair(9, 11, 3, 2)
    core = core_of([content, style])
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(9, 11, dtype=torch.float64)
    for _ in range(4000):
        merged = dare.dare(core.cores, [1.0, 1.0], 0.5, generator)
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


def moments_of(pairs: Sequence[LowRank], tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(7)
    inputs = [
        torch.randn(pairs[0].in_features, tokens, generator=generator).double() * (1 + 0.7 * k)
        for k in range(len(pairs))
    ]
    down = torch.cat([one.down for one in pairs])
    return [(down @ x) @ (down @ x).T / tokens for x in inputs], inputs


@pytest.mark.parametrize("number", [2, 3])
def test_without_an_anchor_ssr_is_ordinary_least_squares(number: int) -> None:
    pairs = [pair(10, 30, 3 + k, k) for k in range(number)]
    moments, inputs = moments_of(pairs, 50)
    routed = ssr.routed(pairs, moments, weights(pairs), 0.0)
    # all of U M at once, as a regression of the teachers' outputs on z = D x
    down = torch.cat([one.down for one in pairs])
    z = torch.cat([down @ x for x in inputs], dim=1)
    outputs = zip(weights(pairs), pairs, inputs, strict=True)
    y = torch.cat([weight * one.dense() @ x for weight, one, x in outputs], dim=1)
    best = torch.linalg.lstsq(z.T, y.T).solution.T @ down
    torch.testing.assert_close(routed.dense(), best, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("number", [2, 3])
def test_a_strong_anchor_gives_the_direct_merge_and_equal_inputs_the_average(number: int) -> None:
    pairs = [pair(10, 30, 3 + k, k) for k in range(number)]
    moments, _ = moments_of(pairs, 50)
    direct = weighted_sum(pairs, weights(pairs)).dense()
    strong = ssr.routed(pairs, moments, weights(pairs), 1e9).dense()
    torch.testing.assert_close(strong, direct, atol=1e-5, rtol=1e-5)
    average = ssr.routed(pairs, moments[:1] * number, weights(pairs), 0.0).dense()
    torch.testing.assert_close(average, direct / number, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("rank", [0, 4])
def test_ssr_is_not_changed_by_an_adapter_that_is_zero_in_a_layer(rank: int) -> None:
    first, second = pair(10, 30, 3, 1), pair(10, 30, 5, 2)
    zero = pair(10, 30, rank, 3).scale(0.0)
    (of_first, of_second), _ = moments_of([first, second], 50)
    wanted = ssr.routed([first, second], [of_first, of_second], [2.0, 1.0], 0.5).dense()
    moments, _ = moments_of([first, second, zero], 50)
    routed = ssr.routed([first, second, zero], moments, [2.0, 1.0, 1.0], 0.5).dense()
    torch.testing.assert_close(routed, wanted)
    alone = ssr.routed([first, zero], moments_of([first, zero], 50)[0], [2.0, 1.0], 0.5).dense()
    torch.testing.assert_close(alone, 2.0 * first.dense())


@pytest.mark.parametrize("adapter", ["of no rank", "zero", "of weight 0"])
def test_tsv_is_not_changed_by_an_adapter_that_adds_nothing(adapter: str) -> None:
    first, second, third = pair(12, 14, 3, 1), pair(12, 14, 4, 2), pair(12, 14, 2, 3)
    nothing = {"of no rank": LowRank.zero(12, 14, third.up), "zero": third.scale(0.0)}
    merged = tsv.tsv(
        [first, nothing.get(adapter, third), second], [1.0, float(adapter in nothing), 0.5]
    )
    torch.testing.assert_close(merged.dense(), tsv.tsv([first, second], [1.0, 0.5]).dense())


@pytest.mark.parametrize("seed", range(3))
def test_of_three_adapters_nplora_keeps_each_off_all_that_later_ones_read(seed: int) -> None:
    """The later two read partly the same, where one projection after the other falls short."""
    first, second, third = (pair(12, 20, rank, seed + rank) for rank in (3, 4, 5))
    third = LowRank(third.up, torch.cat([third.down[:3], second.down[:2] + 0.3 * third.down[3:]]))
    apart = nplora.kept_apart([first, second, third], 1.0)
    for later in (second, third):
        assert (apart[0].dense() @ later.down.T).abs().max() < 1e-9
    assert (apart[1].dense() @ third.down.T).abs().max() < 1e-9
    assert apart[2] is third
    in_turn = first.project_out(second.row_space()).project_out(third.row_space())
    assert (in_turn.dense() @ second.down.T).abs().max() > 1e-3
