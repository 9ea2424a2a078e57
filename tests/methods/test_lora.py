"""Plain LoRA: learns its picture, repeats itself, says what it is."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from b4m.bases import load_base
from b4m.bases.base import Base
from b4m.bases.sampling import sample
from b4m.errors import B4MError
from b4m.files import write_adapter
from b4m.methods import merge_rule, sampler, training
from b4m.training.plain import start_pairs
from tests import runs

FAST = {"rank": 4, "steps": 4, "batch_size": 2, "accumulation": 1, "lr": 3e-3}


class Watch:
    """Keeps reports and sample pictures."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.images: list[int] = []

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.losses.append(values["content/loss"])

    def image(self, name: str, image: object, step: int) -> None:
        self.images.append(step)


def test_training_lowers_the_loss_of_its_picture(
    base: Base, prepared: Path, tmp_path: Path, loss_of: Callable[..., float]
) -> None:
    watch = Watch()
    settings = {**FAST, "steps": 30, "batch_size": 8, "lr": 2e-2, "sample_every": 20}
    adapter = runs.train("lora", "content", prepared, "teapot", base, tmp_path, watch, **settings)
    before, after = (loss_of("content", "teapot", each) for each in (None, adapter))
    assert after < 0.95 * before
    assert len(watch.losses) == 3
    assert watch.images == [20]


def test_the_base_is_left_as_it_was(base: Base, prepared: Path, tmp_path: Path) -> None:
    before = sample(base, ["a snq teapot"], [0], steps=2)[0].tobytes()
    settings = {**FAST, "gradient_checkpointing": True}
    runs.train("lora", "content", prepared, "teapot", base, tmp_path, **settings)
    assert sample(base, ["a snq teapot"], [0], steps=2)[0].tobytes() == before
    assert not any(len(module._forward_hooks) for module in base.model.modules())


def test_the_same_command_gives_the_same_bytes(base: Base, prepared: Path, tmp_path: Path) -> None:
    def run(name: str, **more: object) -> bytes:
        work = tmp_path / name
        adapter = runs.train("lora", "style", prepared, "stripes", base, work, **FAST, **more)
        return write_adapter(tmp_path / f"{name}.safetensors", adapter).read_bytes()

    first = run("a")
    assert run("b") == first
    assert run("c", seed=1) != first


def test_gradient_checkpointing_changes_memory_and_not_the_result(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    plain, saving = (
        runs.train(
            "lora", "content", prepared, "teapot", base, tmp_path / str(kind),
            **FAST, gradient_checkpointing=kind,
        )
        for kind in (False, True)
    )  # fmt: skip
    for name, pair in plain.layers.items():
        torch.testing.assert_close(saving.layers[name].up, pair.up, rtol=1e-4, atol=1e-6)


def test_a_half_precision_base_trains_a_float32_adapter(
    tiny_base: Path, prepared: Path, tmp_path: Path
) -> None:
    half = load_base(str(tiny_base), device="cpu", dtype="bf16")
    adapter = runs.train("lora", "content", prepared, "teapot", half, tmp_path, **FAST)
    assert {pair.up.dtype for pair in adapter.layers.values()} == {torch.float32}
    assert all(pair.up.any() and torch.isfinite(pair.up).all() for pair in adapter.layers.values())
    (image,) = sample(half, ["a snq teapot"], [0], deltas=adapter, steps=2)
    assert image.size == (32, 32)


def test_a_block_filter_trains_only_its_blocks_from_the_same_start(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    what = ("content", prepared, "teapot", base, tmp_path)
    every, some = (
        start_pairs(run, run.linears())
        for blocks in ("", "up_blocks.0")
        for run in [runs.open_run("lora", *what, **FAST, blocks=blocks)]
    )
    assert set(every) == set(base.linears())
    assert set(some) == {name for name in every if name.startswith("up_blocks.0.")}
    for name, pair in some.items():
        assert torch.equal(pair.lowrank().down, every[name].lowrank().down)


def test_alpha_scales_what_is_learnt(base: Base, prepared: Path, tmp_path: Path) -> None:
    settings = {**FAST, "steps": 1, "weight_decay": 0.0, "clip": 0.0}
    plain, doubled = (
        runs.train("lora", "content", prepared, "teapot", base, tmp_path, **settings, alpha=alpha)
        for alpha in (0.0, 8.0)
    )
    name = next(iter(plain.layers))
    # Adam's first step moves each entry by the rate, whatever the gradient's size.
    torch.testing.assert_close(
        doubled.layers[name].up, 2 * plain.layers[name].up, rtol=5e-3, atol=5e-5
    )


def test_the_adapter_says_what_it_is(base: Base, prepared: Path, tmp_path: Path) -> None:
    said = runs.train("lora", "style", prepared, "stripes", base, tmp_path, **FAST).metadata
    assert (said.method, said.stage, said.concept, said.style) == (
        "lora",
        "style",
        "stripes",
        "stripes",
    )
    assert said.triggers == {"style": "w@z"}
    assert (said.base_hash, said.rank, said.seed) == (base.hash, 4, 0)
    assert said.config["settings"]["lr"] == 3e-3


def test_unknown_methods_are_answered_with_the_known_ones() -> None:
    for look_up, what, known in (
        (training, "way of training", "lora"),
        (merge_rule, "method", "direct"),
        (sampler, "way to combine adapters", "klora"),
    ):
        with pytest.raises(B4MError, match=f"unknown {what} 'magic'; known: .*{known}"):
            look_up("magic")
