"""Two adapters become one: the walk over layers that all merges share.

A layer that only one adapter has is zero (rank 0) on the other side. In closed-form merges the
layers of the text encoders follow the same rule as those of the denoiser.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.errors import B4MError
from b4m.merging.context import require_same_base
from b4m.settings import MergeSettings, Settings
from b4m.version import code_version

Layers = dict[str, LowRank]
Pairs = dict[str, tuple[LowRank, LowRank]]
Rule = Callable[[LowRank, LowRank], LowRank]
Result = TypeVar("Result")
RankRule = Callable[[LowRank, LowRank], int]


def merge_layers(
    method: str,
    content: Adapter,
    style: Adapter,
    settings: MergeSettings,
    rule: Rule,
    rank: RankRule | None = None,
) -> Adapter:
    """Apply a closed-form rule to every layer, in the order of the names, text encoders last.

    Args:
        method: name that the file carries.
        content: content adapter.
        style: style adapter.
        settings: its `rank`, if not 0, is the largest rank of a layer of the result.
        rule: makes one pair of content's and style's; rank 0 stands for a missing layer.
        rank: instead of that setting, the largest rank of a layer.

    Raises:
        B4MError: if the adapters are of two bases, or the shapes of a layer disagree.
    """
    require_same_base(content, style)
    outcome: list[Layers] = []
    ranks: dict[str, int] = {}
    for content_layers, style_layers in (
        (content.layers, style.layers),
        (content.text_layers, style.text_layers),
    ):
        pairs = paired(content_layers, style_layers)
        outcome.append({name: rule(*both) for name, both in pairs.items()})
        for name, both in pairs.items():
            ranks[name] = rank(*both) if rank is not None else settings.rank
    merged = Adapter(outcome[0], describe(method, content, style, settings), outcome[1])
    return truncated(merged, ranks)


def paired(content: Mapping[str, LowRank], style: Mapping[str, LowRank]) -> Pairs:
    """Content's and style's pair of every layer that either has, sorted by name, in one dtype.

    Raises:
        B4MError: if the shapes of a layer disagree.
    """
    result: Pairs = {}
    for name in sorted({*content, *style}):
        present = content[name] if name in content else style[name]
        zero = LowRank.zero(present.out_features, present.in_features, present.up)
        both = content.get(name, zero), style.get(name, zero)
        if both[0].shape != both[1].shape:
            raise B4MError(
                f"{name} is {both[0].size} in the content adapter and {both[1].size} in the style "
                "adapter; the two are made for different bases"
            )
        dtype = torch.promote_types(both[0].up.dtype, both[1].up.dtype)
        result[name] = both[0].to(dtype=dtype), both[1].to(dtype=dtype)
    return result


def padded(content: LowRank, style: LowRank) -> tuple[LowRank, LowRank]:
    """Both pairs with the larger rank of the two, the smaller one filled up with zeros."""
    rank = max(content.rank, style.rank)
    return _widened(content, rank), _widened(style, rank)


def describe(
    method: str,
    content: Adapter,
    style: Adapter,
    settings: Settings,
    notes: Mapping[str, Any] | None = None,
) -> Metadata:
    """Metadata of a merged adapter: names and words of both sides, the base, all settings."""
    first, second = content.metadata, style.metadata
    values = settings.model_dump()
    names = first.content or first.concept, second.style or second.concept
    return Metadata(
        method=method,
        stage="merged",
        concept="+".join(name for name in names if name),
        content=names[0],
        style=names[1],
        triggers={**_of_kind(first.triggers, "content"), **_of_kind(second.triggers, "style")},
        class_words={**second.class_words, **first.class_words},
        family=first.family or second.family,
        base_id=first.base_id or second.base_id,
        base_hash=first.base_hash or second.base_hash,
        data_hash="+".join(part for part in (first.data_hash, second.data_hash) if part),
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


def _of_kind(words: Mapping[str, str], kind: str) -> dict[str, str]:
    """The word of this kind; a file of another tool names its only word "any"."""
    word = words.get(kind) or words.get("any")
    return {kind: word} if word else {}
