"""SDXL's attention: eleven groups, the role of each, and the names of their linears.

    group                     channels  depth  linears   role      also known as
    down_blocks.1.attentions.0-1   640      2  2 x  16   style
    down_blocks.2.attentions.0-1  1280     10  2 x  80   content   B-LoRA's W1, W2
    mid_block.attentions.0        1280     10       80   content   W3
    up_blocks.0.attentions.0-2    1280     10  3 x  80   content   W4 (B-LoRA: content), W5 (style)
    up_blocks.1.attentions.0-2     640      2  3 x  16   style

560 linears: to_q, to_k, to_v, to_out.0 of attn1 and attn2. The role is DuoLoRA's prior by
resolution (arXiv 2504.13206): low-resolution layers draw content, high-resolution layers draw
style. In its released code the names of mid_block and up_blocks.0 match no list, so 320 linears
have no role. B-LoRA (arXiv 2403.14572) finds both content and style inside up_blocks.0; the two
priors disagree.

A base of the same topology with other depths (mini-SDXL) has the same groups.
"""

from __future__ import annotations

from dataclasses import dataclass

from b4m.errors import B4MError

CONTEXT = 2048  # width of SDXL's text states, what attn2 reads
MAX_DEPTH = 10  # transformer blocks of SDXL's deepest groups
ATTENTION_LINEARS = tuple(
    f"{attention}.{linear}"
    for attention in ("attn1", "attn2")
    for linear in ("to_q", "to_k", "to_v", "to_out.0")
)


@dataclass(frozen=True)
class Group:
    """One Transformer2DModel of SDXL's UNet.

    Attributes:
        name: module path in diffusers.
        channels: width.
        depth: transformer blocks in SDXL.
        role: "content" or "style", by resolution.
    """

    name: str
    channels: int
    depth: int
    role: str


def _groups() -> tuple[Group, ...]:
    result = []
    for block, role, channels, depth in ((1, "style", 640, 2), (2, "content", 1280, 10)):
        for i in (0, 1):
            name = f"down_blocks.{block}.attentions.{i}"
            result.append(Group(name, channels, depth, role))
    result.append(Group("mid_block.attentions.0", 1280, 10, "content"))
    for block, role, channels, depth in ((0, "content", 1280, 10), (1, "style", 640, 2)):
        for i in (0, 1, 2):
            name = f"up_blocks.{block}.attentions.{i}"
            result.append(Group(name, channels, depth, role))
    return tuple(result)


GROUPS: dict[str, Group] = {group.name: group for group in _groups()}
BLORA = {"content": "up_blocks.0.attentions.0", "style": "up_blocks.0.attentions.1"}


def group_of(name: str) -> str:
    """Name of the attention group that a linear belongs to.

    Raises:
        B4MError: for a name outside SDXL's eleven attention groups.
    """
    for group in GROUPS:
        if name.startswith(group + "."):
            return group
    raise B4MError(f"{name} is in none of SDXL's attention groups: {', '.join(GROUPS)}")


def role_of(name: str) -> str:
    """Role of a linear, "content" or "style": DuoLoRA's prior by resolution."""
    return GROUPS[group_of(name)].role


def sdxl_linear_shapes() -> dict[str, tuple[int, int]]:
    """(out, in) of SDXL's 560 attention linears by module path; attn2's k and v read the text."""
    return {
        f"{group.name}.transformer_blocks.{k}.{linear}": (
            group.channels,
            CONTEXT if linear in ("attn2.to_k", "attn2.to_v") else group.channels,
        )
        for group in GROUPS.values()
        for k in range(group.depth)
        for linear in ATTENTION_LINEARS
    }
