"""Pictures drawn here are the ones that diffusers draws from the same files, without b4m."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from b4m.adapters.adapter import Adapter
from b4m.adapters.attach import AdaptedModel
from b4m.adapters.deltas import FrozenDelta
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.bases import load_base
from b4m.bases.base import Base
from b4m.bases.sampling import sample
from b4m.errors import B4MError
from b4m.files import read_adapter, write_adapter

OUTSIDE = """
import sys
import torch
from diffusers import StableDiffusionXLPipeline

def draw(base, out, *adapters):
    pipe = StableDiffusionXLPipeline.from_pretrained(base, add_watermarker=False)
    for adapter in adapters:
        pipe.load_lora_weights(f"{out}/{adapter}.safetensors")
        for seed in (3, 4):
            picture = pipe(
                "a snq cat in w@z style", num_inference_steps=4, guidance_scale=3.0,
                generator=torch.Generator("cpu").manual_seed(seed),
            ).images[0]
            picture.save(f"{out}/{adapter}-{seed}.png")
        pipe.unload_lora_weights()

if __name__ == "__main__":
    draw(*sys.argv[1:])
    assert not any(name == "b4m" or name.startswith("b4m.") for name in sys.modules)
"""


def draw_here(*given: str) -> None:
    """Diffusers in this process: it imports in seconds what is imported here already."""
    names: dict[str, Any] = {"__name__": "outside"}
    exec(OUTSIDE, names)
    names["draw"](*given)


def draw_alone(*given: str) -> None:
    """Diffusers in a process that never sees b4m."""
    # PEFT would import torchvision, which PyPI has for CUDA alone
    script = "import sys; sys.modules['torchvision'] = None\n" + OUTSIDE
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-c", script, *given]
    subprocess.run(command, check=True, env=environment, cwd=given[1])


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


def adapter_for(base: Base, rank: int = 4, seed: int = 1, size: float = 0.1) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: LowRank(
            torch.randn(linear.out_features, rank, generator=generator) * size,
            torch.randn(rank, linear.in_features, generator=generator) * size,
        )
        for name, linear in base.linears().items()
    }
    return Adapter(layers)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.int16)


@pytest.mark.parametrize("draw", [draw_here, pytest.param(draw_alone, marks=pytest.mark.slow)])
def test_diffusers_draws_the_same_pictures_from_the_files_without_b4m(
    base: Base, tiny_base: Path, tmp_path: Path, draw: Callable[..., None]
) -> None:
    single, other = adapter_for(base), adapter_for(base, rank=2, seed=2)
    merged = Adapter({name: pair + other.layers[name] for name, pair in single.layers.items()})
    adapters = {"single": single, "merged": merged}
    for name, adapter in adapters.items():
        write_adapter(tmp_path / f"{name}.safetensors", adapter)
    draw(str(tiny_base), str(tmp_path), *adapters)
    prompt = "a snq cat in w@z style"
    plain = sample(base, [prompt], [3, 4], steps=4, guidance=3.0)
    for name in adapters:
        read = read_adapter(tmp_path / f"{name}.safetensors")
        alone, together = (
            sample(base, [prompt], [3, 4], deltas=read, steps=4, guidance=3.0, batch_size=size)
            for size in (1, 2)
        )
        for index, seed in enumerate((3, 4)):
            with Image.open(tmp_path / f"{name}-{seed}.png") as opened:
                theirs = pixels(opened)
            assert np.array_equal(pixels(alone[index]), theirs)
            # Sums within a larger batch are rounded in another order.
            assert np.abs(pixels(together[index]) - theirs).max() <= 1
            assert np.abs(pixels(plain[index]) - theirs).max() > 10, "the adapter is seen"


def test_noise_depends_on_the_seed_alone(base: Base) -> None:
    prompts = ["a cat", "a car"]
    together = sample(base, prompts, [0, 1], steps=3, batch_size=4)
    for index, (prompt, seed) in enumerate([(p, s) for p in prompts for s in (0, 1)]):
        (alone,) = sample(base, [prompt], [seed], steps=3)
        assert np.abs(pixels(alone) - pixels(together[index])).max() <= 1
    assert np.abs(pixels(together[0]) - pixels(together[1])).max() > 10


def test_an_adapter_and_its_deltas_draw_the_same_and_leave_the_base_alone(base: Base) -> None:
    adapter = adapter_for(base)
    before = sample(base, ["a cat"], [0], steps=2)
    from_adapter = sample(base, ["a cat"], [0], deltas=adapter, steps=2)
    deltas = {name: FrozenDelta(pair) for name, pair in adapter.layers.items()}
    from_deltas = sample(base, ["a cat"], [0], deltas=deltas, steps=2)
    assert from_adapter[0].tobytes() == from_deltas[0].tobytes()
    assert before[0].tobytes() != from_adapter[0].tobytes()
    assert sample(base, ["a cat"], [0], steps=2)[0].tobytes() == before[0].tobytes()


@pytest.mark.parametrize("number", [0, 1])
def test_text_encoder_layers_are_used_and_taken_off(base: Base, number: int) -> None:
    # the name that files carry; transformers' own module path may lack its first level
    name = "text_model.encoder.layers.0.self_attn.q_proj"
    modules = dict(base.text_encoders[number].named_modules())
    linear = modules.get(name) or modules[name.removeprefix("text_model.")]
    network = ("text_encoder", "text_encoder_2")[number]
    generator = torch.Generator().manual_seed(0)
    pair = LowRank(
        torch.randn(linear.out_features, 2, generator=generator),
        torch.randn(2, linear.in_features, generator=generator),
    )
    adapter = Adapter(adapter_for(base).layers, text_layers={f"{network}.{name}": pair})
    plain = sample(base, ["a cat"], [0], deltas=adapter_for(base), steps=2)
    with_text = sample(base, ["a cat"], [0], deltas=adapter, steps=2)
    assert plain[0].tobytes() != with_text[0].tobytes()
    again = sample(base, ["a cat"], [0], deltas=adapter_for(base), steps=2)
    assert plain[0].tobytes() == again[0].tobytes()


def test_a_step_hook_chooses_per_step_what_is_added(base: Base) -> None:
    adapter = adapter_for(base)
    seen: list[int] = []

    def first_step_only(step: int, adapted: AdaptedModel) -> None:
        seen.append(step)
        adapted.use("merged" if step == 0 else None)

    def never(step: int, adapted: AdaptedModel) -> None:
        adapted.use(None)

    def draw(hook: object) -> bytes:
        return sample(base, ["a cat"], [0], deltas=adapter, steps=3, step_hook=hook)[0].tobytes()

    partly, off = draw(first_step_only), draw(never)
    assert seen == [0, 1, 2]
    assert off == sample(base, ["a cat"], [0], steps=3)[0].tobytes()
    assert len({partly, off, draw(None)}) == 3


def test_an_adapter_of_another_base_is_refused(base: Base) -> None:
    layers = adapter_for(base).layers
    other = Adapter(layers, Metadata(method="lora", base_id="elsewhere", base_hash="f" * 64))
    with pytest.raises(B4MError, match=r"trained on base elsewhere \(ffffffffffff\), this base is"):
        sample(base, ["a cat"], [0], deltas=other, steps=1)
    name, pair = next(iter(layers.items()))
    narrow = Adapter({name: LowRank(pair.up[1:], pair.down)})
    with pytest.raises(B4MError, match="is the adapter made for another base"):
        sample(base, ["a cat"], [0], deltas=narrow, steps=1)
    assert not any(len(module._forward_hooks) for module in base.model.modules())


def test_negative_prompt_and_guidance_change_the_picture(base: Base) -> None:
    plain = sample(base, ["a cat"], [0], steps=3)[0].tobytes()
    negative = sample(base, ["a cat"], [0], steps=3, negative="a red car")[0].tobytes()
    free = sample(base, ["a cat"], [0], steps=3, guidance=1.0)[0].tobytes()
    assert len({plain, negative, free}) == 3
