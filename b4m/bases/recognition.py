"""Which family of base models an adapter is made for, by the names and sizes of its layers."""

from __future__ import annotations

from collections.abc import Mapping

from b4m.bases import families
from b4m.bases.family import Family
from b4m.bases.name_tables import TABLES
from b4m.bases.named import UNKNOWN


def recognise(
    shapes: Mapping[str, tuple[int, int]], declared: str = "", words: str = ""
) -> list[Family]:
    """The families that fit equally well, `UNKNOWN` alone if none knows half of the names.

    A family fits better the more names it knows, then if sizes tell it. Among equals the one that
    the file declares comes first, then those that can be loaded.

    Args:
        shapes: outputs, and inputs times kernel, by a layer's name in the file.
        declared: name of the family that the adapter says it is of.
        words: what the header calls its base, lower case.
    """
    ranked = []
    for family in [*families(), *TABLES]:
        known = sum(map(family.knows, shapes))
        if 2 * known < len(shapes) or not known:
            continue
        told = family.evidence(shapes)
        if told is not None:
            ranked.append(((known, told > 0), family))
    if not ranked:
        return [UNKNOWN]
    best = max(rank for rank, _ in ranked)
    fitting = [family for rank, family in ranked if rank == best]
    return sorted(
        fitting, key=lambda f: (f.name != declared, not any(word in words for word in f.words))
    )
