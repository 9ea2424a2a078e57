"""Layers of the text encoders: trained with the denoiser's, kept in one file, carried by merges."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from b4m import verbs
from b4m.bases.base import Base
from b4m.bases.sampling import encode_prompts_with, sample
from b4m.errors import B4MError
from b4m.files import read_adapter
from b4m.training import checkpoint
from b4m.training.text_layers import TextLayers
from tests import runs

SETTINGS = {"rank": 2, "steps": 6, "batch_size": 2, "accumulation": 1, "lr": 1e-2}
TEXT = {**SETTINGS, "text_lr": 1e-2, "text_rank": 3}
PROMPT = "a snq teapot in w@z style"
OUTSIDE = """
import sys
sys.modules["torchvision"] = None  # PEFT would import it, and PyPI has it for CUDA alone
import torch
from diffusers import StableDiffusionXLPipeline

base, file, out, prompt = sys.argv[1:]
pipe = StableDiffusionXLPipeline.from_pretrained(base, add_watermarker=False)
pipe.load_lora_weights(file)
generator = torch.Generator("cpu").manual_seed(3)
pipe(prompt, num_inference_steps=4, guidance_scale=3.0, generator=generator).images[0].save(out)
assert not any(name.split(".")[0] == "b4m" for name in sys.modules)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("B4M_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("B4M_TRACKING", "off")
    return tmp_path


def style(work: Path, base: Path, data: Path, method: str, **settings: object) -> Path:
    out = work / f"style-{method}-{len(settings)}.safetensors"
    return verbs.train("style", data, "stripes", out, method, str(base), settings=settings)


def content(work: Path, base: Path, data: Path, method: str, **settings: object) -> Path:
    out = work / f"content-{method}-{len(settings)}.safetensors"
    return verbs.train("content", data, "teapot", out, method, str(base), settings=settings)


@pytest.mark.parametrize("method", ["lora", "b4m"])
def test_both_encoders_are_trained_only_if_asked_for(
    work: Path, tiny_base: Path, prepared: Path, base: Base, method: str
) -> None:
    plain = read_adapter(style(work, tiny_base, prepared, method, **SETTINGS))
    assert not plain.text_layers
    adapter = read_adapter(style(work, tiny_base, prepared, method, **TEXT))
    assert set(adapter.text_layers) == set(base.text_linears())
    assert set(adapter.text_networks()) == {"text_encoder", "text_encoder_2"}
    assert {pair.rank for pair in adapter.text_layers.values()} == {3}
    assert {pair.rank for pair in adapter.layers.values()} == {2}
    # the last block of either encoder is behind what SDXL reads, and learns through the pooled
    # vector of the second alone; all others have moved
    moved = [name for name, pair in adapter.text_layers.items() if pair.norm() > 0]
    assert len(moved) >= len(adapter.text_layers) // 2


def test_diffusers_draws_the_same_image_from_the_file(
    work: Path, tiny_base: Path, prepared: Path, base: Base
) -> None:
    file = verbs.train(
        "style", prepared, "stripes", work / "s.safetensors", "lora", str(tiny_base),
        settings={**TEXT, "steps": 12},
    )  # fmt: skip
    script, out = work / "outside.py", work / "outside.png"
    script.write_text(OUTSIDE)
    subprocess.run(
        [sys.executable, str(script), str(tiny_base), str(file), str(out), PROMPT],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        cwd=work,
    )
    adapter = read_adapter(file)
    (inside,) = sample(base, [PROMPT], [3], deltas=adapter, steps=4, guidance=3.0)
    with Image.open(out) as opened:
        theirs = np.asarray(opened.convert("RGB"), np.int16)
    assert np.abs(np.asarray(inside, np.int16) - theirs).max() <= 1
    bare = type(adapter)(adapter.layers, adapter.metadata)
    (without,) = sample(base, [PROMPT], [3], deltas=bare, steps=4, guidance=3.0)
    assert np.abs(np.asarray(without, np.int16) - theirs).max() > 1, "the text layers are seen"


@pytest.mark.parametrize("method", ["direct", "svd", "tsv", "ziplora", "duolora", "ssr", "blora"])
def test_merges_carry_the_text_layers(
    work: Path, tiny_base: Path, prepared: Path, method: str
) -> None:
    parts = (
        content(work, tiny_base, prepared, "lora", **SETTINGS),
        style(work, tiny_base, prepared, "lora", **TEXT),
    )
    settings = {"steps": 2, "bank": 2} if method in ("ziplora", "duolora") else {}
    out = verbs.merge(
        parts, work / f"{method}.safetensors", method, str(tiny_base), prepared, settings=settings
    )
    merged, own = read_adapter(out), read_adapter(parts[1])
    assert set(merged.text_layers) == set(own.text_layers)
    for name, pair in own.text_layers.items():
        torch.testing.assert_close(
            merged.text_layers[name].dense(), pair.dense(), atol=1e-6, rtol=1e-4
        )


def test_make_carries_the_text_layers_of_both_halves(
    work: Path, tiny_base: Path, prepared: Path
) -> None:
    parts = (
        content(work, tiny_base, prepared, "b4m", **TEXT),
        style(work, tiny_base, prepared, "b4m", **TEXT),
    )
    out = verbs.merge(
        parts, work / "made.safetensors", "b4m", str(tiny_base), prepared,
        settings={"steps": 2, "batch_size": 1, "accumulation": 1},
    )  # fmt: skip
    both = read_adapter(parts[0]) + read_adapter(parts[1])
    merged = read_adapter(out)
    for name, pair in both.text_layers.items():
        torch.testing.assert_close(merged.text_layers[name].dense(), pair.dense())


def test_prompts_under_text_layers_are_encoded_anew_and_the_encoders_are_left_alone(
    work: Path, tiny_base: Path, prepared: Path, base: Base
) -> None:
    adapter = read_adapter(style(work, tiny_base, prepared, "lora", **TEXT))
    with torch.no_grad():
        before = base.encode_prompts([PROMPT]).tensors
        under = encode_prompts_with(base, adapter, [PROMPT]).tensors
        after = base.encode_prompts([PROMPT]).tensors
    assert not torch.equal(before["hidden"], under["hidden"])
    assert torch.equal(before["hidden"], after["hidden"])


def test_an_interrupted_training_ends_with_the_same_bytes(
    work: Path, tiny_base: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**TEXT, "checkpoint_every": 2, "ema_decay": 0.5, "schedule": "cosine"}
    whole = style(work, tiny_base, prepared, "lora", **settings).read_bytes()
    monkeypatch.setenv("B4M_WORK", str(work / "other"))
    write = checkpoint.write_checkpoint

    def stop(*args: object, **kwargs: object) -> None:
        write(*args, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    out = work / "again.safetensors"
    arguments = ("style", prepared, "stripes", out, "lora", str(tiny_base))
    with monkeypatch.context() as patched:
        patched.setattr("b4m.training.state.write_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            verbs.train(*arguments, settings=settings)
    assert not out.exists()
    verbs.train(*arguments, settings=settings)
    assert out.read_bytes() == whole


def test_restyled_copies_are_for_contents(work: Path, tiny_base: Path, prepared: Path) -> None:
    with pytest.raises(B4MError, match="restyle is for contents"):
        style(work, tiny_base, prepared, "lora", **SETTINGS, restyle=0.5)
    plain = content(work, tiny_base, prepared, "lora", **SETTINGS).read_bytes()
    out = work / "restyled.safetensors"
    verbs.train(
        "content", prepared, "teapot", out, "lora", str(tiny_base),
        settings={**SETTINGS, "restyle": 0.5, "restyle_copies": 4},
    )  # fmt: skip
    assert out.read_bytes() != plain


def test_encoders_are_chosen_with_ranks_rates_and_an_end_of_their_own(
    tmp_path: Path, prepared: Path, base: Base
) -> None:
    def layers(**settings: object) -> TextLayers:
        run = runs.open_run(
            "lora", "style", prepared, "stripes", base, tmp_path, **TEXT, **settings
        )
        return TextLayers(run)

    second = layers(text_encoders="second", text_rank_2=1, text_stop=0.5)
    assert {name.split(".")[0] for name in second.deltas} == {"text_encoder_2"}
    assert {delta.rank for delta in second.deltas.values()} == {1}
    assert [group.until for group in second.groups] == [3], "half of six steps"
    first = layers(text_encoders="first", text_rank_2=1, text_lr_2=1e-3)
    assert {name.split(".")[0] for name in first.deltas} == {"text_encoder"}
    assert {delta.rank for delta in first.deltas.values()} == {3}
    both = layers(text_lr_2=1e-3)
    rates = {
        group.optimizer.param_groups[0]["lr"]: {name.split(".")[0] for name in group.parameters}
        for group in both.groups
    }
    assert rates == {1e-2: {"text_encoder"}, 1e-3: {"text_encoder_2"}}
    assert [group.until for group in layers().groups] == [None]
