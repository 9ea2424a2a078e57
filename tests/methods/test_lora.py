"""Plain LoRA: learns its picture, repeats itself, says what it is."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from b4m.adapters.attach import attention_linears
from b4m.bases.sdxl import Base, load_base, sample
from b4m.config import TrainSettings
from b4m.errors import B4MError
from b4m.files.adapter_files import write_adapter
from b4m.methods import MERGES, SAMPLERS, TRAINERS

SETTINGS = TrainSettings(rank=4, steps=4, batch_size=2, accumulation=1, lr=3e-3)


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
    settings = replace(SETTINGS, steps=30, batch_size=8, lr=2e-2, sample_every=20)
    adapter = TRAINERS["lora"]("content", prepared, "teapot", base, settings, tmp_path, watch)
    before, after = (loss_of("content", "teapot", each) for each in (None, adapter))
    assert after < 0.95 * before
    assert len(watch.losses) == 3
    assert watch.images == [20]


def test_the_base_is_left_as_it_was(base: Base, prepared: Path, tmp_path: Path) -> None:
    before = sample(base, ["a snq teapot"], [0], steps=2)[0].tobytes()
    settings = replace(SETTINGS, gradient_checkpointing=True)
    TRAINERS["lora"]("content", prepared, "teapot", base, settings, tmp_path)
    assert sample(base, ["a snq teapot"], [0], steps=2)[0].tobytes() == before
    assert not any(len(module._forward_hooks) for module in base.unet.modules())


def test_the_same_command_gives_the_same_bytes(base: Base, prepared: Path, tmp_path: Path) -> None:
    def run(name: str, settings: TrainSettings) -> bytes:
        adapter = TRAINERS["lora"]("style", prepared, "stripes", base, settings, tmp_path / name)
        return write_adapter(tmp_path / f"{name}.safetensors", adapter).read_bytes()

    first = run("a", SETTINGS)
    assert run("b", SETTINGS) == first
    assert run("c", replace(SETTINGS, seed=1)) != first


def test_gradient_checkpointing_changes_memory_and_not_the_result(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    plain, saving = (
        TRAINERS["lora"](
            "content", prepared, "teapot", base, replace(SETTINGS, gradient_checkpointing=kind),
            tmp_path / str(kind),
        )
        for kind in (False, True)
    )  # fmt: skip
    for name, pair in plain.layers.items():
        torch.testing.assert_close(saving.layers[name].up, pair.up, rtol=1e-4, atol=1e-6)


def test_a_half_precision_base_trains_a_float32_adapter(
    tiny_base: Path, prepared: Path, tmp_path: Path
) -> None:
    half = load_base(str(tiny_base), device="cpu", dtype="bf16")
    adapter = TRAINERS["lora"]("content", prepared, "teapot", half, SETTINGS, tmp_path)
    assert {pair.up.dtype for pair in adapter.layers.values()} == {torch.float32}
    assert all(pair.up.any() and torch.isfinite(pair.up).all() for pair in adapter.layers.values())
    (image,) = sample(half, ["a snq teapot"], [0], deltas=adapter, steps=2)
    assert image.size == (32, 32)


def test_a_block_filter_trains_only_its_blocks_from_the_same_start(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=1, lr=0.0)
    every = TRAINERS["lora"]("content", prepared, "teapot", base, settings, tmp_path)
    some = TRAINERS["lora"](
        "content", prepared, "teapot", base, replace(settings, blocks="up_blocks.0"), tmp_path
    )
    assert set(every.layers) == set(attention_linears(base.unet))
    assert set(some.layers) == {name for name in every.layers if name.startswith("up_blocks.0.")}
    for name, pair in some.layers.items():
        assert torch.equal(pair.down, every.layers[name].down)


def test_alpha_scales_what_is_learnt(base: Base, prepared: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=1, weight_decay=0.0, clip=0.0)
    plain, doubled = (
        TRAINERS["lora"](
            "content", prepared, "teapot", base, replace(settings, alpha=alpha), tmp_path
        )
        for alpha in (0.0, 8.0)
    )
    name = next(iter(plain.layers))
    # Adam's first step moves each entry by the rate, whatever the gradient's size.
    torch.testing.assert_close(
        doubled.layers[name].up, 2 * plain.layers[name].up, rtol=5e-3, atol=5e-5
    )


def test_the_adapter_says_what_it_is(base: Base, prepared: Path, tmp_path: Path) -> None:
    said = TRAINERS["lora"]("style", prepared, "stripes", base, SETTINGS, tmp_path).metadata
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
    for registry, known in ((TRAINERS, "lora"), (MERGES, "direct"), (SAMPLERS, "klora")):
        assert known in registry
        with pytest.raises(B4MError, match=f"unknown method 'magic' .*; known: .*{known}"):
            registry["magic"]
