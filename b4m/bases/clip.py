"""Names of the linears of CLIP text encoders in every tool's files."""

from __future__ import annotations

import re

_LINEAR = re.compile(
    r"(?:text_model_)?encoder_layers_(\d+)_"
    r"(?:self_attn_(?:to_)?(?P<attn>q|k|v|out)(?:_proj)?|mlp_(?P<mlp>fc1|fc2))"
)


def clip_module(path: str) -> str | None:
    """The module path, as transformers' CLIPTextModel wrote it first, of a tool's path.

    Args:
        path: dotted or underscored, without the network's name.

    Returns:
        E.g. "text_model.encoder.layers.3.self_attn.q_proj"; None if it is no linear of CLIP's.
    """
    if path == "text_projection":
        return path
    match = _LINEAR.fullmatch(path.replace(".", "_"))
    if match is None:
        return None
    layer = f"text_model.encoder.layers.{match.group(1)}"
    if match["mlp"]:
        return f"{layer}.mlp.{match['mlp']}"
    return f"{layer}.self_attn.{match['attn']}_proj"
