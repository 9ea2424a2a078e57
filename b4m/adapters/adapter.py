"""An adapter in memory: low-rank pairs by layer, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank pairs of a denoiser, optionally of the text encoders, and what they are.

    Attributes:
        layers: pair by module path in the denoiser, e.g.
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0".
        metadata: what the adapter is; empty for another tool's file.
        text_layers: pair by "<network>.<module path>", e.g. of the network "text_encoder_2".
    """

    layers: dict[str, LowRank]
    metadata: Metadata = field(default_factory=Metadata)
    text_layers: dict[str, LowRank] = field(default_factory=dict)

    def text_networks(self) -> dict[str, dict[str, LowRank]]:
        """The text encoders' layers by network, then by module path."""
        networks: dict[str, dict[str, LowRank]] = {}
        for name, pair in self.text_layers.items():
            network, _, module = name.partition(".")
            networks.setdefault(network, {})[module] = pair
        return networks

    def mapped(self, change: Callable[[LowRank], LowRank]) -> Adapter:
        """The adapter with every pair changed, those of the text encoders too."""
        return replace(
            self,
            layers={name: change(pair) for name, pair in self.layers.items()},
            text_layers={name: change(pair) for name, pair in self.text_layers.items()},
        )

    def scale(self, factor: float) -> Adapter:
        """Every pair times a number."""
        return self.mapped(lambda pair: pair.scale(factor))

    def __add__(self, other: Adapter) -> Adapter:
        """The sum, exact; ranks add up. The metadata are those of the first."""
        return replace(
            self,
            layers=_sum(self.layers, other.layers),
            text_layers=_sum(self.text_layers, other.text_layers),
        )


def _sum(first: Mapping[str, LowRank], second: Mapping[str, LowRank]) -> dict[str, LowRank]:
    total = dict(first)
    for name, pair in second.items():
        total[name] = total[name] + pair if name in total else pair
    return total
