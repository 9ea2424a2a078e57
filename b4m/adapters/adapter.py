"""An adapter in memory: low-rank pairs by layer, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from b4m.adapters.lazy import made, size_of
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank pairs of a denoiser, optionally of the text encoders, and what they are.

    The layers of a large file are lazy, see `b4m.adapters.lazy`; `loaded` takes them into memory.

    Attributes:
        layers: pair by module path in the denoiser, e.g.
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0".
        metadata: what the adapter is; empty for another tool's file.
        text_layers: pair by "<network>.<module path>", e.g. of the network "text_encoder_2".
    """

    layers: Mapping[str, LowRank]
    metadata: Metadata = field(default_factory=Metadata)
    text_layers: Mapping[str, LowRank] = field(default_factory=dict)

    def text_networks(self) -> dict[str, dict[str, LowRank]]:
        """The text encoders' layers by network, then by module path."""
        networks: dict[str, dict[str, LowRank]] = {}
        for name, pair in self.text_layers.items():
            network, _, module = name.partition(".")
            networks.setdefault(network, {})[module] = pair
        return networks

    def every(self) -> Mapping[str, LowRank]:
        """The denoiser's layers and the text encoders' behind them."""

        def part(name: str) -> Mapping[str, LowRank]:
            return self.layers if name in self.layers else self.text_layers

        return made(
            [*self.layers, *self.text_layers],
            lambda name: part(name)[name],
            (self.layers, self.text_layers),
            lambda name: size_of(part(name), name),
        )

    def loaded(self) -> Adapter:
        """The adapter with all pairs in memory."""
        return replace(self, layers=dict(self.layers), text_layers=dict(self.text_layers))

    def mapped(self, change: Callable[[LowRank], LowRank]) -> Adapter:
        """The adapter with every pair changed, those of the text encoders too."""

        def changed(layers: Mapping[str, LowRank]) -> Mapping[str, LowRank]:
            return made(layers, lambda name: change(layers[name]), [layers])

        return replace(self, layers=changed(self.layers), text_layers=changed(self.text_layers))

    def scale(self, factor: float) -> Adapter:
        """Every pair times a number."""
        return self.times(lambda _: factor)

    def times(self, factor: Callable[[str], float]) -> Adapter:
        """Every pair times the factor of its name."""

        def scaled(layers: Mapping[str, LowRank]) -> Mapping[str, LowRank]:
            return made(
                layers,
                lambda name: layers[name].scale(factor(name)),
                [layers],
                lambda name: size_of(layers, name),
            )

        return replace(self, layers=scaled(self.layers), text_layers=scaled(self.text_layers))

    def __add__(self, other: Adapter) -> Adapter:
        """The sum, exact; ranks add up. The metadata are those of the first."""
        return replace(
            self,
            layers=_sum(self.layers, other.layers),
            text_layers=_sum(self.text_layers, other.text_layers),
        )


def _sum(first: Mapping[str, LowRank], second: Mapping[str, LowRank]) -> Mapping[str, LowRank]:
    both = (first, second)

    def total(name: str) -> LowRank:
        pairs = [layers[name] for layers in both if name in layers]
        return pairs[0] + pairs[1] if len(pairs) == 2 else pairs[0]

    return made({**dict.fromkeys(first), **dict.fromkeys(second)}, total, both)
