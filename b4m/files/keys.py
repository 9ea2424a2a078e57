"""Names of LoRA tensors in every tool's style, and the one name that this library uses.

    style            example of a down factor
    diffusers        unet.down_blocks.1.attentions.0...attn1.to_q.lora.down.weight
    diffusers-peft   unet.down_blocks.1.attentions.0...attn1.to_q.lora_A.weight
    diffusers-old    unet.down_blocks.1.attentions.0...attn1.processor.to_q_lora.down.weight
    peft             base_model.model.down_blocks.1.attentions.0...attn1.to_q.lora_A.weight
    kohya            lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight
                     lora_unet_down_blocks_1_attentions_0_..._attn1_to_q.lora_down.weight
    comfyui          diffusion_model.input_blocks.4.1...attn1.to_q.lora_down.weight

Underscored names cannot be split by rule ("to_q" has an underscore of its own), so they are looked
up in the list of all linears of SDXL's Transformer2DModels, under both naming schemes and for every
depth up to SDXL's. What is not in the list is unknown, never guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from b4m.bases.sdxl.blocks import ATTENTION_LINEARS, GROUPS, MAX_DEPTH

UNET, TEXT, TEXT_2 = "unet", "text_encoder", "text_encoder_2"

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
# Beginnings: the network, and the style where the beginning decides it.
_BEGINNINGS = {
    "base_model.model.": (UNET, "peft"),
    "lora_unet_": (UNET, "kohya"),
    "lora_te1_": (TEXT, "kohya"),
    "lora_te2_": (TEXT_2, "kohya"),
    "model.diffusion_model.": (UNET, "comfyui"),
    "diffusion_model.": (UNET, "comfyui"),
    "text_encoders.clip_l.transformer.": (TEXT, "comfyui"),
    "text_encoders.clip_g.transformer.": (TEXT_2, "comfyui"),
    "unet.": (UNET, ""),
    "text_encoder.": (TEXT, ""),
    "text_encoder_2.": (TEXT_2, ""),
    "": (UNET, ""),
}
_KOHYA = {UNET: "lora_unet_", TEXT: "lora_te1_", TEXT_2: "lora_te2_"}
_TEXT_LINEAR = re.compile(
    r"(?:text_model_)?encoder_layers_(\d+)_"
    r"(?:self_attn_(?:to_)?(?P<attn>q|k|v|out)(?:_proj)?|mlp_(?P<mlp>fc1|fc2))"
)
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
        network: "unet", "text_encoder" or "text_encoder_2".
        module: module path in diffusers or transformers, without the network.
        part: "up", "down" or "alpha".
        style: one of the module's styles, or "" where the name does not tell.
    """

    network: str
    module: str
    part: str
    style: str


def parse(name: str) -> Key | None:
    """The meaning of a tensor's name, or None when it is no name of an SDXL LoRA."""
    for ending, (part, ending_style) in _ENDINGS.items():
        if not name.endswith(ending):
            continue
        for beginning, (network, beginning_style) in _BEGINNINGS.items():
            if name.startswith(beginning):
                body = name[len(beginning) : -len(ending)]
                module = _unet_module(body) if network == UNET else _text_module(body)
                return (
                    Key(network, module, part, beginning_style or ending_style) if module else None
                )
    return None


def known(network: str, module: str) -> bool:
    """Whether this is the name of a linear that adapters may address."""
    found = _unet_module(module) if network == UNET else _text_module(module)
    return found == module


def diffusers_names(network: str, module: str) -> tuple[str, str]:
    """Names of down and up that `StableDiffusionXLPipeline.load_lora_weights` reads."""
    kind = "lora" if network == UNET else "lora_linear_layer"
    stem = f"{network}.{module}.{kind}"
    return f"{stem}.down.weight", f"{stem}.up.weight"


def peft_names(module: str) -> tuple[str, str]:
    """Names of down and up in a PEFT checkpoint of the UNet."""
    stem = f"base_model.model.{module}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def kohya_names(network: str, module: str) -> tuple[str, str, str]:
    """Names of down, up and alpha as sd-scripts writes SDXL; A1111 and ComfyUI read them."""
    if network == UNET:
        for group in GROUPS.values():
            if module.startswith(group.name + "."):
                module = group.ldm + module[len(group.name) :]
                break
    stem = _KOHYA[network] + _flat(module)
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"


def _flat(path: str) -> str:
    return path.replace(".", "_")


@cache
def _unet_linears() -> dict[str, str]:
    """Module path by underscored name, under diffusers' and under LDM's naming."""
    inner = [
        f"transformer_blocks.{k}.{linear}"
        for k in range(MAX_DEPTH)
        for linear in (*ATTENTION_LINEARS, "ff.net.0.proj", "ff.net.2")
    ] + ["proj_in", "proj_out"]
    return {
        _flat(f"{scheme}.{linear}"): f"{group.name}.{linear}"
        for group in GROUPS.values()
        for scheme in (group.name, group.ldm)
        for linear in inner
    }


def _unet_module(body: str) -> str | None:
    flat = _flat(body).replace("_processor_", "_")
    if flat.endswith("_to_out"):
        flat += "_0"  # attention processors had to_out_lora for to_out.0
    return _unet_linears().get(flat)


def _text_module(body: str) -> str | None:
    if body == "text_projection":
        return body
    match = _TEXT_LINEAR.fullmatch(_flat(body))
    if match is None:
        return None
    layer = f"text_model.encoder.layers.{match.group(1)}"
    if match["mlp"]:
        return f"{layer}.mlp.{match['mlp']}"
    return f"{layer}.self_attn.{match['attn']}_proj"
