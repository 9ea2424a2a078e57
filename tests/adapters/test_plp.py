"""Claims of the trainable pairs: what is frozen stays, what is learnt is kept, to the bit."""

import dataclasses

import pytest
import torch
from torch import nn

from b4m.adapters.deltas import PLP, FrozenDelta, LoRADelta, frozen_size, join
from b4m.adapters.lowrank import LowRank
from b4m.bases.sdxl.blocks import sdxl_linear_shapes
from b4m.errors import B4MError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(
    out: int = 12, into: int = 20, rank: int = 4, seed: int = 0, basis_seed: int = 0, **given: float
) -> PLP:
    return PLP.start(out, into, rank, seeded(seed), layer="x.to_q", basis_seed=basis_seed, **given)


def train(plp: nn.Module, seed: int, steps: int = 5) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(plp.parameters(), lr=1e-2, weight_decay=0.1)
    generator = seeded(seed)
    for _ in range(steps):
        x = torch.randn(6, 20, generator=generator)
        y = torch.randn(6, 12, generator=generator)
        optimizer.zero_grad()
        (plp(x) - y).square().mean().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(("out", "into"), [(12, 20), (20, 12), (16, 16), (13, 7)])
@pytest.mark.parametrize("split", [0.5, 0.3, 0.0])
def test_delta_consists_of_the_four_blocks(out: int, into: int, split: float) -> None:
    plp = start(out, into, split=split)
    nn.init.normal_(plp.up_learnable)
    d, k = int(split * out), int(split * into)
    a, b, c, e = plp.up_frozen, plp.up_learnable, plp.down_frozen, plp.down_learnable
    delta = plp.lowrank().dense()
    assert a.shape == (d, 4)
    assert c.shape == (4, k)
    torch.testing.assert_close(delta[:d, :k], a @ c)
    torch.testing.assert_close(delta[:d, k:], a @ e)
    torch.testing.assert_close(delta[d:, :k], b @ c)
    torch.testing.assert_close(delta[d:, k:], b @ e)
    x = torch.randn(3, 5, into)
    torch.testing.assert_close(plp(x), x @ delta.T, rtol=1e-5, atol=1e-5)


def test_frozen_blocks_do_not_move_and_have_no_optimizer_state() -> None:
    plp = start()
    up, down = plp.up_frozen.clone(), plp.down_frozen.clone()
    learnt = [parameter.detach().clone() for parameter in plp.parameters()]
    optimizer = train(plp, seed=1, steps=20)
    assert torch.equal(plp.up_frozen, up)
    assert torch.equal(plp.down_frozen, down)
    assert all(not torch.equal(p, q) for p, q in zip(plp.parameters(), learnt, strict=True))
    assert {name for name, _ in plp.named_parameters()} == {"up_learnable", "down_learnable"}
    held = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    assert held == 4 * (6 + 10), "rank times half of both sizes"
    assert "up_frozen" in plp.state_dict()


def test_gradients_are_those_of_a_plain_pair_at_the_learnable_blocks() -> None:
    plp = start()
    nn.init.normal_(plp.up_learnable)
    plain = LoRADelta(plp.up, plp.down)
    x = torch.randn(6, 20)
    for module in (plp, plain):
        module(x).square().sum().backward()
    torch.testing.assert_close(plp.up_learnable.grad, plain.up_learnable.grad[6:])
    torch.testing.assert_close(plp.down_learnable.grad, plain.down_learnable.grad[:, 10:])


@pytest.mark.parametrize("split", [0.5, 0.25, 0.29])
def test_learnable_share_is_exactly_the_stated_one(split: float) -> None:
    plp = start(100, 60, 3, split=split)
    count = sum(parameter.numel() for parameter in plp.parameters())
    assert frozen_size(100, 0.29) == 29  # 0.29 * 100 is below 29 in binary
    assert count == 3 * (100 - int(round(100 * split)) + 60 - int(60 * split + 1e-9))


def test_learnable_numbers_on_sdxl_are_half_of_the_adapter() -> None:
    sizes = [size for shape in sdxl_linear_shapes().values() for size in shape]
    assert 64 * sum(sizes) == 92_897_280
    assert 64 * sum(size - frozen_size(size, 0.5) for size in sizes) == 46_448_640


@pytest.mark.parametrize(("out", "into"), [(1280, 1280), (1280, 2048), (640, 2048), (640, 640)])
def test_frozen_blocks_are_orthogonal_of_the_released_size_in_every_shape(
    out: int, into: int
) -> None:
    plp = start(out, into, 64)
    half = 0.5 * torch.eye(64)
    torch.testing.assert_close(plp.up_frozen.T @ plp.up_frozen, half, rtol=0, atol=2e-6)
    torch.testing.assert_close(plp.down_frozen @ plp.down_frozen.T, half, rtol=0, atol=2e-6)
    assert not plp.up_learnable.any()
    assert float(plp.down_learnable.detach().std()) == pytest.approx(1 / 64, rel=0.02)


