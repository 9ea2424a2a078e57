"""Names of the tensors of an adapter file: which layer, and which part of it.

    style            example of a down factor (SDXL)
    diffusers        unet.down_blocks.1.attentions.0...attn1.to_q.lora.down.weight
    diffusers-peft   unet.down_blocks.1.attentions.0...attn1.to_q.lora_A.weight
    diffusers-old    unet.down_blocks.1.attentions.0...attn1.processor.to_q_lora.down.weight
    peft             base_model.model.down_blocks.1.attentions.0...attn1.to_q.lora_A.weight
    kohya            lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight
                     lora_unet_down_blocks_1_attentions_0_..._attn1_to_q.lora_down.weight
    comfyui          diffusion_model.input_blocks.4.1...attn1.to_q.lora_down.weight

The ending says which part of which kind of layer a tensor is; what stands before it, the stem,
names the layer, and is the base family's matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from b4m.bases.family import Family

_FACTOR = {"down": "down", "up": "up", "A": "down", "B": "up"}
_ENDINGS = re.compile(
    r"(?P<diffusers>\.lora|\.lora_linear_layer)\.(?P<f1>down|up)\.weight"
    r"|(?P<old>_lora)\.(?P<f2>down|up)\.weight"
    r"|\.lora_(?P<f3>down|up)\.weight"
    r"|\.lora_(?P<f4>[AB])(\.[^.]+)?\.weight"  # PEFT's adapter name may stand in between
    r"|\.(?P<mid>lora_mid)\.weight"
    r"|\.(?P<dora>dora_scale|lora_magnitude_vector)(\.(?!lora_)[^.]+)?(\.weight)?"
    r"|\.(?P<other>alpha|hada_(w[12]_[ab]|t[12])|lokr_(w[12](_[ab])?|t2))"
)
# What each kind of layer needs; the first that is there in part is the one that is meant.
KINDS: Mapping[str, tuple[frozenset[str], ...]] = {
    "LoRA": (frozenset({"up", "down"}),),
    "LoHa": (frozenset({f"hada_w{k}_{x}" for k in (1, 2) for x in "ab"}),),
    "LoKr": tuple(
        frozenset([*one, *two])
        for one in (["lokr_w1"], ["lokr_w1_a", "lokr_w1_b"])
        for two in (["lokr_w2"], ["lokr_w2_a", "lokr_w2_b"])
    ),
}
OPTIONAL = frozenset({"alpha", "dora", "lora_mid", "hada_t1", "hada_t2", "lokr_t2"})
# Patterns of names that say that a file holds something else than low-rank pairs.
FOREIGN = {
    r"\bb?oft_": "OFT (orthogonal transforms)",
    r"\.lora_embedding_[AB]": "a LoRA of embeddings",
    r"\.lora_[AB](\.\w+)?\.bias$|\.lora_(up|down)\.bias$": "a LoRA with biases",
    r"\.(diff|diff_b|set_weight|w_norm|b_norm|bias)$": "full differences of weights",
    r"^bundle_emb\.|^emb_params$|^string_to_param|^clip_[lg]$": "an embedding (textual inversion)",
}


@dataclass(frozen=True)
class Key:
    """What a tensor's name says.

    Attributes:
        stem: the name of the layer, beginning included.
        part: "up", "down", "alpha", "dora" (a magnitude), or a part of another kind of layer as it
            is called there.
        style: a tool's style, or "" where the ending does not tell.
    """

    stem: str
    part: str
    style: str


def parse(name: str) -> Key | None:
    """The meaning of a tensor's name, or None when it is no part of a low-rank layer."""
    match = re.search(rf"(?:{_ENDINGS.pattern})$", name)
    if match is None or match.start() == 0:
        return None
    stem, found = name[: match.start()], match.groupdict()
    if found["old"]:
        # Attention processors had "to_out_lora" for to_out.0, and no network's name in bare files.
        stem = stem.replace(".processor.", ".")
        stem += ".0" if stem.endswith(".to_out") else ""
        stem = stem if stem.startswith(("unet.", "text_encoder")) else f"unet.{stem}"
    factor = found["f1"] or found["f2"] or found["f3"] or found["f4"]
    styles = {"diffusers": "diffusers", "old": "diffusers-old", "f4": "diffusers-peft"}
    style = next((style for group, style in styles.items() if found[group]), "")
    part = _FACTOR[factor] if factor else found["mid"] or found["other"] or "dora"
    return Key(stem, str(part), style)


def kind_of(parts: Iterable[str]) -> str | None:
    """The kind of layer that these parts make up, or None if one is missing or too much."""
    given = frozenset(parts) - OPTIONAL
    return next((kind for kind, needs in KINDS.items() if given in needs), None)


def diffusers_names(family: Family, network: str, module: str) -> tuple[str, str]:
    """Names of down and up that the family's `load_lora_weights` reads."""
    kind = "lora" if network == family.denoiser else "lora_linear_layer"
    stem = f"{network}.{module}.{kind}"
    return f"{stem}.down.weight", f"{stem}.up.weight"


def peft_names(stem: str) -> tuple[str, str]:
    """Names of down and up behind a stem, in the style of PEFT."""
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def kohya_names(stem: str) -> tuple[str, str, str]:
    """Names of down, up and alpha as sd-scripts writes them; A1111 and ComfyUI read them."""
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"
