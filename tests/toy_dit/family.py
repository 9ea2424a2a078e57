"""Names of the toy's linears: those of diffusers' JointTransformerBlock, which SD3 is made of."""

import re

from b4m.bases.clip import clip_module
from b4m.bases.family import Family
from b4m.errors import B4MError

TRANSFORMER, TEXT, TEXT_2 = "transformer", "text_encoder", "text_encoder_2"
LINEARS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
_KOHYA = {TRANSFORMER: "lora_unet_", TEXT: "lora_te1_", TEXT_2: "lora_te2_"}
_FLAT = {linear.replace(".", "_"): linear for linear in LINEARS}
_BLOCK = re.compile(rf"transformer_blocks_(\d+)_({'|'.join(_FLAT)})")


class ToyFamily(Family):
    """Transformers of SD3's kind, whose first blocks are said to draw the content."""

    name = "toy-dit"
    title = "toy DiT"
    pipelines = ("StableDiffusion3Pipeline",)
    networks = (TRANSFORMER, TEXT, TEXT_2)
    beginnings = {
        "base_model.model.": (TRANSFORMER, "peft"),
        "lora_unet_": (TRANSFORMER, "kohya"),
        "lora_te1_": (TEXT, "kohya"),
        "lora_te2_": (TEXT_2, "kohya"),
        "transformer.": (TRANSFORMER, ""),
        "text_encoder.": (TEXT, ""),
        "text_encoder_2.": (TEXT_2, ""),
        "": (TRANSFORMER, ""),
    }
    file_header = {"modelspec.architecture": "toy-dit/lora"}

    def module(self, network: str, path: str) -> str | None:
        if network != TRANSFORMER:
            return clip_module(path)
        match = _BLOCK.fullmatch(path.replace(".", "_"))
        return f"transformer_blocks.{match[1]}.{_FLAT[match[2]]}" if match else None

    def kohya_stem(self, network: str, module: str) -> str:
        return _KOHYA[network] + module.replace(".", "_")

    def group_of(self, module: str) -> str:
        if not self.known(TRANSFORMER, module):
            raise B4MError(f"{module} is in none of the toy's blocks")
        return ".".join(module.split(".")[:2])

    def role_of(self, module: str) -> str:
        return "content" if self.group_of(module) == "transformer_blocks.0" else "style"


FAMILY = ToyFamily()
