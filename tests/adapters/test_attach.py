"""Claims of the attached deltas, on a real UNet and on a small net."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from b4m.adapters.attach import AdaptedModel
from b4m.adapters.deltas import PLP, FrozenDelta, LoRADelta
from b4m.adapters.lowrank import LowRank
from b4m.bases.sdxl.model import attention_linears
from b4m.errors import B4MError
from tests.methods.draws import fixed


class Small(nn.Module):
    """A net with linears under attention's names and no more than that."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(5, 4), "to_k": nn.Linear(4, 3)})
        self.attn1.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn1["to_k"](torch.tanh(self.attn1["to_q"](x)))


def small(dtype: torch.dtype = torch.float32) -> Small:
    torch.manual_seed(0)
    return Small(dtype)


def draw(out: int, into: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(out, 2, generator=generator), torch.randn(2, into, generator=generator)
    )


def by_hand(net: Small, x: Tensor, q: LowRank | None, k: LowRank | None) -> Tensor:
    """The net with dW added into its weights."""
    to_q, to_k = net.attn1["to_q"], net.attn1["to_k"]
    weight_q = to_q.weight if q is None else to_q.weight + q.dense()
    weight_k = to_k.weight if k is None else to_k.weight + k.dense()
    return torch.tanh(x @ weight_q.T + to_q.bias) @ weight_k.T + to_k.bias


def test_deltas_act_like_weights_with_dw_added_and_sets_are_switched() -> None:
    net, x = small(), torch.randn(6, 5)
    q, k, other = draw(4, 5, 0), draw(3, 4, 1), draw(4, 5, 2)
    adapted = AdaptedModel(net, fixed({"attn1.to_q": q, "attn1.to_k": k}))
    adapted.add("style", fixed({"attn1.to_q": other}))
    torch.testing.assert_close(adapted(x), by_hand(net, x, q, k))
    adapted.use("style")
    torch.testing.assert_close(adapted(x), by_hand(net, x, other, None))
    adapted.use(None)
    assert torch.equal(adapted(x), net(x))
    adapted.use("merged")
    torch.testing.assert_close(adapted(x), by_hand(net, x, q, k))
    assert isinstance(adapted.deltas("style")["attn1.to_q"], FrozenDelta)


def test_removed_deltas_leave_the_net_as_it_was() -> None:
    net, x = small(), torch.randn(6, 5)
    before = net(x)
    adapted = AdaptedModel(net, fixed({"attn1.to_q": draw(4, 5, 0)}))
    assert not torch.equal(adapted(x), before)
    assert adapted.remove() is net
    assert torch.equal(net(x), before)


def test_only_the_deltas_learn_and_they_are_seen_as_parameters() -> None:
    net = small()
    pair = LoRADelta.start(4, 5, 2, torch.Generator())
    plp = PLP.start(3, 4, 2, torch.Generator(), layer="k", basis_seed=0)
    adapted = AdaptedModel(net, {"attn1.to_q": pair, "attn1.to_k": plp})
    learning = [p for p in adapted.parameters() if p.requires_grad]
    assert {id(p) for p in learning} == {id(p) for p in (*pair.parameters(), *plp.parameters())}
    adapted(torch.randn(6, 5)).square().sum().backward()
    assert all(p.grad is not None for p in learning)
    assert all(p.grad is None for p in net.parameters())
    assert any("up_frozen" in name for name, _ in adapted.named_buffers())


def test_gradients_are_those_of_the_dense_weights() -> None:
    net, x, start = small(), torch.randn(6, 5), draw(4, 5, 0)
    pair = LoRADelta(start.up, start.down)
    AdaptedModel(net, {"attn1.to_q": pair})(x).square().sum().backward()
    up, down = start.up.clone().requires_grad_(), start.down.clone().requires_grad_()
    by_hand(net, x, LowRank(up, down), None).square().sum().backward()
    torch.testing.assert_close(pair.up_learnable.grad, up.grad)
    torch.testing.assert_close(pair.down_learnable.grad, down.grad)


def test_a_half_precision_base_takes_float32_deltas() -> None:
    net, x = small(torch.bfloat16), torch.randn(6, 5)
    pair = LoRADelta(draw(4, 5, 0).up, draw(4, 5, 0).down)
    output = AdaptedModel(net, {"attn1.to_q": pair})(x.bfloat16())
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert pair.up_learnable.grad.dtype == torch.float32
    reference = by_hand(small(), x, draw(4, 5, 0), None)
    torch.testing.assert_close(output.float(), reference, rtol=0.05, atol=0.05)


def test_deltas_work_under_autocast() -> None:
    pair = LoRADelta(draw(4, 5, 0).up, draw(4, 5, 0).down)
    adapted = AdaptedModel(small(), {"attn1.to_q": pair})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = adapted(torch.randn(6, 5))
    output.float().sum().backward()
    assert pair.up_learnable.grad.dtype == torch.float32


def test_layers_of_another_base_are_refused() -> None:
    with pytest.raises(B4MError, match=r"1 of 2 layers.*attn1\.to_v.*another base"):
        AdaptedModel(small(), fixed({"attn1.to_q": draw(4, 5, 0), "attn1.to_v": draw(4, 5, 0)}))
    with pytest.raises(B4MError, match="4 x 5 in this base and 4 x 6 in the adapter"):
        AdaptedModel(small(), fixed({"attn1.to_q": draw(4, 6, 0)}))
    with pytest.raises(B4MError, match="there are: merged"):
        AdaptedModel(small(), {}).use("content")


def test_a_refused_set_leaves_no_hooks() -> None:
    net, x = small(), torch.randn(6, 5)
    adapted = AdaptedModel(net, {})
    with pytest.raises(B4MError):
        adapted.add("style", fixed({"attn1.to_q": draw(4, 5, 0), "attn1.to_k": draw(9, 9, 0)}))
    assert not net.attn1["to_q"]._forward_hooks
    assert torch.equal(adapted(x), net(x))


def test_a_unet_has_eight_attention_linears_per_transformer_block(tiny_base: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    linears = attention_linears(unet)
    blocks = {name.split(".attn")[0] for name in linears}
    assert len(linears) == 8 * len(blocks)
    assert "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0" in linears


@pytest.mark.parametrize("checkpointing", [False, True])
def test_deltas_train_in_a_real_unet(tiny_base: Path, checkpointing: bool) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    pairs = {
        name: LoRADelta.start(m.out_features, m.in_features, 2, torch.Generator().manual_seed(k))
        for k, (name, m) in enumerate(attention_linears(unet).items())
    }
    adapted = AdaptedModel(unet, pairs)
    generator = torch.Generator().manual_seed(0)
    config = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    x = torch.randn(2, config.in_channels, 8, 8, generator=generator, requires_grad=True)
    text = torch.randn(2, 5, config.cross_attention_dim, generator=generator)
    added = {"text_embeds": torch.ones(2, pooled), "time_ids": torch.ones(2, 6)}
    output = adapted(x, torch.tensor([1, 900]), text, added_cond_kwargs=added).sample
    output.square().mean().backward()
    gradients = [pair.up_learnable.grad for pair in pairs.values()]
    assert all(g is not None and bool(g.any()) for g in gradients)
