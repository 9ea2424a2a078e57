"""The methods by name. One module is one paper; a module is imported when its method is asked for.

A trainer is `train(kind, data_dir, concept, base, settings, workdir, tracker) -> Adapter`, a merge
is `merge(content, style, context) -> Adapter`, a sampler builds a step hook for `sdxl.sample`.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from b4m.errors import B4MError

__all__ = ["MERGES", "SAMPLERS", "TRAINERS"]


_MODULES = {"b4m": "break_for_make"}


class _Registry(Mapping[str, Callable[..., Any]]):
    """Functions by method name; looking one up imports its module."""

    def __init__(self, verb: str, attribute: str, names: tuple[str, ...]) -> None:
        self._verb = verb
        self._attribute = attribute
        self._names = names

    def __getitem__(self, name: str) -> Callable[..., Any]:
        if name not in self._names:
            known = ", ".join(self._names)
            raise B4MError(f"unknown method {name!r} to {self._verb} with; known: {known}")
        function: Callable[..., Any] = getattr(
            import_module(f"b4m.methods.{_MODULES.get(name, name)}"), self._attribute
        )
        return function

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


TRAINERS = _Registry("train", "train", ("b4m", "lora", "joint", "blora"))
MERGES = _Registry(
    "merge",
    "merge",
    ("b4m", "direct", "svd", "ties", "dare", "nplora", "blora", "ziplora", "duolora"),
)
SAMPLERS = _Registry("sample", "sampler", ("klora",))
