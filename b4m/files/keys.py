"""Names of LoRA tensors in every tool's style, and the one name that this library uses.

    style            example of a down factor (SDXL)
    diffusers        unet.down_blocks.1.attentions.0...attn1.to_q.lora.down.weight
    diffusers-peft   unet.down_blocks.1.attentions.0...attn1.to_q.lora_A.weight
    diffusers-old    unet.down_blocks.1.attentions.0...attn1.processor.to_q_lora.down.weight
    peft             base_model.model.down_blocks.1.attentions.0...attn1.to_q.lora_A.weight
    kohya            lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight
                     lora_unet_down_blocks_1_attentions_0_..._attn1_to_q.lora_down.weight
    comfyui          diffusion_model.input_blocks.4.1...attn1.to_q.lora_down.weight

The ending says which part of a pair a tensor is, the beginning which network it belongs to; what
stands between them is a layer's path, whose meaning is the base family's matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from b4m.bases.family import Family

# Endings, longer first where one ends with another: part of the pair, and the style if it tells.
_ENDINGS = {
    ".lora_linear_layer.down.weight": ("down", "diffusers"),
    ".lora_linear_layer.up.weight": ("up", "diffusers"),
    ".lora.down.weight": ("down", "diffusers"),
    ".lora.up.weight": ("up", "diffusers"),
    "_lora.down.weight": ("down", "diffusers-old"),
    "_lora.up.weight": ("up", "diffusers-old"),
    ".lora_A.weight": ("down", "diffusers-peft"),
    ".lora_B.weight": ("up", "diffusers-peft"),
    ".lora_A.default.weight": ("down", "diffusers-peft"),
    ".lora_B.default.weight": ("up", "diffusers-peft"),
    ".lora_down.weight": ("down", ""),
    ".lora_up.weight": ("up", ""),
    ".alpha": ("alpha", ""),
}
# Patterns of names that say that a file holds something else than low-rank pairs.
FOREIGN = {
    r"dora_scale|lora_magnitude_vector": "DoRA (a pair with a magnitude)",
    r"\.hada_w\d": "LoHa (Hadamard products)",
    r"\.lokr_w\d": "LoKr (Kronecker products)",
    r"\.lora_mid\.": "a Tucker-decomposed LoCon",
    r"\bb?oft_": "OFT (orthogonal transforms)",
    r"\.lora_embedding_[AB]": "a LoRA of embeddings",
    r"\.bias$": "a LoRA with biases",
    r"\.diff(_b)?$": "a full difference of weights",
}


@dataclass(frozen=True)
class Key:
    """What a tensor's name says.

    Attributes:
        network: one of the family's networks, e.g. "unet" or "text_encoder".
        module: module path in diffusers or transformers, without the network.
        part: "up", "down" or "alpha".
        style: one of the module's styles, or "" where the name does not tell.
    """

    network: str
    module: str
    part: str
    style: str


def parse(name: str, family: Family) -> Key | None:
    """The meaning of a tensor's name, or None when it is not a LoRA name of this family."""
    for ending, (part, ending_style) in _ENDINGS.items():
        if not name.endswith(ending):
            continue
        for beginning, (network, style) in family.beginnings.items():
            if name.startswith(beginning):
                module = family.module(network, name[len(beginning) : -len(ending)])
                return Key(network, module, part, style or ending_style) if module else None
    return None


def recognise(names: Iterable[str], families: Iterable[Family]) -> Family | None:
    """The family that knows most of the names, the first of these; None if none knows any."""
    every = list(names)

    def count(family: Family) -> int:
        return sum(parse(name, family) is not None for name in every)

    nearest = max(families, key=count)
    return nearest if count(nearest) else None


def diffusers_names(family: Family, network: str, module: str) -> tuple[str, str]:
    """Names of down and up that the family's `load_lora_weights` reads."""
    kind = "lora" if network == family.denoiser else "lora_linear_layer"
    stem = f"{network}.{module}.{kind}"
    return f"{stem}.down.weight", f"{stem}.up.weight"


def peft_names(module: str) -> tuple[str, str]:
    """Names of down and up in a PEFT checkpoint of the denoiser."""
    stem = f"base_model.model.{module}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def kohya_names(family: Family, network: str, module: str) -> tuple[str, str, str]:
    """Names of down, up and alpha as sd-scripts writes them; A1111 and ComfyUI read them."""
    stem = family.kohya_stem(network, module)
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"
