"""Adapters become one: the walk over layers that all merges share.

A layer that an adapter lacks is zero (rank 0) on its side. In closed-form merges the layers of the
text encoders follow the same rule as those of the denoiser.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.errors import B4MError
from b4m.merging.context import called, require_same_base
from b4m.merging.weighting import factors_of, strengthened, times
from b4m.settings import MergeSettings, Settings
from b4m.version import code_version

Layers = dict[str, LowRank]
Pairs = dict[str, tuple[LowRank, LowRank]]
Rule = Callable[[Sequence[LowRank], Sequence[float]], LowRank]
Result = TypeVar("Result")
RankRule = Callable[[Sequence[LowRank]], int]


def merge_layers(
    method: str,
    adapters: Sequence[Adapter],
    settings: MergeSettings,
    rule: Rule,
    rank: RankRule | None = None,
) -> Adapter:
    """Apply a closed-form rule to every layer, in the order of the names, text encoders last.

    Args:
        method: name that the file carries.
        adapters: any number of them.
        settings: their weights, and the largest rank and the strength of the result.
        rule: makes one pair of the adapters' pairs and of their factors in this layer; rank 0
            stands for a missing layer.
        rank: instead of that setting, the largest rank of a layer.

    Raises:
        B4MError: if the adapters are of two bases, the shapes of a layer disagree, or a weight
            does not fit.
    """
    require_same_base(adapters)
    factors = factors_of(settings.weights, adapters)
    outcome: list[Layers] = []
    ranks: dict[str, int] = {}
    for part in ("layers", "text_layers"):
        pairs = aligned([getattr(adapter, part) for adapter in adapters])
        outcome.append(
            {name: rule(every, [own[name] for own in factors]) for name, every in pairs.items()}
        )
        if rank is not None:
            ranks |= {name: rank(every) for name, every in pairs.items()}
    merged = Adapter(outcome[0], describe(method, adapters, settings), outcome[1])
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
    cut = truncated(merged, ranks or dict.fromkeys(every, settings.rank))
    return strengthened(cut, sources) if settings.auto_strength else cut


def aligned(parts: Sequence[Mapping[str, LowRank]]) -> dict[str, list[LowRank]]:
    """Every adapter's pair of each layer that any of them has, sorted by name, in one dtype.

    Raises:
        B4MError: if the shapes of a layer disagree.
    """
    result: dict[str, list[LowRank]] = {}
    for name in sorted(set().union(*parts)):
        owners = [k for k, layers in enumerate(parts) if name in layers]
        first = parts[owners[0]][name]
        for k in owners[1:]:
            if parts[k][name].shape != first.shape:
                one, two = called(owners[0], len(parts)), called(k, len(parts))
                raise B4MError(
                    f"{name} is {first.size} in {one} and {parts[k][name].size} in {two}; the two "
                    "are made for different bases"
                )
        zero = LowRank.zero(first.out_features, first.in_features, first.up)
        every = [layers.get(name, zero) for layers in parts]
        dtype = first.up.dtype
        for pair in every:
            dtype = torch.promote_types(dtype, pair.up.dtype)
        result[name] = [pair.to(dtype=dtype) for pair in every]
    return result


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
    every = adapter.layers | adapter.text_layers
    cut: Layers = {}
    energy = lost = worst = 0.0
    too_wide = {n: pair for n, pair in every.items() if 0 < ranks[n] < pair.rank}
    shorter = side_by_side(lambda name: too_wide[name].truncate(ranks[name]), list(too_wide))
    shares = dict(zip(too_wide, shorter, strict=True))
    for name, pair in every.items():
        cut[name] = pair
        if name in shares:
            cut[name], share = shares[name]
            # In the balanced singular basis a column of up has squared length sigma.
            kept = float(cut[name].up.double().square().sum(dim=0).square().sum())
            energy, lost = energy + kept / (1.0 - share), lost + kept * share / (1.0 - share)
            worst = max(worst, share)
        elif too_wide:
            energy += pair.norm() ** 2
    config = dict(adapter.metadata.config)
    if too_wide:
        config["energy_lost"] = {"total": lost / energy if energy else 0.0, "worst_layer": worst}
    widest = max((pair.rank for pair in cut.values()), default=0)
    return Adapter(
        {name: cut[name] for name in adapter.layers},
        replace(adapter.metadata, rank=widest, config=config),
        {name: cut[name] for name in adapter.text_layers},
    )


def side_by_side(work: Callable[[str], Result], names: Sequence[str]) -> list[Result]:
    """`work` of every name, in order, on as many threads as torch may use.

    The matrices of a layer are too small for two threads to share; two layers are not.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(names) < 2 * threads:
        return [work(name) for name in names]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, names))
    finally:
        torch.set_num_threads(threads)  # torch remembers the last call for threads to come


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
