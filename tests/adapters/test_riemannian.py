"""Claims of the Riemannian preconditioner: PEFT's optimizer, mathematics, and its own state."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from b4m.adapters.deltas import PLP, LoRADelta
from b4m.adapters.lowrank import LowRank
from b4m.adapters.riemannian import RiemannianAdamW, damped_inverses, preconditioned
from b4m.errors import B4MError

OUT, INTO, RANK = 7, 9, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class RiemannianSGD(torch.optim.SGD):
    """The plain preconditioned step, p -= lr G."""

    def __init__(
        self, pairs: list[nn.Module], lr: float, lr_up: float = 0.0, damping: float = 0.01
    ):
        self.pairs, self.damping = pairs, damping
        ups = {"params": [pair.up_learnable for pair in pairs], "lr": lr_up or lr}
        super().__init__([{"params": [pair.down_learnable for pair in pairs]}, ups], lr=lr)

    def step(self) -> None:
        with preconditioned(self.pairs, self.damping):
            super().step()


def drawn() -> LoRADelta:
    return LoRADelta(normal(OUT, RANK, seed=1), normal(RANK, INTO, seed=2))


def plp(seed: int = 0) -> PLP:
    generator = torch.Generator().manual_seed(seed)
    return PLP.start(OUT, INTO, RANK, generator, layer="x", basis_seed=0).double()


def backward(pair: nn.Module, step: int = 0) -> Tensor:
    """Gradients of a smooth loss of dW alone; returns the gradient with respect to dW."""
    pair.zero_grad()
    target = normal(OUT, INTO, seed=100 + step)
    delta = pair.up @ pair.down
    delta.retain_grad()
    (torch.sin(delta) - target).square().sum().backward()
    return delta.grad


def train(optimizer: torch.optim.Optimizer, pairs: list[nn.Module], steps: range) -> None:
    for step in steps:
        for k, pair in enumerate(pairs):
            backward(pair, 10 * step + k)
        optimizer.step()


def test_plain_step_is_the_closed_form() -> None:
    pair = drawn()
    up, down = pair.up.detach().clone(), pair.down.detach().clone()
    gradient = backward(pair)
    RiemannianSGD([pair], lr=0.1, lr_up=0.2, damping=0.05).step()
    damp = 0.05 * torch.eye(RANK, dtype=torch.float64)
    expected_down = down - 0.1 * torch.linalg.inv(up.T @ up + damp) @ up.T @ gradient
    expected_up = up - 0.2 * gradient @ down.T @ torch.linalg.inv(down @ down.T + damp)
    torch.testing.assert_close(pair.down.detach(), expected_down)
    torch.testing.assert_close(pair.up.detach(), expected_up)


def test_rank_one_step_is_the_gradient_over_the_other_factors_length() -> None:
    pair = LoRADelta(torch.tensor([[3.0], [4.0]]), torch.tensor([[2.0, 0.0]]))
    pair.down_learnable.grad = torch.tensor([[5.0, 10.0]])
    pair.up_learnable.grad = torch.tensor([[8.0], [4.0]])
    RiemannianSGD([pair], lr=1.0, damping=0.0).step()
    torch.testing.assert_close(pair.down.detach(), torch.tensor([[2.0 - 0.2, -0.4]]))
    torch.testing.assert_close(pair.up.detach(), torch.tensor([[3.0 - 2.0], [4.0 - 1.0]]))


def test_plain_step_does_not_depend_on_the_choice_of_factors() -> None:
    change = normal(RANK, RANK, seed=5) + 3 * torch.eye(RANK, dtype=torch.float64)
    first = drawn()
    second = LoRADelta(first.up @ change, torch.linalg.inv(change) @ first.down)
    euclidean = [copy.deepcopy(first), copy.deepcopy(second)]
    optimizers = [RiemannianSGD([p], lr=0.02, damping=0.0) for p in (first, second)]
    for step in range(5):
        for pair, optimizer in zip((first, second), optimizers, strict=True):
            backward(pair, step)
            optimizer.step()
        difference = first.lowrank().dense() - second.lowrank().dense()
        assert float(difference.abs().max()) < 1e-6
    for pair in euclidean:
        backward(pair)
        torch.optim.SGD(pair.parameters(), lr=0.02).step()
    assert float((euclidean[0].lowrank().dense() - euclidean[1].lowrank().dense()).norm()) > 1e-2


class Net(nn.Module):
    """Two linears, as PEFT wants to see a model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_steps_equal_pefts_riemannian_optimizer(kind: str) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_riemannian_optimizer

    torch.manual_seed(0)
    base = Net().double()
    config = LoraConfig(r=3, lora_alpha=3, target_modules=["first", "last"])
    model = get_peft_model(copy.deepcopy(base), config).double()
    layers = [model.base_model.model.first, model.base_model.model.last]
    pairs = [LoRADelta(m.lora_B["default"].weight, m.lora_A["default"].weight) for m in layers]
    assert not pairs[0].up.any()  # both start at up = 0
    if kind == "adamw":
        theirs = create_riemannian_optimizer(
            model, torch.optim.AdamW, lr=1e-2, reg=1e-2, weight_decay=0.1
        )
        ours = RiemannianAdamW(pairs, lr=1e-2, damping=1e-2, weight_decay=0.1)
    else:
        theirs = create_riemannian_optimizer(model, torch.optim.SGD, lr=1e-2, reg=1e-2)
        ours = RiemannianSGD(pairs, lr=1e-2, damping=1e-2)

    def adapted(x: Tensor) -> Tensor:
        hidden = torch.tanh(base.first(x) + pairs[0](x))
        return base.last(hidden) + pairs[1](hidden)

    for step in range(20):
        x, y = normal(4, 6, seed=step), normal(4, 5, seed=50 + step)
        for forward, optimizer in ((model, theirs), (adapted, ours)):
            optimizer.zero_grad()
            (forward(x) - y).square().mean().backward()
            optimizer.step()
        for module, pair in zip(layers, pairs, strict=True):
            torch.testing.assert_close(
                pair.up, module.lora_B["default"].weight, rtol=1e-9, atol=1e-12
            )
            torch.testing.assert_close(
                pair.down, module.lora_A["default"].weight, rtol=1e-9, atol=1e-12
            )
    assert pairs[1].lowrank().norm() > 0


