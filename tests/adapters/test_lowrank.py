"""Claims of the low-rank algebra, against dense matrices in float64."""

import pytest
import torch
from torch import Tensor

from b4m.adapters.lowrank import LowRank
from b4m.errors import B4MError

SHAPES = [(6, 9, 3), (9, 6, 3), (8, 8, 8), (5, 7, 12), (12, 4, 1)]  # out, in, rank


def draw(out: int, into: int, rank: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, generator=generator, dtype=dtype)
    return LowRank(up, torch.randn(rank, into, generator=generator, dtype=dtype))


def close(left: Tensor, right: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("out", "into", "rank"), SHAPES)
def test_every_operation_is_the_dense_one(out: int, into: int, rank: int) -> None:
    a, b = draw(out, into, rank), draw(out, into, rank + 1, seed=1)
    rows, columns = torch.randn(out, dtype=torch.float64), torch.randn(into, dtype=torch.float64)
    ranks = torch.randn(rank, dtype=torch.float64)
    close(a.scale(-0.3).dense(), -0.3 * a.dense())
    close((a + b).dense(), a.dense() + b.dense())
    close((a - b).dense(), a.dense() - b.dense())
    close((-a).dense(), -a.dense())
    close(a.mask_rows(rows).dense(), rows.diag() @ a.dense())
    close(a.mask_columns(columns).dense(), a.dense() @ columns.diag())
    close(a.mask_ranks(ranks).dense(), a.up @ ranks.diag() @ a.down)
    x = torch.randn(2, 3, into, dtype=torch.float64)
    close(a.apply(x), x @ a.dense().T)
    assert (a + b).rank == 2 * rank + 1


@pytest.mark.parametrize(("out", "into", "rank"), SHAPES)
def test_norm_and_inner_product_are_frobenius(out: int, into: int, rank: int) -> None:
    a, b = draw(out, into, rank), draw(out, into, rank + 2, seed=1)
    assert a.norm() == pytest.approx(float(a.dense().norm()), rel=1e-12)
    assert a.inner(b) == pytest.approx(float((a.dense() * b.dense()).sum()), rel=1e-10)


def test_norm_of_a_difference_of_equals_vanishes() -> None:
    a = draw(64, 48, 8, dtype=torch.float32)
    assert (a - a).norm() < 1e-6 * a.norm()


