"""SDXL's names in every tool's files, and the roles of its layers.

Underscored names cannot be split by rule ("to_q" has an underscore of its own), so they are looked
up in the list of all linears of SDXL's Transformer2DModels, under both naming schemes and for every
depth up to SDXL's. What is not in the list is unknown, never guessed.
"""

from __future__ import annotations

import re
from functools import cache

from b4m.bases.clip import clip_module
from b4m.bases.family import Family
from b4m.bases.sdxl.blocks import ATTENTION_LINEARS, BLORA, GROUPS, MAX_DEPTH, group_of, role_of

UNET, TEXT, TEXT_2 = "unet", "text_encoder", "text_encoder_2"
ATTENTION = re.compile(r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$")
_KOHYA = {UNET: "lora_unet_", TEXT: "lora_te1_", TEXT_2: "lora_te2_"}


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

    def module(self, network: str, path: str) -> str | None:
        """The module path that a tool's dotted or underscored path means; None if unknown."""
        return _unet_module(path) if network == UNET else clip_module(path)

    def kohya_stem(self, network: str, module: str) -> str:
        """The name as sd-scripts writes SDXL: the UNet's blocks in the original code's naming."""
        if network == UNET:
            for group in GROUPS.values():
                if module.startswith(group.name + "."):
                    module = group.ldm + module[len(group.name) :]
                    break
        return _KOHYA[network] + _flat(module)

    def group_of(self, module: str) -> str:
        """One of the eleven attention groups."""
        return group_of(module)

    def role_of(self, module: str) -> str:
        """DuoLoRA's prior by resolution."""
        return role_of(module)


FAMILY = SDXLFamily()


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
