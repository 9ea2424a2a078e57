"""How much of an adapter goes into a merge or an image: a factor, and other ones for some layers.

    0.8                                0.8 everywhere
    0.8 text_encoder=0 mid_block=0.5   and nothing of one text encoder, half of one block

A part is a network ("unet", "text_encoder_2"), a block or another part of a layer's path, a role or
group that the base's family knows, or a pattern of names with * and ?. What a part means is the
family's matter; of several parts that hold a layer the last one counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from b4m.errors import B4MError


@dataclass(frozen=True)
class Weight:
    """The factors on one adapter's layers.

    Attributes:
        usual: of all layers that are in none of the parts.
        parts: names of parts and their factors.
    """

    usual: float = 1.0
    parts: tuple[tuple[str, float], ...] = ()

    @classmethod
    def of(cls, value: object) -> Weight:
        """A weight of a number, of text as above, or of factors by part, "" for all others.

        Raises:
            B4MError: for anything else, or a factor that is not finite.
        """
        if isinstance(value, Weight):
            return value
        if isinstance(value, Mapping):
            entries = [(str(part), factor) for part, factor in value.items()]
        else:
            words = [word.rpartition("=") for word in str(value).split()]
            entries = [(part, factor) for part, _, factor in words]
            if not entries or not all(bool(part) == bool(equals) for part, equals, _ in words):
                raise B4MError(f"{value!r} is not a weight such as 0.8 or 0.8 text_encoder=0")
        usual = [factor for part, factor in entries if not part]
        if len(usual) > 1:
            raise B4MError(f"{value!r} has {len(usual)} factors for all layers; give one")
        if any(set(part) & set(" ,=\t\n") for part, _ in entries):
            raise B4MError(f"{value!r} has a part with a space, a comma or an equals sign in it")
        parts = tuple((part, _number(factor)) for part, factor in entries if part)
        return cls(_number(usual[0]) if usual else 1.0, parts)

    def __str__(self) -> str:
        return " ".join([_short(self.usual), *(f"{part}={_short(f)}" for part, f in self.parts)])

    def factors(self, names: Iterable[str], holds: Callable[[str, str], bool]) -> dict[str, float]:
        """The factor of every layer.

        Args:
            names: of layers.
            holds: whether a part, given second, holds the layer of this name.
        """
        found = {}
        for name in names:
            own = [factor for part, factor in self.parts if holds(name, part)]
            found[name] = own[-1] if own else self.usual
        return found


def weights_of(value: object) -> tuple[Weight, ...]:
    """Weights of several adapters, in order.

    Args:
        value: text with commas between them, a sequence of what `Weight.of` takes and such texts,
            or one number.

    Raises:
        B4MError: as `Weight.of`.
    """
    if isinstance(value, str):
        return tuple(map(Weight.of, value.split(","))) if value.strip() else ()
    if isinstance(value, Sequence):
        return tuple(
            weight
            for each in value
            for weight in (weights_of(each) if isinstance(each, str) else [Weight.of(each)])
        )
    return (Weight.of(value),)


def _number(value: object) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise B4MError(f"{value!r} is not a finite number")
    return number


def _short(number: float) -> str:
    return repr(number).removesuffix(".0")