@pytest.mark.parametrize(("out", "into", "rank"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_singular_values_are_those_of_the_dense_svd(
    out: int, into: int, rank: int, dtype: torch.dtype
) -> None:
    pair = draw(out, into, rank, dtype=dtype)
    dense = torch.linalg.svdvals(pair.dense().double())
    found = pair.singular_values().double()
    assert found.numel() == min(out, into, rank)
    close(found / dense[0], dense[: found.numel()] / dense[0], 1e-5)


@pytest.mark.parametrize(("out", "into", "rank"), SHAPES)
def test_svd_basis_is_the_same_matrix_with_balanced_orthogonal_factors(
    out: int, into: int, rank: int
) -> None:
    pair = draw(out, into, rank)
    basis = pair.svd_basis()
    sigma = pair.singular_values().diag()
    close(basis.dense(), pair.dense())
    close(basis.up.T @ basis.up, sigma)
    close(basis.down @ basis.down.T, sigma)


def test_truncation_is_the_best_approximation_and_reports_its_loss() -> None:
    pair = draw(20, 30, 10)
    left, sigma, right = torch.linalg.svd(pair.dense())
    for k in range(1, 10):
        best = left[:, :k] @ sigma[:k].diag() @ right[:k]
        cut, lost = pair.truncate(k)
        assert cut.rank == k
        close(cut.dense(), best, 1e-9)
        assert lost == pytest.approx(float((sigma[k:] ** 2).sum() / (sigma**2).sum()), rel=1e-9)
    same, lost = pair.truncate(10)
    assert same is pair
    assert lost == 0.0


def test_truncation_of_half_precision_factors_works_in_float32() -> None:
    pair = draw(32, 24, 8, dtype=torch.float32)
    half = pair.to(torch.float16)
    exact, _ = half.to(torch.float32).truncate(4)
    cut, _ = half.truncate(4)
    assert cut.up.dtype == torch.float16
    close(cut.dense().float(), exact.dense(), 2e-2)


def test_decompositions_of_zero_lose_nothing() -> None:
    zero = LowRank(torch.zeros(5, 3), torch.randn(3, 4))
    cut, lost = zero.truncate(1)
    assert lost == 0.0
    assert cut.norm() == 0.0
    assert zero.row_space().shape == (4, 0)
    none = LowRank.zero(5, 4)
    assert none.norm() == 0.0
    assert none.row_space().shape == (4, 0)
    assert none.svd_basis().rank == 0
    assert none.singular_values().numel() == 0
    assert torch.equal(none.apply(torch.ones(2, 4)), torch.zeros(2, 5))
    assert torch.equal((none + zero).dense(), torch.zeros(5, 4))


def test_row_space_is_orthonormal_and_holds_what_the_matrix_reads() -> None:
    pair = draw(9, 30, 5)
    basis = pair.row_space()
    close(basis.T @ basis, torch.eye(5, dtype=torch.float64))
    close(pair.dense() @ basis @ basis.T, pair.dense())


def test_projection_out_of_a_row_space_leaves_nothing_in_it() -> None:
    content, style = draw(9, 30, 5), draw(9, 30, 4, seed=1)
    basis = style.row_space()
    hard = content.project_out(basis)
    assert float((hard.dense() @ style.dense().T).abs().max()) < 1e-10
    soft = content.project_out(basis, 1 / 3)
    projector = torch.eye(30, dtype=torch.float64) - basis @ basis.T / 3
    close(soft.dense(), content.dense() @ projector)
    close(content.project_out(basis, 0.0).dense(), content.dense())


def test_row_space_leaves_out_directions_that_are_not_read() -> None:
    pair = draw(9, 30, 3, dtype=torch.float32)
    twice = pair + pair.scale(0.5)  # six ranks, three directions
    assert twice.row_space().shape == (30, 3)
    noisy = draw(640, 640, 64, dtype=torch.float32)
    assert (noisy + noisy.scale(0.3)).row_space().shape == (640, 64)
    sloping = draw(9, 30, 3, dtype=torch.float32).mask_ranks(torch.tensor([1.0, 1e-2, 1e-4]))
    assert sloping.row_space().shape == (30, 3)
    blind = LowRank(torch.cat([pair.up, torch.zeros(9, 2)], 1), torch.randn(5, 30))
    assert blind.row_space().shape == (30, 3)


def energies_by_rank_and_by_row(pair: LowRank, kept: int) -> tuple[float, float]:
    """Energy lost by the best choice of `kept` ranks of these factors, and of `kept` rows."""
    dense = pair.dense()
    by_row = dense.square().sum(1).sort(descending=True).values[kept:].sum()
    choices = torch.combinations(torch.arange(pair.rank), kept)
    by_rank = min(
        float((dense - pair.up[:, c] @ pair.down[c]).square().sum()) for c in choices.unbind()
    )
    return by_rank, float(by_row)


def test_masks_on_ranks_never_lose_more_than_masks_on_rows_in_the_singular_basis() -> None:
    # Eckart-Young: dropping rows gives a matrix of rank <= k, so it cannot beat the k best.
    for seed in range(200):
        pair = draw(5, 6, 4, seed=seed).svd_basis()
        for kept in range(1, pair.rank + 1):
            by_rank, by_row = energies_by_rank_and_by_row(pair, kept)
            assert by_rank <= by_row + 1e-10


def test_masks_on_ranks_of_raw_factors_can_lose_more_than_masks_on_rows() -> None:
    one_hot, b = torch.eye(6)[:, :1], torch.arange(1.0, 4.0)[None]
    raw = LowRank(torch.cat([one_hot, one_hot], 1), torch.cat([b, -0.9 * b]))
    by_rank, by_row = energies_by_rank_and_by_row(raw, 1)
    assert by_row == 0.0  # dW = 0.1 a b has one row
    assert by_rank == pytest.approx(0.81 * 14, rel=1e-5)
    assert energies_by_rank_and_by_row(raw.svd_basis(), 1)[0] < 1e-9


def test_nothing_is_ever_multiplied_out() -> None:
    # The dense matrix would take 160 GB.
    wide = draw(200_000, 200_000, 2, dtype=torch.float32)
    total = wide + wide.scale(-0.5).project_out(wide.row_space(), 0.5)
    cut, lost = total.truncate(2)
    assert cut.norm() == pytest.approx(0.75 * wide.norm(), rel=1e-4)
    assert lost < 1e-6


def test_masks_pass_gradients() -> None:
    pair, mask = draw(4, 5, 3), torch.ones(3, dtype=torch.float64, requires_grad=True)
    pair.mask_ranks(mask).dense().sum().backward()
    close(mask.grad, pair.up.sum(0) * pair.down.sum(1))


def test_pairs_that_do_not_fit_are_refused() -> None:
    a = draw(4, 5, 3)
    with pytest.raises(B4MError, match="not a low-rank pair"):
        LowRank(a.up, a.down[:2])
    with pytest.raises(B4MError, match="one dtype"):
        LowRank(a.up, a.down.float())
    with pytest.raises(B4MError, match="same base"):
        a + draw(4, 6, 3)
    with pytest.raises(B4MError, match="same base"):
        a.inner(draw(6, 5, 3))
    with pytest.raises(B4MError, match="one entry for each"):
        a.mask_ranks(torch.ones(4))
    with pytest.raises(B4MError, match="one row per input"):
        a.project_out(torch.ones(4, 1))
    with pytest.raises(B4MError, match="smallest rank is 1"):
        a.truncate(0)
