"""An adapter in memory: low-rank pairs by layer, and what they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank pairs of a UNet, optionally of the text encoders, and what they are.

    Attributes:
        layers: pair by module path in the UNet, e.g.
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0".
        metadata: what the adapter is; empty for another tool's file.
        text_layers: pair by "text_encoder.<module path>" or "text_encoder_2.<module path>".
    """

    layers: dict[str, LowRank]
    metadata: Metadata = field(default_factory=Metadata)
    text_layers: dict[str, LowRank] = field(default_factory=dict)
