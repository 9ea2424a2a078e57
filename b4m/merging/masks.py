"""Learned masks over two frozen pairs: the live form of ZipLoRA and ZipRank (DuoLoRA).

    rank      U_c diag(m_c) D_c + U_s diag(m_s) D_s     ZipRank, r_c + r_s numbers
    rows      diag(m_c) C + diag(m_s) S                 "output dimension", 2 O numbers
    columns   C diag(m_c) + S diag(m_s)                 ZipLoRA (arXiv 2311.13600), 2 I numbers

On SDXL at rank 64 that is 71,680, 1,331,200 and 1,571,840 numbers; 1.33M in DuoLoRA's tables is
the row form. Each layer owns its two parameters (in the released code q, k, v and out share
storage), the forward is factored, and the result is an ordinary pair of rank r_c + r_s.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from b4m.adapters.lowrank import LowRank
from b4m.errors import B4MError

AXES = ("rank", "rows", "columns")


class MaskedSum(nn.Module):
    """Two frozen pairs under learnable masks, all ones at the start (the direct merge).

    Masks meet the small factors, not the activations: column masks multiply D (r x I) instead of x
    (tokens x I), row masks multiply U instead of y. Both adapters' factors lie side by side, so
    that two matrix products do the work.

    Args:
        content: content's pair; rank 0 where the content adapter lacks the layer.
        style: style's pair of the same layer.
        axis: what the masks act on: "rank", "rows" or "columns".

    Attributes:
        m_content: content's mask, real-valued and unconstrained.
        m_style: style's mask.
    """

    up: Tensor
    down: Tensor

    def __init__(self, content: LowRank, style: LowRank, axis: str = "rank") -> None:
        super().__init__()
        shapes = [(pair.out_features, pair.in_features) for pair in (content, style)]
        if shapes[0] != shapes[1]:
            raise B4MError(f"content is {shapes[0]} and style is {shapes[1]}; masks need one layer")
        self.axis = axis
        self.split = content.rank
        both = content + style
        self.register_buffer("up", both.up.detach())
        self.register_buffer("down", both.down.detach())
        device = content.up.device
        self.m_content = nn.Parameter(torch.ones(mask_size(content, axis), device=device))
        self.m_style = nn.Parameter(torch.ones(mask_size(style, axis), device=device))

    @property
    def content(self) -> LowRank:
        """Content's frozen pair, a view."""
        return LowRank(self.up[:, : self.split], self.down[: self.split])

    @property
    def style(self) -> LowRank:
        """Style's frozen pair, a view."""
        return LowRank(self.up[:, self.split :], self.down[self.split :])

    @property
    def out_features(self) -> int:
        """O of the linear that this is added to."""
        return self.up.shape[0]

    @property
    def in_features(self) -> int:
        """I of the linear that this is added to."""
        return self.down.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        dtype, split = x.dtype, self.split
        up_OR, down_RI = self.up.to(dtype), self.down.to(dtype)
        m_content, m_style = (m.to(dtype) for m in (self.m_content, self.m_style))
        if self.axis == "rank":
            return linear(linear(x, down_RI) * torch.cat([m_content, m_style]), up_OR)
        if self.axis == "columns":
            masked = [down_RI[:split] * m_content, down_RI[split:] * m_style]
            return linear(linear(x, torch.cat(masked)), up_OR)
        masked = [up_OR[:, :split] * m_content[:, None], up_OR[:, split:] * m_style[:, None]]
        return linear(linear(x, down_RI), torch.cat(masked, dim=1))

    def lowrank(self) -> LowRank:
        """The masked sum as one pair of rank r_c + r_s, exact and detached."""
        with torch.no_grad():
            content = apply_mask(self.content, self.m_content, self.axis)
            return content + apply_mask(self.style, self.m_style, self.axis)


def apply_mask(pair: LowRank, mask: Tensor, axis: str) -> LowRank:
    """The pair with its ranks, rows or columns multiplied by the mask."""
    mask = mask.to(pair.up.dtype)
    if axis == "rank":
        return pair.mask_ranks(mask)
    return pair.mask_rows(mask) if axis == "rows" else pair.mask_columns(mask)


def mask_size(pair: LowRank, axis: str) -> int:
    """Entries of one mask over this pair.

    Raises:
        B4MError: for an unknown axis.
    """
    if axis not in AXES:
        raise B4MError(f"axis={axis!r}; choose one of {', '.join(AXES)}")
    return {"rank": pair.rank, "rows": pair.out_features, "columns": pair.in_features}[axis]
