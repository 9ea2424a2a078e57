"""The algebra of pairs is the algebra of their dense matrices, for any shapes and ranks."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank

SIZES = st.integers(1, 7)
RANKS = st.integers(0, 5)
NUMBERS = st.floats(-4.0, 4.0, allow_nan=False, width=32)


@st.composite
def matrices(draw: st.DrawFn, rows: int, columns: int) -> Tensor:
    """Random numbers, or few of them: zeros, equal rows and columns, one huge entry."""
    seed = draw(st.integers(0, 2**16))
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()
    kind = draw(st.sampled_from(["full", "full", "zero", "equal rows", "sparse", "large"]))
    if kind == "zero":
        return torch.zeros_like(matrix)
    if kind == "equal rows" and rows:
        return matrix[:1].expand(rows, columns).clone()
    if kind == "sparse":
        return matrix * (matrix > 0.8)
    return matrix * 1e3 if kind == "large" else matrix


@st.composite
def pairs(draw: st.DrawFn, count: int = 1) -> list[LowRank]:
    """Pairs of one shape and of ranks of their own, which may exceed the shape."""
    out, into = draw(SIZES), draw(SIZES)
    found = []
    for _ in range(count):
        rank = draw(RANKS)
        found.append(LowRank(draw(matrices(out, rank)), draw(matrices(rank, into))))
    return found


def close(found: Tensor, expected: Tensor) -> None:
    size = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-7 * max(1.0, size))


@given(pairs(2), NUMBERS, NUMBERS)
def test_sums_and_multiples_are_those_of_the_matrices(
    both: list[LowRank], first: float, second: float
) -> None:
    one, two = both
    found = one.scale(first) + two.scale(second)
    close(found.dense(), first * one.dense() + second * two.dense())
    assert found.rank == one.rank + two.rank


@given(pairs(3))
def test_sums_may_be_grouped_in_any_way(three: list[LowRank]) -> None:
    one, two, three_ = three
    close(((one + two) + three_).dense(), (one + (two + three_)).dense())


@given(pairs(2))
def test_inner_products_and_norms_are_those_of_the_matrices(both: list[LowRank]) -> None:
    one, two = both
    size = float(one.dense().norm() * two.dense().norm())
    tolerance = 1e-7 * max(1.0, size, float(one.up.norm() * one.down.norm()) ** 2)
    assert abs(one.inner(two) - float((one.dense() * two.dense()).sum())) <= tolerance
    assert abs(one.norm() ** 2 - float(one.dense().square().sum())) <= tolerance


@given(pairs(), st.data())
def test_applying_is_multiplying(one: list[LowRank], data: st.DataObject) -> None:
    (pair,) = one
    x_NI = data.draw(matrices(3, pair.in_features))
    close(pair.apply(x_NI), x_NI @ pair.dense().T)


@given(pairs(), st.data())
def test_masks_multiply_ranks_rows_and_columns(one: list[LowRank], data: st.DataObject) -> None:
    (pair,) = one
    ranks, rows, columns = (
        data.draw(matrices(1, size))[0] for size in (pair.rank, pair.out_features, pair.in_features)
    )
    close(pair.mask_ranks(ranks).dense(), pair.up @ ranks.diag() @ pair.down)
    close(pair.mask_rows(rows).dense(), rows.diag() @ pair.dense())
    close(pair.mask_columns(columns).dense(), pair.dense() @ columns.diag())


@given(pairs(), st.integers(1, 6))
def test_truncation_is_the_best_of_its_rank_and_says_what_it_lost(
    one: list[LowRank], rank: int
) -> None:
    (pair,) = one
    dense = pair.dense()
    sigma = torch.linalg.svdvals(dense)
    cut, share = pair.truncate(rank)
    assert cut.rank <= rank
    energy, lost = float(sigma.square().sum()), float(sigma[rank:].square().sum())
    scale = max(energy, 1e-12)
    assert abs(float((dense - cut.dense()).square().sum()) - lost) <= 1e-7 * max(scale, 1.0)
    assert abs(share * energy - lost) <= 1e-7 * max(scale, 1.0)


@given(pairs())
def test_the_singular_basis_is_the_same_matrix(one: list[LowRank]) -> None:
    (pair,) = one
    basis = pair.svd_basis()
    close(basis.dense(), pair.dense())
    gram = basis.up.T @ basis.up
    close(gram - gram.diagonal().diag(), torch.zeros_like(gram))
    close(gram.diagonal(), gram.diagonal().sort(descending=True).values)


@given(pairs(2), NUMBERS)
def test_projecting_out_a_row_space_weakens_what_is_read_from_it(
    both: list[LowRank], amount: float
) -> None:
    one, two = both
    basis_IK = two.row_space()
    close(basis_IK.T @ basis_IK, torch.eye(basis_IK.shape[1], dtype=basis_IK.dtype))
    expected = one.dense() @ (torch.eye(one.in_features) - amount * basis_IK @ basis_IK.T)
    close(one.project_out(basis_IK, amount).dense(), expected)
    left = one.project_out(basis_IK).dense() @ two.dense().T
    size = float(one.dense().norm() * two.dense().norm())
    assert float(left.abs().max()) <= 1e-6 * max(1.0, size), "nothing is left of it"


@given(pairs(2), NUMBERS)
def test_adapters_add_and_scale_layer_by_layer(both: list[LowRank], factor: float) -> None:
    one, two = both
    first = Adapter({"a": one, "b": two}, text_layers={"text_encoder.c": one})
    second = Adapter({"b": one}, text_layers={"text_encoder.c": two, "text_encoder.d": two})
    total = (first + second).scale(factor)
    close(total.layers["a"].dense(), factor * one.dense())
    close(total.layers["b"].dense(), factor * (one.dense() + two.dense()))
    close(total.text_layers["text_encoder.c"].dense(), factor * (one.dense() + two.dense()))
    close(total.text_layers["text_encoder.d"].dense(), factor * two.dense())
