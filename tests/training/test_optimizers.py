"""Each optimizer is that of its paper or package, and goes on after a kill with the same bits."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from b4m.adapters.deltas import LoRADelta
from b4m.adapters.riemannian import RiemannianAdamW
from b4m.errors import B4MError
from b4m.training import optimizers
from b4m.training.loop import Batch, LoopConfig, fit
from b4m.training.optimizers import Learnable, Lion, build, numbers
from b4m.training.settings import OPTIMIZERS, Optimization
from b4m.training.state import ParameterGroup

DATA = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
WANTED = torch.randn(8, 5, generator=torch.Generator().manual_seed(2))
RATES = {"prodigy": 1.0, "lion": 3e-3}


class Killed(Exception):
    """Stands for the end of the process."""


def installed(name: str) -> bool:
    return name != "adamw8bit" or importlib.util.find_spec("bitsandbytes") is not None


AVAILABLE = [name for name in OPTIMIZERS if installed(name)]


def pair() -> LoRADelta:
    return LoRADelta.start(5, 6, 3, torch.Generator().manual_seed(0))


def group(name: str, delta: LoRADelta, ratio: float = 1.0) -> ParameterGroup:
    settings = Optimization.model_validate({"optimizer": name, "weight_decay": 0.1})
    optimizer = build(settings, Learnable.of([delta]), RATES.get(name, 1e-2), ratio)
    return ParameterGroup(dict(delta.named_parameters()), optimizer)


def step(model: torch.nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    return {"loss": (model(DATA[batch.rows]) - WANTED[batch.rows]).square().mean(1)}


def loss(delta: LoRADelta) -> float:
    return float((delta(DATA) - WANTED).square().mean().detach())


@pytest.mark.parametrize("name", AVAILABLE)
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path: Path, name: str) -> None:
    config = LoopConfig(30, batch_size=4, checkpoint_every=7, schedule="cosine", restarts=1)
    whole = pair()
    one = group(name, whole)
    before = loss(whole)
    fit(step, whole, [one], 8, config, workdir=tmp_path / "a", fingerprint="a")
    assert loss(whole) < before, "it learns"

    def deadly(model: torch.nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        if batch.position == 17:
            raise Killed
        return step(model, batch)

    first, second = pair(), pair()
    with pytest.raises(Killed):
        fit(
            deadly, first, [group(name, first)], 8, config, workdir=tmp_path, fingerprint="a"
        )  # fmt: skip
    two = group(name, second)
    fit(step, second, [two], 8, config, workdir=tmp_path, fingerprint="a")
    for ours, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert numbers(two.optimizer) == numbers(one.optimizer)


def test_lion_is_its_papers_rule() -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = Lion([p], lr=0.1, betas=(0.9, 0.99), weight_decay=0.2)
    value, momentum = p.detach().clone(), torch.zeros(3)
    for number in range(5):
        gradient = torch.tensor([0.3, -0.1, 0.2]) * (-1) ** number * (number + 1)
        p.grad = gradient.clone()
        optimizer.step()
        direction = torch.sign(0.9 * momentum + 0.1 * gradient)
        value = value - 0.1 * (direction + 0.2 * value)
        momentum = 0.99 * momentum + 0.01 * gradient
        torch.testing.assert_close(p.detach(), value)


def test_the_rate_of_the_up_factors_is_a_multiple_of_that_of_the_down_factors() -> None:
    """LoRA+: Adam's first step moves each entry by the rate, whatever the gradient's size."""
    delta = pair()
    delta.up_learnable.data.fill_(0.5)
    before = [p.detach().clone() for p in (delta.up_learnable, delta.down_learnable)]
    settings = Optimization(weight_decay=0.0)
    optimizer = build(settings, Learnable.of([delta]), 1e-3, up_ratio=16.0)
    delta(DATA).square().sum().backward()
    optimizer.step()
    moved = [
        (p - old).abs()
        for p, old in zip((delta.up_learnable, delta.down_learnable), before, strict=True)
    ]
    torch.testing.assert_close(moved[0], torch.full((5, 3), 16e-3), rtol=1e-3, atol=0)
    torch.testing.assert_close(moved[1], torch.full((3, 6), 1e-3), rtol=1e-3, atol=0)


def test_the_registry_builds_what_it_names() -> None:
    kinds = {name: type(group(name, pair()).optimizer).__name__ for name in AVAILABLE}
    wanted = {
        "adamw": "AdamW",
        "adamw8bit": "AdamW8bit",
        "prodigy": "Prodigy",
        "lion": "Lion",
        "adafactor": "Adafactor",
        "riemannian": RiemannianAdamW.__name__,
    }
    assert kinds == {name: wanted[name] for name in AVAILABLE}


def test_prodigys_estimate_is_told_and_grows() -> None:
    delta = pair()
    one = group("prodigy", delta)
    assert numbers(one.optimizer) == {"d": 1e-6}
    for _ in range(20):
        one.optimizer.zero_grad()
        (delta(DATA) - WANTED).square().mean().backward()
        one.optimizer.step()
    assert numbers(one.optimizer)["d"] > 1.5e-6
    assert numbers(group("adamw", pair()).optimizer) == {}


def test_what_does_not_go_together_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(name: str, learnable: Learnable, lr: float, ratio: float = 1.0) -> str:
        with pytest.raises(B4MError) as caught:
            build(Optimization.model_validate({"optimizer": name}), learnable, lr, ratio)
        return str(caught.value)

    both = Learnable.of([pair()])
    half = Learnable([pair().up_learnable], [])
    assert "finds the rate itself; set it to 1, not to 0.0001" in refused("prodigy", both, 1e-4)
    assert "leave out up_lr_ratio" in refused("prodigy", both, 1.0, 2.0)
    assert "one half is trained at a time" in refused("riemannian", half, 1e-4)

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(optimizers, "import_module", missing)
    wanted = "optimizer adamw8bit needs the package bitsandbytes: pip install bitsandbytes"
    assert refused("adamw8bit", both, 1e-4) == wanted