def test_size_of_the_start_is_the_documented_one() -> None:
    for scale in (1.0, 0.5):
        energy = start(1280, 1280, 64, scale=scale).lowrank().norm() ** 2
        expected = scale**4 * 0.25 * 64 + scale**2 * 0.25 * 1280 / 64
        assert energy == pytest.approx(expected, rel=0.05)


def test_content_and_style_runs_share_the_basis_and_nothing_else() -> None:
    torch.manual_seed(3)
    content = start(seed=1)
    torch.manual_seed(4)
    style = start(seed=2)
    assert torch.equal(content.up_frozen, style.up_frozen)
    assert torch.equal(content.down_frozen, style.down_frozen)
    assert not torch.equal(content.down_learnable, style.down_learnable)


def test_split_zero_starts_as_plain_lora() -> None:
    plp, plain = start(split=0.0), LoRADelta.start(12, 20, 4, seeded())
    assert torch.equal(plp.up, plain.up)
    assert torch.equal(plp.down, plain.down)
    assert plain.lowrank().norm() == 0.0


@pytest.mark.parametrize("role", ["content-down", "content-up"])
def test_make_starts_from_exactly_both_learnt_halves(role: str) -> None:
    content, style = start(seed=1), start(seed=2)
    train(content, seed=1)
    train(style, seed=2)
    made = join(content.lowrank(), style.lowrank(), split=0.5, role=role)
    up, down = (style, content) if role == "content-down" else (content, style)
    assert torch.equal(made.up_learnable, up.up_learnable)
    assert torch.equal(made.down_learnable, down.down_learnable)
    assert torch.equal(made.up_frozen, content.up_frozen)
    assert torch.equal(made.down_frozen, style.down_frozen)


def test_make_refuses_halves_that_do_not_belong_together() -> None:
    content, style = start(seed=1).lowrank(), start(seed=2).lowrank()
    pairs = {
        "same orthogonal basis": start(seed=2, basis_seed=1).lowrank(),
        "one rank": start(seed=2, rank=5).lowrank(),
        "one base": start(out=14, seed=2).lowrank(),
    }
    for sentence, other in pairs.items():
        with pytest.raises(B4MError, match=f"in x.to_q.*{sentence}"):
            join(content, other, split=0.5, layer="x.to_q")
    with pytest.raises(B4MError, match="content-down, content-up"):
        join(content, style, split=0.5, role="style-up")
    with pytest.raises(B4MError, match="same orthogonal basis"):
        join(content, style, split=0.75)  # would freeze learnt numbers
    nudged = dataclasses.replace(style, down=style.down.clone())
    nudged.down[0, 0] = torch.nextafter(nudged.down[0, 0], torch.tensor(9.0))
    with pytest.raises(B4MError, match="blocks of down differ"):
        join(content, nudged, split=0.5)


@pytest.mark.parametrize("split", [-0.1, 1.0, 2.0])
def test_splits_that_leave_nothing_to_learn_are_refused(split: float) -> None:
    with pytest.raises(B4MError, match="outside"):
        start(split=split)


def test_gain_is_alpha_over_rank_in_forward_and_in_the_exported_pair() -> None:
    pair = LoRADelta(torch.randn(12, 4), torch.randn(4, 20), scaling=0.25)
    x = torch.randn(3, 20)
    expected = 0.25 * (x @ pair.down.T @ pair.up.T)
    torch.testing.assert_close(pair(x), expected)
    torch.testing.assert_close(pair.lowrank().apply(x), expected)
    torch.testing.assert_close(FrozenDelta(pair.lowrank())(x), expected)


def test_exported_pairs_do_not_follow_further_training() -> None:
    pair = LoRADelta(torch.randn(12, 4), torch.randn(4, 20))
    before = pair.lowrank()
    kept = LowRank(before.up.clone(), before.down.clone())
    train(pair, seed=1)
    assert torch.equal(before.up, kept.up)
    assert torch.equal(before.down, kept.down)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pairs_compute_in_the_inputs_dtype_and_learn_in_their_own(dtype: torch.dtype) -> None:
    for module in (start(), LoRADelta(torch.ones(12, 4), torch.ones(4, 20))):
        y = module(torch.ones(2, 20, dtype=dtype))
        y.sum().backward()
        assert y.dtype == dtype
        assert module.down_learnable.grad.dtype == torch.float32
