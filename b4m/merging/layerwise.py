"""Adapters become one: the walk over layers that all merges share.

A layer that an adapter lacks is zero (rank 0) on its side. In closed-form merges the layers of the
text encoders follow the same rule as those of the denoiser. Layers of large files are lazy, and so
is what is made of them: it is made when it is written, one layer at a time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lazy import Lazy, Size, is_lazy, made, size_of
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.adapters.truncation import cut
from b4m.errors import B4MError
from b4m.merging.context import called, require_same_base
from b4m.merging.weighting import factors_of, strengthened, times
from b4m.settings import MergeSettings, Settings
from b4m.version import code_version

Layers = dict[str, LowRank]
Pairs = dict[str, tuple[LowRank, LowRank]]
Parts = Sequence[Mapping[str, LowRank]]
Rule = Callable[[Sequence[LowRank], Sequence[float]], LowRank]
RankRule = Callable[[Sequence[int]], int]


def merge_layers(
    method: str,
    adapters: Sequence[Adapter],
    settings: MergeSettings,
    rule: Rule,
    rank: RankRule | None = None,
    known: RankRule | None = None,
    draws: torch.Generator | None = None,
) -> Adapter:
    """Apply a closed-form rule to every layer, in the order of the names, text encoders last.

    Args:
        method: name that the file carries.
        adapters: any number of them.
        settings: their weights, and the largest rank and the strength of the result.
        rule: makes one pair of the adapters' pairs and of their factors in this layer; rank 0
            stands for a missing layer.
        rank: instead of that setting, the largest rank of a layer, by the adapters' ranks in it.
        known: the rank that the rule gives, by the same, where that is known beforehand.
        draws: what the rule draws from; seeded anew for each layer by the setting and its name.

    Raises:
        B4MError: if the adapters are of two bases, the shapes of a layer disagree, or a weight
            does not fit.
    """
    require_same_base(adapters)
    factors = factors_of(settings.weights, adapters)
    seed = draws.initial_seed() if draws is not None else 0

    def applied(parts: Parts) -> Mapping[str, LowRank]:
        pairs = aligned(parts)

        def merged(name: str) -> LowRank:
            if draws is not None:
                draws.manual_seed(seed_of(seed, name))
            return rule(pairs[name], [own[name] for own in factors])

        def size(name: str) -> Size | None:
            rows, ranks, columns = sizes_of(parts, name)
            return (rows, known(ranks), columns) if known is not None else None

        return made(pairs, merged, parts, size)

    parts = ([adapter.layers for adapter in adapters], [one.text_layers for one in adapters])
    layers, text = (applied(part) for part in parts)
    ranks: dict[str, int] = {}
    if rank is not None:
        for part, names in zip(parts, (layers, text), strict=True):
            ranks |= {name: rank(sizes_of(part, name)[1]) for name in names}
    merged = Adapter(layers, describe(method, adapters, settings), text)
    sources = [times(one, own) for one, own in zip(adapters, factors, strict=True)]
    return finished(merged, sources, settings, ranks)


def finished(
    merged: Adapter,
    sources: Sequence[Adapter],
    settings: MergeSettings,
    ranks: Mapping[str, int] | None = None,
) -> Adapter:
    """What every merge ends with: the largest rank of a layer, then the strength of the whole.

    Args:
        merged: what was made of the sources.
        sources: the adapters, times their weights.
        settings: `rank` and `auto_strength`.
        ranks: by layer, instead of that rank.
    """
    every = [*merged.layers, *merged.text_layers]
    shorter = truncated(merged, ranks or dict.fromkeys(every, settings.rank))
    return strengthened(shorter, sources) if settings.auto_strength else shorter


def aligned(parts: Parts) -> Mapping[str, list[LowRank]]:
    """Every adapter's pair of each layer that any of them has, sorted by name, in one dtype.

    Raises:
        B4MError: if the shapes of a layer disagree.
    """
    names = sorted(set().union(*parts))
    for name in names:
        sizes_of(parts, name)

    def every(name: str) -> list[LowRank]:
        found = [layers.get(name) for layers in parts]
        first = next(pair for pair in found if pair is not None)
        zero = LowRank.zero(first.out_features, first.in_features, first.up)
        pairs = [zero if pair is None else pair for pair in found]
        dtype = first.up.dtype
        for pair in pairs:
            dtype = torch.promote_types(dtype, pair.up.dtype)
        return [pair.to(dtype=dtype) for pair in pairs]

    return Lazy(names, every) if is_lazy(*parts) else {name: every(name) for name in names}


def sizes_of(parts: Parts, name: str) -> tuple[int, list[int], int]:
    """Outputs of a layer, its rank in each adapter (0 where it lacks it), and inputs.

    Raises:
        B4MError: if the shapes disagree.
    """
    sizes = {k: size_of(layers, name) for k, layers in enumerate(parts) if name in layers}
    owner, (rows, _, columns) = next(iter(sizes.items()))
    for k, (own_rows, _, own_columns) in sizes.items():
        if (own_rows, own_columns) != (rows, columns):
            one, two = called(owner, len(parts)), called(k, len(parts))
            raise B4MError(
                f"{name} is {rows} x {columns} in {one} and {own_rows} x {own_columns} in {two}; "
                "the two are made for different bases"
            )
    return rows, [sizes[k][1] if k in sizes else 0 for k in range(len(parts))], columns


def seed_of(seed: int, name: str) -> int:
    """A seed of its own for each layer, whatever other layers there are."""
    return int.from_bytes(sha256(f"{seed} {name}".encode()).digest()[:8], "little")


def paired(content: Mapping[str, LowRank], style: Mapping[str, LowRank]) -> Pairs:
    """`aligned` of a content's and a style's layers."""
    return {name: (both[0], both[1]) for name, both in aligned([content, style]).items()}


def padded(pairs: Sequence[LowRank]) -> list[LowRank]:
    """All pairs with the largest rank of any, smaller ones filled up with zeros."""
    rank = max(pair.rank for pair in pairs)
    return [_widened(pair, rank) for pair in pairs]


def weighted_sum(pairs: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """sum_k w_k dW_k, exact; ranks add up."""
    terms = [pair.scale(weight) for pair, weight in zip(pairs, weights, strict=True)]
    return sum(terms[1:], start=terms[0])


def split_weights(weights: Sequence[float]) -> tuple[list[float], list[float]]:
    """Sqrt |w| and sign(w) sqrt |w|: on up and down of one pair they weight it by w."""
    roots = [abs(weight) ** 0.5 for weight in weights]
    return roots, [-root if w < 0 else root for root, w in zip(roots, weights, strict=True)]


def describe(
    method: str,
    adapters: Sequence[Adapter],
    settings: Settings,
    notes: Mapping[str, Any] | None = None,
) -> Metadata:
    """Metadata of a merged adapter: names and words of all sides, the base, all settings.

    Of two adapters the first is the content and the second the style. More than two are what they
    say of themselves; the first content and the first style give the names.
    """
    sides = [adapter.metadata for adapter in adapters]
    values = settings.model_dump(mode="json")
    if len(sides) == 2:
        kinds, names = ["content", "style"], _names_of_both(*sides)
    else:
        kinds = [side.stage for side in sides]
        names = [side.content or side.style or side.concept for side in sides]
    class_words: dict[str, str] = {}
    triggers: dict[str, str] = {}
    for kind, side in zip(kinds, sides, strict=True):
        words = _of_kind(side.triggers, kind) if kind in ("content", "style") else side.triggers
        for key, word in words.items():
            told = triggers.get(key, "").split()
            triggers[key] = " ".join([*told, *(w for w in word.split() if w not in told)])
        class_words = side.class_words | class_words
    return Metadata(
        method=method,
        stage="merged",
        concept="+".join(filter(None, names)),
        content=names[0] if len(sides) == 2 else _first(side.content for side in sides),
        style=names[1] if len(sides) == 2 else _first(side.style for side in sides),
        triggers=triggers,
        class_words=class_words,
        family=_first(side.family for side in sides),
        base_id=_first(side.base_id for side in sides),
        base_hash=_first(side.base_hash for side in sides),
        data_hash="+".join(filter(None, (side.data_hash for side in sides))),
        code_version=code_version(),
        seed=values.get("seed", 0),
        config={"settings": values, **(notes or {})},
    )


def truncated(adapter: Adapter, ranks: Mapping[str, int]) -> Adapter:
    """The adapter with each layer cut to at most `ranks[name]` ranks (0 keeps all).

    The metadata get the largest rank of a layer and, if anything was cut, `energy_lost`: the share
    of the squared Frobenius norm of all layers together that was dropped ("total"), and the largest
    share of one layer ("worst_layer").
    """
    every, config = adapter.every(), dict(adapter.metadata.config)
    shorter, lost = cut(every, ranks)
    layers, text = adapter.layers, adapter.text_layers
    if lost is not None:
        config["energy_lost"] = {"total": lost.total, "worst_layer": lost.worst_layer}
        layers, text = (
            made(part, shorter.__getitem__, [shorter], partial(size_of, shorter))
            for part in (layers, text)
        )
    widest = max((size_of(shorter, name)[1] for name in every), default=0)
    return Adapter(layers, replace(adapter.metadata, rank=widest, config=config), text)


def _widened(pair: LowRank, rank: int) -> LowRank:
    more = rank - pair.rank
    if more == 0:
        return pair
    up_OR: Tensor = torch.cat([pair.up, pair.up.new_zeros(pair.out_features, more)], dim=1)
    return LowRank(up_OR, torch.cat([pair.down, pair.down.new_zeros(more, pair.in_features)]))


def _names_of_both(content: Metadata, style: Metadata) -> list[str]:
    return [content.content or content.concept, style.style or style.concept]


def _first(values: Iterable[str]) -> str:
    return next(filter(None, values), "")


def _of_kind(words: Mapping[str, str], kind: str) -> dict[str, str]:
    """The word of this kind; a file of another tool names its only word "any"."""
    word = words.get(kind) or words.get("any")
    return {kind: word} if word else {}
