"""Claims of the learned masks."""

import pytest
import torch
from torch import Tensor

from b4m.adapters.lowrank import LowRank
from b4m.bases.sdxl.blocks import sdxl_linear_shapes
from b4m.errors import B4MError
from b4m.merging.masks import AXES, MaskedSum, mask_size


def draw(rank: int, seed: int, out: int = 6, into: int = 9) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, generator=generator)
    return LowRank(up, torch.randn(rank, into, generator=generator))


def masked(axis: str) -> MaskedSum:
    module = MaskedSum(draw(3, 0), draw(5, 1), axis)
    torch.manual_seed(0)
    for mask in module.parameters():
        mask.data.normal_()
    return module


def by_hand(axis: str, c: LowRank, s: LowRank, mc: Tensor, ms: Tensor) -> Tensor:
    if axis == "rank":
        return c.up @ mc.diag() @ c.down + s.up @ ms.diag() @ s.down
    if axis == "rows":
        return mc.diag() @ c.dense() + ms.diag() @ s.dense()
    return c.dense() @ mc.diag() + s.dense() @ ms.diag()


@pytest.mark.parametrize("axis", AXES)
def test_live_masks_are_the_dense_rule_and_the_exported_pair(axis: str) -> None:
    module = masked(axis)
    c, s, mc, ms = module.content, module.style, module.m_content, module.m_style
    dense = by_hand(axis, c, s, mc, ms)
    x = torch.randn(2, 4, 9)
    torch.testing.assert_close(module(x), x @ dense.T, rtol=1e-5, atol=1e-5)
    exported = module.lowrank()
    assert exported.rank == 8
    torch.testing.assert_close(exported.dense(), dense.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", AXES)
def test_masks_of_ones_are_the_direct_merge_and_zero_leaves_the_other(axis: str) -> None:
    module = MaskedSum(draw(3, 0), draw(5, 1), axis)
    assert torch.equal(module.lowrank().up, (draw(3, 0) + draw(5, 1)).up)
    assert torch.equal(module.lowrank().down, (draw(3, 0) + draw(5, 1)).down)
    module.m_style.data.zero_()
    torch.testing.assert_close(module.lowrank().dense(), draw(3, 0).dense())
    x = torch.randn(4, 9)
    torch.testing.assert_close(module(x), draw(3, 0).apply(x))


@pytest.mark.parametrize("axis", AXES)
def test_only_the_masks_learn_and_their_gradient_is_the_dense_one(axis: str) -> None:
    module = masked(axis)
    assert {name for name, _ in module.named_parameters()} == {"m_content", "m_style"}
    x = torch.randn(4, 9)
    module(x).square().sum().backward()
    twin = module.m_content.detach().double().requires_grad_()
    c, s = module.content.to(torch.float64), module.style.to(torch.float64)
    ms, x = module.m_style.detach().double(), x.double()
    y = x @ by_hand(axis, c, s, twin, ms).T
    y.square().sum().backward()
    torch.testing.assert_close(module.m_content.grad.double(), twin.grad, rtol=1e-4, atol=1e-4)


def test_masks_on_sdxl_have_the_published_counts() -> None:
    counts = dict.fromkeys(AXES, 0)
    for out, into in sdxl_linear_shapes().values():
        pair = LowRank(torch.empty(out, 64, device="meta"), torch.empty(64, into, device="meta"))
        for axis in AXES:
            counts[axis] += 2 * mask_size(pair, axis)
    assert counts == {"rank": 71_680, "rows": 1_331_200, "columns": 1_571_840}


def test_every_mask_has_its_own_storage() -> None:
    modules = [MaskedSum(draw(3, 0), draw(5, 1), "rank") for _ in range(4)]
    storages = {mask.data_ptr() for module in modules for mask in module.parameters()}
    assert len(storages) == 8


@pytest.mark.parametrize("axis", AXES)
def test_a_layer_that_one_side_lacks_counts_as_zero(axis: str) -> None:
    module = MaskedSum(draw(3, 0), LowRank.zero(6, 9), axis)
    x = torch.randn(4, 9)
    torch.testing.assert_close(module(x), draw(3, 0).apply(x))
    torch.testing.assert_close(module.lowrank().dense(), draw(3, 0).dense())


def test_masks_compute_in_the_inputs_dtype() -> None:
    module = masked("columns")
    y = module(torch.ones(2, 9, dtype=torch.bfloat16))
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert module.m_content.grad.dtype == torch.float32


def test_unknown_axes_and_unequal_layers_are_refused() -> None:
    with pytest.raises(B4MError, match="rank, rows, columns"):
        MaskedSum(draw(3, 0), draw(3, 1), "diagonal")
    with pytest.raises(B4MError, match="one layer"):
        MaskedSum(draw(3, 0), draw(3, 1, out=7))
