"""Names of the linears and convolutions of Stable Diffusion's UNets in both naming schemes.

diffusers names blocks by level ("down_blocks.1.attentions.0"), the original (LDM, sgm) code, which
kohya and ComfyUI follow, numbers them through ("input_blocks.4.1"). With two resnets per level, as
in SD 1, SD 2 and SDXL, level b and place j give

    down_blocks.b.resnets.j   input_blocks.(3b + j + 1).0     attentions.j   .1
    up_blocks.b.resnets.j     output_blocks.(3b + j).0        attentions.j   .1
"""

from __future__ import annotations

from collections.abc import Sequence

_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_INNER = [f"attn{k}.{linear}" for k in (1, 2) for linear in ("to_q", "to_k", "to_v", "to_out.0")]
_INNER += ["ff.net.0.proj", "ff.net.2"]
_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_THREE = ("conv_in", "conv_out", "conv1", "conv2", "conv")  # last elements; kernels of 3 x 3


def unet_names(attends: Sequence[bool], depth: int) -> dict[str, str]:
    """The original name of every linear and convolution by its name in diffusers.

    Args:
        attends: whether a level has attention, from the highest resolution down.
        depth: most transformer blocks of an attention; names beyond a level's own do no harm.
    """
    names = dict(_TOP)

    def level(block: str, ldm: str, j: int, attention: bool) -> None:
        names.update({f"{block}.resnets.{j}.{k}": f"{ldm}.0.{v}" for k, v in _RESNET.items()})
        if attention:
            names.update(_attention(f"{block}.attentions.{j}", f"{ldm}.1", depth))

    last = len(attends) - 1
    for b, attention in enumerate(attends):
        for j in (0, 1):
            level(f"down_blocks.{b}", f"input_blocks.{3 * b + j + 1}", j, attention)
        if b < last:
            names[f"down_blocks.{b}.downsamplers.0.conv"] = f"input_blocks.{3 * b + 3}.0.op"
    for b, attention in enumerate(reversed(attends)):
        for j in (0, 1, 2):
            level(f"up_blocks.{b}", f"output_blocks.{3 * b + j}", j, attention)
        if b < last:
            place = f"output_blocks.{3 * b + 2}.{2 if attention else 1}"
            names[f"up_blocks.{b}.upsamplers.0.conv"] = f"{place}.conv"
    for j in (0, 1):
        middle = f"middle_block.{2 * j}"
        names.update({f"mid_block.resnets.{j}.{k}": f"{middle}.{v}" for k, v in _RESNET.items()})
    return names | _attention("mid_block.attentions.0", "middle_block.1", depth)


def kernel_of(module: str, projections: bool = False) -> tuple[int, ...]:
    """Kernel of a convolution by its name in diffusers; () for a linear.

    Args:
        module: module path in diffusers.
        projections: whether proj_in and proj_out are convolutions, as in SD 1.
    """
    name = module.rpartition(".")[2]
    if name in _THREE:
        return (3, 3)
    pointwise = name == "conv_shortcut" or (projections and name in ("proj_in", "proj_out"))
    return (1, 1) if pointwise else ()


def _attention(block: str, ldm: str, depth: int) -> dict[str, str]:
    inner = [f"transformer_blocks.{k}.{linear}" for k in range(depth) for linear in _INNER]
    return {f"{block}.{name}": f"{ldm}.{name}" for name in (*inner, "proj_in", "proj_out")}
