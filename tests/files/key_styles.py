"""One small adapter under the names of every tool; the tests of files share it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata

DOWN = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
MID = "mid_block.attentions.0.transformer_blocks.3.attn2.to_out.0"
UP = "up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_k"
FEED = "up_blocks.1.attentions.1.transformer_blocks.1.ff.net.0.proj"
TEXT = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj"
TEXT_2 = "text_encoder_2.text_model.encoder.layers.0.mlp.fc1"
METADATA = Metadata(
    method="b4m",
    stage="merged",
    concept="fox+ink",
    content="fox",
    style="ink",
    rank=4,
    triggers={"content": "snq", "style": "w@z"},
    class_words={"content": "animal"},
    base_id="data/models/mini-sdxl",
    base_hash="abc",
    seed=3,
    basis_seed=7,
    split=0.5,
    role="content-down",
    config={"lr": 1e-4, "steps": 100, "note": "gr\u00f6\u00dfer"},
)


def pair(seed: int, out: int = 6, into: int = 5, rank: int = 4) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(out, rank, generator=generator)
    return LowRank(up, torch.randn(rank, into, generator=generator))


def adapter(text: bool = False, more: int = 1) -> Adapter:
    """Four layers of rank 4 and, in every other one, 4 + more."""
    layers = {name: pair(k, rank=4 + k % 2 * more) for k, name in enumerate([DOWN, MID, UP, FEED])}
    return Adapter(layers, METADATA, {TEXT: pair(7), TEXT_2: pair(8)} if text else {})


def named(style: Callable[[str, str], str], scale: float = 1.0) -> dict[str, Tensor]:
    """Tensors of three layers under another tool's names; up is divided by the scale."""
    tensors: dict[str, Tensor] = {}
    for name in (DOWN, MID, UP):
        tensors[style(name, "down")] = adapter().layers[name].down.clone()
        tensors[style(name, "up")] = adapter().layers[name].up / scale
    return tensors


def same(left: Mapping[str, LowRank], right: Mapping[str, LowRank]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[n].up, right[n].up) and torch.equal(left[n].down, right[n].down)
        for n in left
    )


def saved(folder: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> Path:
    save_file(tensors, folder / "some.safetensors", header)
    return folder / "some.safetensors"


def old_processor(name: str, part: str) -> str:
    stem, linear = re.sub(r"\.0$", "", name).rsplit(".", 1)
    return f"unet.{stem}.processor.{linear}_lora.{part}.weight"


def ldm(name: str) -> str:
    """The LDM path of a module, by the formula of the conversion scripts of diffusers."""
    block, i, kind, j, rest = re.match(
        r"(down_blocks|mid_block|up_blocks)\.?(\d?)\.(attentions)\.(\d)\.(.*)", name
    ).groups()
    if block == "mid_block":
        return f"middle_block.1.{rest}"
    if block == "down_blocks":
        return f"input_blocks.{3 * int(i) + int(j) + 1}.1.{rest}"
    return f"output_blocks.{3 * int(i) + int(j)}.1.{rest}"


AB = {"down": "A", "up": "B"}
STYLES: dict[str, Callable[[str, str], str]] = {
    "diffusers": lambda n, p: f"unet.{n}.lora.{p}.weight",
    "diffusers-peft": lambda n, p: f"unet.{n}.lora_{AB[p]}.weight",
    "diffusers-old": old_processor,
    "bare processors": lambda n, p: old_processor(n, p).removeprefix("unet."),
    "kohya": lambda n, p: f"lora_unet_{ldm(n).replace('.', '_')}.lora_{p}.weight",
    "kohya with diffusers blocks": lambda n, p: f"lora_unet_{n.replace('.', '_')}.lora_{p}.weight",
    "comfyui": lambda n, p: f"diffusion_model.{ldm(n)}.lora_{p}.weight",
    "comfyui with model prefix": lambda n, p: f"model.diffusion_model.{ldm(n)}.lora_{AB[p]}.weight",
}
