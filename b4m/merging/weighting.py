"""Weights of adapters carried down to their layers, and the strength of what comes out.

    factors    w_k by layer, from `b4m.weights.Weight` and the names that the base's family knows
    strength   s = max_k |w_k A_k| / |M|,  |A| Frobenius, a network's layers together

Multiplying the merge M by s gives it the norm of the strongest adapter, so that a sum of adapters
that push the same way does not oversaturate. One factor for each network, not for each layer: a
LoRA works through the proportions of its layers, and a layer in which two adapters cancel has
nothing worth magnifying. Norms come from Gram matrices of the factors, in float64, and no dense
product is formed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from b4m.adapters.adapter import Adapter
from b4m.bases import families, family_of
from b4m.errors import B4MError
from b4m.weights import Weight, weights_of

Factors = Mapping[str, float]
_NOTHING = 1e-6
"""A merge below this share of its sources is rounding: they cancel, and there is no strength."""


def factors_of(weights: Sequence[str], adapters: Sequence[Adapter]) -> list[Factors]:
    """The factor of every layer that any of the adapters has, for each adapter.

    Args:
        weights: one `Weight` as text for each adapter; () is 1 for all.
        adapters: of one base.

    Raises:
        B4MError: for another number of weights, or a part that holds no layer of any adapter.
    """
    if weights and len(weights) != len(adapters):
        raise B4MError(
            f"setting weights has {len(weights)} weights for {len(adapters)} adapters; give one "
            "for each"
        )
    first = adapters[0]
    family = family_of(first.layers, first.metadata.family) or families()[0]
    addresses = {name: ("", name) for adapter in adapters for name in adapter.layers}
    for adapter in adapters:
        for name in adapter.text_layers:
            network, _, module = name.partition(".")
            addresses[name] = network, module

    def holds(name: str, part: str) -> bool:
        return family.holds(*addresses[name], part)

    parsed = weights_of(weights) or (Weight(),) * len(adapters)
    for part in dict.fromkeys(part for weight in parsed for part, _ in weight.parts):
        if part not in family.parts and not any(holds(name, part) for name in addresses):
            raise B4MError(
                f"setting weights: no layer of these adapters is in {part!r}; give "
                f"{', '.join([*family.parts, *family.block_groups])}, a part of a layer's name "
                f"such as {next(iter(addresses), 'to_q')}, or a pattern with *"
            )
    return [weight.factors(addresses, holds) for weight in parsed]


def weighted(adapters: Sequence[Adapter], weights: Sequence[str]) -> list[Adapter]:
    """Every adapter times its weight.

    Raises:
        B4MError: as `factors_of`.
    """
    factors = factors_of(weights, adapters)
    return [times(one, own) for one, own in zip(adapters, factors, strict=True)]


def times(adapter: Adapter, factors: Factors) -> Adapter:
    """Every layer of an adapter times its factor."""
    return adapter.times(factors.__getitem__)


def strengthened(merged: Adapter, sources: Sequence[Adapter]) -> Adapter:
    """The merge times the strength of the module's equation, which goes into its metadata.

    Args:
        merged: what was made of the sources.
        sources: the adapters, times their weights.
    """
    strongest: dict[str, float] = {}
    for source in sources:
        for network, square in _squares(source).items():
            strongest[network] = max(strongest.get(network, 0.0), square)
    squares = _squares(merged)
    strength = dict.fromkeys(squares, 1.0)
    for network, square in squares.items():
        if square > _NOTHING**2 * strongest[network]:
            strength[network] = (strongest[network] / square) ** 0.5
    factors = {name: strength[""] for name in merged.layers}
    factors |= {name: strength[name.partition(".")[0]] for name in merged.text_layers}
    said = {network or "denoiser": round(value, 6) for network, value in strength.items()}
    config = {**merged.metadata.config, "strength": said}
    return replace(times(merged, factors), metadata=replace(merged.metadata, config=config))


def _squares(adapter: Adapter) -> dict[str, float]:
    """Squared Frobenius norm by network; "" is the denoiser."""
    found: dict[str, float] = {}
    for name, pair in adapter.every().items():
        network = "" if name in adapter.layers else name.partition(".")[0]
        found[network] = found.get(network, 0.0) + pair.norm() ** 2
    return found
