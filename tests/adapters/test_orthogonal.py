"""Claims of the seeded bases."""

import pytest
import torch

from b4m.adapters.orthogonal import GRID, generator_for, orthonormal


@pytest.mark.parametrize(("rows", "columns"), [(640, 64), (64, 640), (16, 16), (1024, 3), (1, 1)])
def test_the_shorter_side_is_orthonormal(rows: int, columns: int) -> None:
    basis = orthonormal(rows, columns, torch.Generator().manual_seed(1)).double()
    gram = basis.T @ basis if rows >= columns else basis @ basis.T
    assert basis.shape == (rows, columns)
    assert float((gram - torch.eye(min(rows, columns))).abs().max()) < 2e-6


@pytest.mark.parametrize(("rows", "columns"), [(0, 4), (4, 0)])
def test_empty_bases_are_empty(rows: int, columns: int) -> None:
    assert orthonormal(rows, columns, torch.Generator()).shape == (rows, columns)


def test_a_layers_basis_depends_on_seed_layer_and_block_only() -> None:
    def basis(seed: int, layer: str, block: str) -> torch.Tensor:
        return orthonormal(12, 4, generator_for(seed, layer, block))

    first = basis(0, "a.to_q", "A")
    torch.manual_seed(7)
    torch.randn(5)
    assert torch.equal(first, basis(0, "a.to_q", "A"))
    for other in [(1, "a.to_q", "A"), (0, "a.to_k", "A"), (0, "a.to_q", "C")]:
        assert not torch.allclose(first, basis(*other), atol=1e-2)


def test_entries_lie_on_the_grid_that_hides_rounding() -> None:
    # A QR of the same matrix in another order of operations differs in the last bits of float64.
    basis = orthonormal(100, 8, torch.Generator().manual_seed(1)).double() * GRID
    assert torch.equal(basis, basis.round())


def test_the_distribution_has_no_preferred_sign_or_entry() -> None:
    draws = torch.stack([orthonormal(4, 4, torch.Generator().manual_seed(s)) for s in range(800)])
    assert float(draws.mean(0).abs().max()) < 0.08  # standard error 0.018
    assert float((draws.square().mean(0) - 0.25).abs().max()) < 0.05
