"""Layers that are made when they are asked for, so that an adapter need not fit into memory.

A lazy mapping keeps names and sizes and no tensor: each look-up reads a file, or applies a rule to
what other mappings give. What is made of lazy layers is lazy, what is made of a dict is a dict, so
merges are written once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from b4m.adapters.lowrank import LowRank

Size = tuple[int, int, int]  # outputs, rank, inputs
SizeRule = Callable[[str], Size | None]
Value = TypeVar("Value")


class Lazy(Mapping[str, Value]):
    """Values by name, made anew at every look-up.

    Args:
        names: in their order.
        make: the value of a name; the same whenever it is called.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], Value]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> Value:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class LazyLayers(Lazy[LowRank]):
    """Pairs by name, made anew at every look-up.

    Args:
        names: in their order.
        make: the pair of a name.
        size: its size, where that is known without making the pair, or None.
    """

    def __init__(
        self, names: Iterable[str], make: Callable[[str], LowRank], size: SizeRule = lambda _: None
    ) -> None:
        super().__init__(names, make)
        self._sizes: dict[str, Size] = {}
        self._size = size

    def size(self, name: str) -> Size:
        """Outputs, rank and inputs; a pair whose size is not known is made once to see it."""
        if name not in self._sizes:
            self._sizes[name] = self._size(name) or _size(self[name])
        return self._sizes[name]


def size_of(layers: Mapping[str, LowRank], name: str) -> Size:
    """Outputs, rank and inputs of a layer, lazy or not."""
    return layers.size(name) if isinstance(layers, LazyLayers) else _size(layers[name])


def is_lazy(*sources: Mapping[str, Value]) -> bool:
    """Whether any of these mappings is lazy."""
    return any(isinstance(source, Lazy) for source in sources)


def made(
    names: Iterable[str],
    make: Callable[[str], LowRank],
    sources: Iterable[Mapping[str, LowRank]],
    size: SizeRule = lambda _: None,
) -> Mapping[str, LowRank]:
    """Pairs by name: lazy if a mapping that they are made of is, otherwise all of them now.

    Args:
        names: in their order.
        make: the pair of a name.
        sources: what `make` looks into.
        size: its size, where that is known without making the pair, or None.
    """
    if is_lazy(*sources):
        return LazyLayers(names, make, size)
    return {name: make(name) for name in names}


def _size(pair: LowRank) -> Size:
    return pair.out_features, pair.rank, pair.in_features
