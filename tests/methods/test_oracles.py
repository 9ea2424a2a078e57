"""The engine against an independent naive implementation: equal losses, step for step."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from b4m.adapters.deltas import FrozenDelta
from b4m.bases.base import Base
from b4m.bases.sdxl.blocks import role_of
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import paired
from b4m.merging.mask_learning import Losses, MaskedMerge, learn
from b4m.merging.masks import MaskedSum
from b4m.methods.duolora import DuoLoss
from b4m.methods.ziplora import ZipLoss
from b4m.settings import MaskSettings
from tests.methods.draws import adapters_of, bank_of, draw_pair, look
from tests.methods.naive import NaiveMerge, naive

STEPS = 8


class Recorded:
    """A loss that keeps its values and the entries they were taken at."""

    def __init__(self, loss: ZipLoss | DuoLoss) -> None:
        self.loss = loss
        self.curve: list[float] = []
        self.rows: list[int] = []

    def __call__(self, for_content: Tensor, for_style: Tensor, rows: list[int]) -> Losses:
        losses = self.loss(for_content, for_style, rows)
        self.curve.append(float(losses["loss"].detach()))
        self.rows += rows
        return losses


def ours(base: Base, method: str, axis: str, workdir: Path) -> tuple[Recorded, dict[str, Tensor]]:
    """Loss curve and final masks of the engine, through the training loop."""
    content, style = adapters_of(base, 4, 4)
    bank = bank_of(base, 3)
    merge = MaskedMerge(base, paired(content.layers, style.layers), axis)
    try:
        loss = Recorded(
            DuoLoss(merge, bank, 0.01, 0.1) if method == "duolora" else ZipLoss(merge, bank, 0.01)
        )
        learn(merge, bank, loss, MergeContext(MaskSettings(steps=STEPS), workdir=workdir), method)
        return loss, {name: m.detach().clone() for name, m in merge.parameters().items()}
    finally:
        merge.close()


def losses_of(state: NaiveMerge, method: str, rows: list[int]) -> Iterator[Tensor]:
    leads = {name: role_of(name) for name in state.layers}
    for row in rows:
        yield (
            state.duo_loss(row, 0.01, 0.1, leads)
            if method == "duolora"
            else state.zip_loss(row, 0.01)
        )


@pytest.mark.parametrize(
    ("method", "axis"), [("ziplora", "columns"), ("ziplora", "rows"), ("duolora", "rank")]
)
def test_factored_and_cached_steps_have_the_losses_of_dense_recomputed_ones(
    method: str, axis: str, base: Base, tmp_path: Path
) -> None:
    engine, masks = ours(base, method, axis, tmp_path)
    content, style = adapters_of(base, 4, 4)
    pairs = paired(content.layers, style.layers)
    with naive(base, pairs, axis, bank_of(base, 3)) as state:
        losses = losses_of(state, method, engine.rows)
        curve = list(state.train(losses, lr=0.01, clip=1.0))
        finals = {
            f"{name}.{kind}": getattr(one, f"m_{kind}").detach().clone()
            for name, one in state.layers.items()
            for kind in ("content", "style")
        }
    assert len(curve) == STEPS
    assert engine.curve == pytest.approx(curve, rel=1e-5)
    assert curve[-1] < curve[0]
    # Adam moves an entry whose gradient is nearly zero by its sign, so single entries may differ.
    apart = torch.cat([(masks[name] - finals[name]).abs() for name in finals])
    assert apart.quantile(0.99) < 1e-3


def test_every_entry_serves_once_before_any_serves_twice(base: Base, tmp_path: Path) -> None:
    engine, _ = ours(base, "ziplora", "rows", tmp_path)
    assert sorted(engine.rows[:3]) == sorted(engine.rows[3:6]) == [0, 1, 2]


@pytest.mark.parametrize("axis", ["rank", "rows", "columns"])
def test_one_pass_for_both_adapters_is_a_pass_for_each(axis: str) -> None:
    torch.manual_seed(0)
    fused = MaskedSum(draw_pair(6, 9, 3, 1), draw_pair(6, 9, 2, 2), axis)
    for mask in fused.parameters():
        mask.data.normal_()
    x = torch.randn(2, 5, 9)

    def apart() -> Tensor:
        total = torch.zeros(2, 5, 6)
        for pair, mask in ((fused.content, fused.m_content), (fused.style, fused.m_style)):
            low = (x * mask if axis == "columns" else x) @ pair.down.T
            high = (low * mask if axis == "rank" else low) @ pair.up.T
            total = total + (high * mask if axis == "rows" else high)
        return total

    torch.testing.assert_close(fused(x), apart(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(FrozenDelta(fused.lowrank())(x), apart(), rtol=1e-5, atol=1e-6)
    masks = list(fused.parameters())
    gradients = [torch.autograd.grad(output.sum(), masks) for output in (fused(x), apart())]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_the_unet_is_as_before_when_a_merge_is_closed(base: Base) -> None:
    content, style = adapters_of(base)
    before = look(base, None)
    merge = MaskedMerge(base, paired(content.layers, style.layers), "rank")
    assert not torch.equal(look(base, None), before)
    merge.close()
    assert torch.equal(look(base, None), before)