@pytest.mark.parametrize("damping", [0.0, 1e-2])
def test_survives_up_of_zero(damping: float) -> None:
    pair = LoRADelta.start(OUT, INTO, RANK, torch.Generator().manual_seed(0)).double()
    optimizer = RiemannianAdamW([pair], lr=1e-2, damping=damping)
    train(optimizer, [pair], range(5))
    assert all(bool(torch.isfinite(p).all()) for p in pair.parameters())
    assert pair.lowrank().norm() > 0


def test_preconditioner_of_a_plp_sees_the_whole_factors() -> None:
    pair = plp()
    nn.init.normal_(pair.up_learnable)
    backward(pair)
    plain_down = pair.down_learnable.grad.clone()
    plain_up = pair.up_learnable.grad.clone()
    damp = 0.3 * torch.eye(RANK, dtype=torch.float64)
    with preconditioned([pair], 0.3):
        whole = pair.up_frozen.T @ pair.up_frozen + pair.up_learnable.T @ pair.up_learnable
        torch.testing.assert_close(
            pair.down_learnable.grad, torch.linalg.inv(whole + damp) @ plain_down
        )
        torch.testing.assert_close(
            pair.up_learnable.grad,
            plain_up @ torch.linalg.inv((pair.down @ pair.down.T).detach() + damp),
        )
    assert torch.equal(pair.down_learnable.grad, plain_down)
    assert torch.equal(pair.up_learnable.grad, plain_up)


