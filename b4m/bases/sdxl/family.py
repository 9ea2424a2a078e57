"""SDXL's names in every tool's files, and the roles of its layers.

Underscored names cannot be split by rule ("to_q" has an underscore of its own), so they are looked
up in the list of all linears and convolutions of SDXL's UNet, under both naming schemes and for
every depth up to SDXL's. What is not in the list is unknown, never guessed.
"""

from __future__ import annotations

import re
from functools import cache

from b4m.bases.clip import clip_module
from b4m.bases.family import Family
from b4m.bases.sdxl.blocks import BLORA, GROUPS, MAX_DEPTH, group_of, role_of
from b4m.bases.unet_names import kernel_of, unet_names

UNET, TEXT, TEXT_2 = "unet", "text_encoder", "text_encoder_2"
ATTENTION = re.compile(r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$")
_KOHYA = {UNET: "lora_unet_", TEXT: "lora_te1_", TEXT_2: "lora_te2_"}
_COMFYUI = {
    UNET: "diffusion_model.",
    TEXT: "text_encoders.clip_l.transformer.",
    TEXT_2: "text_encoders.clip_g.transformer.",
}


class SDXLFamily(Family):
    """Models of Stable Diffusion XL's topology."""

    name = "sdxl"
    title = "SDXL"
    pipelines = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    networks = (UNET, TEXT, TEXT_2)
    beginnings = {
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
    block_groups = {f"blora-{kind}": group for kind, group in BLORA.items()}
    file_header = {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}
    kohya_header = {
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
    }
    widths = {r"attn2[._]to_[kv]$": (2048,)}
    words = ("sdxl", "stable-diffusion-xl")

    def module(self, network: str, path: str) -> str | None:
        """The module path that a tool's dotted or underscored path means; None if unknown."""
        return _unet_module(path) if network == UNET else clip_module(path)

    def kohya_stem(self, network: str, module: str) -> str:
        """The name as sd-scripts writes SDXL: the UNet in the original code's naming."""
        return _KOHYA[network] + _flat(_original(network, module))

    def comfyui_stem(self, network: str, module: str) -> str:
        """The name as ComfyUI writes it: the UNet in the original code's naming."""
        return _COMFYUI[network] + _original(network, module)

    def kernel(self, network: str, module: str) -> tuple[int, ...]:
        """Kernel of a convolution; () for a linear."""
        return kernel_of(module) if network == UNET else ()

    def group_of(self, module: str) -> str:
        """One of the eleven attention groups, or the block that a layer outside of them is in."""
        if _in_attention(module):
            return group_of(module)
        return ".".join(module.split(".")[:4])

    def role_of(self, module: str) -> str:
        """DuoLoRA's prior by resolution; "" outside of attention."""
        return role_of(module) if _in_attention(module) else ""


FAMILY = SDXLFamily()


def _flat(path: str) -> str:
    return path.replace(".", "_")


@cache
def _originals() -> dict[str, str]:
    return unet_names((False, True, True), MAX_DEPTH)


@cache
def _unet_modules() -> dict[str, str]:
    """Module path by underscored name, under diffusers' and under LDM's naming."""
    return {_flat(k): name for name, ldm in _originals().items() for k in (name, ldm)}


def _original(network: str, module: str) -> str:
    return _originals()[module] if network == UNET else module


def _in_attention(module: str) -> bool:
    return any(module.startswith(f"{group}.") for group in GROUPS)


def _unet_module(body: str) -> str | None:
    flat = _flat(body).replace("_processor_", "_")
    if flat.endswith("_to_out"):
        flat += "_0"  # attention processors had to_out_lora for to_out.0
    return _unet_modules().get(flat)