def test_freezing_and_preconditioning_commute() -> None:
    frozen = plp()
    nn.init.normal_(frozen.up_learnable)
    whole = LoRADelta(frozen.up, frozen.down)
    for pair in (frozen, whole):
        backward(pair)
        RiemannianSGD([pair], lr=0.1).step()
    torch.testing.assert_close(frozen.up_learnable, whole.up_learnable[OUT // 2 :])
    torch.testing.assert_close(frozen.down_learnable, whole.down_learnable[:, INTO // 2 :])


def test_frozen_blocks_stay_and_have_no_state() -> None:
    pair = plp()
    up, down = pair.up_frozen.clone(), pair.down_frozen.clone()
    optimizer = RiemannianAdamW([pair], lr=1e-2, weight_decay=0.1)
    train(optimizer, [pair], range(10))
    assert torch.equal(pair.up_frozen, up)
    assert torch.equal(pair.down_frozen, down)
    held = sum(state["exp_avg"].numel() for state in optimizer.state.values())
    assert held == pair.up_learnable.numel() + pair.down_learnable.numel()


def test_state_dict_round_trip_continues_with_the_same_bits() -> None:
    whole, part = [drawn(), plp()], [drawn(), plp()]
    train(RiemannianAdamW(whole, lr=1e-2), whole, range(12))
    first = RiemannianAdamW(part, lr=1e-2)
    train(first, part, range(5))
    stream = io.BytesIO()
    torch.save([first.state_dict(), [pair.state_dict() for pair in part]], stream)
    stream.seek(0)
    state, weights = torch.load(stream, weights_only=True)
    resumed = [drawn(), plp(seed=9)]
    for pair, saved in zip(resumed, weights, strict=True):
        pair.load_state_dict(saved)
    second = RiemannianAdamW(resumed, lr=1.0)
    second.load_state_dict(state)
    train(second, resumed, range(5, 12))
    for left, right in zip(whole, resumed, strict=True):
        assert torch.equal(left.up, right.up)
        assert torch.equal(left.down, right.down)


def test_it_acts_a_run_with_it_differs_from_one_without() -> None:
    with_it, without = [drawn()], [drawn()]
    train(RiemannianAdamW(with_it, lr=1e-2), with_it, range(5))
    plain = torch.optim.AdamW(without[0].parameters(), lr=1e-2)
    train(plain, without, range(5))
    difference = with_it[0].lowrank() - without[0].lowrank()
    assert difference.norm() > 1e-2


def test_factors_can_have_learning_rates_of_their_own() -> None:
    pair = drawn()
    optimizer = RiemannianAdamW([pair], lr=1e-2, lr_up=0.0)
    up = pair.up.detach().clone()
    train(optimizer, [pair], range(3))
    assert torch.equal(pair.up, up)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]


def test_a_factor_without_gradient_is_left_alone() -> None:
    pair = drawn()
    backward(pair)
    pair.up_learnable.grad = None
    up, down = pair.up.detach().clone(), pair.down.detach().clone()
    RiemannianAdamW([pair], lr=1e-2).step()
    assert pair.up_learnable.grad is None
    assert torch.equal(pair.up, up)
    assert not torch.equal(pair.down, down)


def test_half_precision_pairs_are_preconditioned_in_float32() -> None:
    pair = LoRADelta(normal(OUT, RANK).bfloat16(), normal(RANK, INTO, seed=1).bfloat16())
    exact = LoRADelta(pair.up.detach().float(), pair.down.detach().float())
    for p in (pair, exact):
        p.up_learnable.grad = torch.ones_like(p.up)
        p.down_learnable.grad = torch.ones_like(p.down)
    with preconditioned([pair, exact], 1e-2):
        for half, full in zip(pair.parameters(), exact.parameters(), strict=True):
            assert half.grad.dtype == torch.bfloat16
            torch.testing.assert_close(half.grad.float(), full.grad, rtol=8e-3, atol=1e-3)


def test_inverses_of_many_sizes_come_back_in_order() -> None:
    grams = [normal(n, n + 2, seed=n) for n in (3, 5, 3, 1)]
    grams = [g @ g.T for g in grams] + [torch.zeros(3, 3, dtype=torch.float64)]
    found = damped_inverses(grams, 0.1)
    for gram, inverse in zip(grams, found, strict=True):
        damp = 0.1 * torch.eye(gram.shape[0], dtype=torch.float64)
        torch.testing.assert_close(inverse, torch.linalg.inv(gram + damp))
    singular = damped_inverses(grams, 0.0)[-1]
    assert not singular.any()  # the pseudo-inverse of zero


def test_misuse_is_refused() -> None:
    with pytest.raises(B4MError, match="at least one"):
        RiemannianAdamW([])
    with pytest.raises(B4MError, match="damping >= 0"):
        RiemannianAdamW([drawn()], damping=-1.0)
    with pytest.raises(ValueError, match="closure"):
        RiemannianAdamW([drawn()]).step(lambda: 0.0)


def test_learning_rate_schedules_reach_both_factors() -> None:
    pair = drawn()
    optimizer = RiemannianAdamW([pair], lr=1.0, lr_up=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1**step)
    train(optimizer, [pair], range(1))
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.05])
    assert isinstance(pair.lowrank(), LowRank)
