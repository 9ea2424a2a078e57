"""How adapters meet, layer by layer: before a merge, what it will be up against.

With dW = up down of each, all from small matrices:

    cosine      <A, B> / (|A| |B|)                    1: the same change, -1: they cancel
    overlap     mean cos^2 of the principal angles between the row spaces (what the layers read) and
                between the column spaces (what they write): |Q_a^T Q_b|_F^2 / min(K_a, K_b),
                Q orthonormal bases. 0: nothing shared, 1: one space lies in the other
    chance      what two random spaces of these sizes share on average: max(K_a, K_b) / size
    strength    s = max_k |A_k| / |sum_k A_k|, at which the sum is as large as the strongest one

Norms and the strength are of all layers that an adapter has; cosines and overlaps of the layers
that both adapters of a pair have. A block's cosine and norms are those of its layers together, its
overlaps are their means. Overlap as the LoRA paper has it (arXiv 2106.09685, section 7.2), with min
for unequal ranks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.bases import families, family_of
from b4m.bases.family import Family
from b4m.errors import B4MError
from b4m.files.translate import read_together

_ALIKE, _AGAINST, _CROWDED, _UNEQUAL = 0.2, -0.1, 4.0, 3.0  # rules of thumb of the advice
_NOTHING = 1e-12
Pair = tuple[int, int]


@dataclass(frozen=True)
class Overlap:
    """Where two pairs of one layer, or of several layers together, meet.

    Attributes:
        inner: <A, B>.
        squares: |A|^2 and |B|^2.
        spaces: overlap of the row spaces and of the column spaces, in [0, 1], mean over layers.
        chance: the same of random spaces.
        layers: how many layers.
    """

    inner: float
    squares: tuple[float, float]
    spaces: tuple[float, float]
    chance: tuple[float, float]
    layers: int = 1

    @property
    def cosine(self) -> float:
        """In [-1, 1]; 0 if either is zero."""
        product = (self.squares[0] * self.squares[1]) ** 0.5
        return self.inner / product if product > 0 else 0.0

    def facts(self) -> dict[str, Any]:
        """Rounded, for people and JSON."""
        return {
            "layers": self.layers,
            "cosine": round(self.cosine, 4),
            "overlap_in": round(self.spaces[0], 4),
            "overlap_out": round(self.spaces[1], 4),
            "chance_in": round(self.chance[0], 4),
            "chance_out": round(self.chance[1], 4),
        }


@dataclass(frozen=True)
class Meeting:
    """How some adapters meet in one layer, or in several together.

    Attributes:
        squares: |A_k|^2 of each adapter.
        pairs: overlap of every two, by their numbers from 0.
        layers: how many layers any of them has.
    """

    squares: tuple[float, ...]
    pairs: Mapping[Pair, Overlap] = field(default_factory=dict)
    layers: int = 1

    @property
    def norms(self) -> list[float]:
        """|A_k| of each adapter."""
        return [square**0.5 for square in self.squares]

    @property
    def strength(self) -> float:
        """The factor on the sum that gives it the norm of the strongest one; 1 if they cancel."""
        whole = sum(self.squares) + 2 * sum(pair.inner for pair in self.pairs.values())
        lasting = whole > _NOTHING * sum(self.squares)
        return (max(self.squares) / whole) ** 0.5 if lasting else 1.0

    def facts(self) -> dict[str, Any]:
        """Rounded, for people and JSON; pairs as "1-2"."""
        return {
            "layers": self.layers,
            "norms": [round(norm, 4) for norm in self.norms],
            "strength": round(self.strength, 4),
            "pairs": {f"{a + 1}-{b + 1}": pair.facts() for (a, b), pair in self.pairs.items()},
        }


class _Spaces:
    """A pair with orthonormal bases of what it reads and what it writes."""

    def __init__(self, pair: LowRank) -> None:
        self.pair = pair
        turned = LowRank(pair.down.mT, pair.up.mT)
        self.bases: tuple[Tensor, Tensor] = (
            pair.row_space().double(),
            turned.row_space().double(),
        )


def overlap_of(first: LowRank, second: LowRank) -> Overlap:
    """Where two pairs of one layer meet.

    Raises:
        B4MError: if they are of different sizes.
    """
    return meeting_of([first, second]).pairs[0, 1]


def meeting_of(pairs: Sequence[LowRank | None]) -> Meeting:
    """How some adapters meet in one layer; None is an adapter that lacks it.

    Raises:
        B4MError: if two are of different sizes.
    """
    every = {k: _Spaces(pair) for k, pair in enumerate(pairs) if pair is not None}
    squares = tuple(pair.inner(pair) if pair is not None else 0.0 for pair in pairs)
    overlaps = {}
    for a, b in combinations(every, 2):
        inner = every[a].pair.inner(every[b].pair)  # says so if they are of different sizes
        shared = [_shared(*bases) for bases in zip(every[a].bases, every[b].bases, strict=True)]
        (reads, by_chance), (writes, writes_by_chance) = shared
        overlaps[a, b] = Overlap(
            inner, (squares[a], squares[b]), (reads, writes), (by_chance, writes_by_chance)
        )
    return Meeting(squares, overlaps)


def _shared(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Overlap of two bases, and that of random ones of their sizes."""
    ranks = one.shape[1], other.shape[1]
    both = float((one.mT @ other).square().sum())
    return both / min(ranks) if min(ranks) else 0.0, max(ranks) / one.shape[0]


def together(overlaps: Iterable[Overlap]) -> Overlap:
    """Several layers as one."""
    every = list(overlaps)

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(every)

    return Overlap(
        inner=sum(one.inner for one in every),
        squares=(sum(one.squares[0] for one in every), sum(one.squares[1] for one in every)),
        spaces=(mean(one.spaces[0] for one in every), mean(one.spaces[1] for one in every)),
        chance=(mean(one.chance[0] for one in every), mean(one.chance[1] for one in every)),
        layers=len(every),
    )


def met(meetings: Sequence[Meeting]) -> Meeting:
    """Several layers as one; a pair of adapters without a common layer is left out."""
    squares = tuple(map(sum, zip(*(one.squares for one in meetings), strict=True)))
    pairs = sorted({pair for one in meetings for pair in one.pairs})
    return Meeting(
        squares,
        {p: together(one.pairs[p] for one in meetings if p in one.pairs) for p in pairs},
        len(meetings),
    )


def compare_files(paths: Sequence[str | Path]) -> dict[str, Any]:
    """How two adapter files or more meet: as a whole, by block, and what follows in words.

    The whole is the denoiser; each text encoder is a block of its own.

    Raises:
        B4MError: for a file that cannot be read, or files of different bases.
    """
    adapters = read_together(paths)
    first = next((a for a in adapters if a.layers), adapters[0])
    family = family_of(first.layers, first.metadata.family) or families()[0]
    layers = [adapter.every() for adapter in adapters]
    blocks: dict[str, list[Meeting]] = {}
    networks: dict[str, list[Meeting]] = {}
    for name in sorted(set().union(*layers)):
        try:
            found = meeting_of([own.get(name) for own in layers])
        except B4MError as error:
            raise B4MError(f"{name}: {error}") from None
        network, block = _place(name, adapters, family)
        blocks.setdefault(block, []).append(found)
        networks.setdefault(network, []).append(found)
    whole = met(networks.get("denoiser") or [one for found in blocks.values() for one in found])
    by_block = {block: met(blocks[block]) for block in sorted(blocks, key=_place_of)}
    return {
        "files": [str(path) for path in paths],
        "base": family.title,
        "layers": [len(own) for own in layers],
        "strength": {name: round(met(found).strength, 4) for name, found in networks.items()},
        "blocks": {block: found.facts() for block, found in by_block.items()},
        "together": whole.facts(),
        "advice": advice(whole, by_block),
    }


def _place(name: str, adapters: Sequence[Adapter], family: Family) -> tuple[str, str]:
    """Network and block of a layer; a text encoder is one block."""
    if any(name in adapter.layers for adapter in adapters):
        return "denoiser", family.group_of(name)
    network, _, module = name.partition(".")
    return network, family.part(network, module) or "text_encoder"


def _place_of(block: str) -> tuple[bool, list[tuple[str, int]]]:
    """Text encoders behind the denoiser's blocks, and block 10 behind block 2."""
    words = re.findall(r"(\D*)(\d*)", block)
    return block.startswith("text_encoder"), [(word, int(n or -1)) for word, n in words]


def advice(whole: Meeting, blocks: Mapping[str, Meeting]) -> list[str]:
    """What to expect of a merge, in words. The limits are rules of thumb, not measured ones."""
    if not whole.pairs:
        return ["No layer is in both, so any merge keeps all as they are."]
    said = []
    for (a, b), pair in whole.pairs.items():
        who = "They" if len(whole.squares) == 2 else f"{a + 1} and {b + 1}"
        said += [f"{who} {what}" for what in _advice_of_two(pair, (a, b), blocks)]
    norms = [norm for norm in whole.norms if norm > 0]
    if len(norms) > 1 and max(norms) > _UNEQUAL * min(norms):
        said.append(_unequal(whole.norms))
    # Adapters at right angles have a longer sum too, which does not oversaturate.
    if any(pair.cosine > _ALIKE for pair in whole.pairs.values()):
        said.append(
            f"A plain sum is {1 / whole.strength:.1f} times as strong as the strongest; "
            f"--auto-strength multiplies it by {whole.strength:.2f}."
        )
    return said or ["They hardly meet: a direct merge keeps all."]


def _advice_of_two(whole: Overlap, pair: Pair, blocks: Mapping[str, Meeting]) -> list[str]:
    said = []
    if whole.cosine > _ALIKE:
        said.append(
            f"push in the same direction (cosine {whole.cosine:.2f}), which a plain sum doubles: "
            "take ssr, which weighs them by what they do, or tsv, which turns them apart."
        )
    elif whole.cosine < _AGAINST:
        said.append(
            f"push against each other (cosine {whole.cosine:.2f}): a plain sum loses of both, "
            "ties keeps the stronger one where they disagree."
        )
    here = {name: found.pairs[pair] for name, found in blocks.items() if pair in found.pairs}
    crowded = [
        name
        for name, block in here.items()
        if block.spaces[0] > min(_CROWDED * block.chance[0], 0.9)
    ]
    if crowded:
        most = max(crowded, key=lambda name: here[name].spaces[0])
        said.append(
            f"read the same directions in {len(crowded)} of {len(here)} blocks, most in {most} "
            f"({here[most].spaces[0]:.2f}, by chance {here[most].chance[0]:.2f}): rather than a "
            "direct merge take tsv or ssr, or nplora, which keeps the later one whole."
        )
    return said


def _unequal(norms: Sequence[float]) -> str:
    """Weights that bring adapters half way to one another, as a command line takes them."""
    strongest = max(norms)
    weights = [(strongest / norm) ** 0.5 if norm > 0 else 1.0 for norm in norms]
    weak = min((k for k, norm in enumerate(norms) if norm > 0), key=lambda k: norms[k])
    return (
        f"{norms.index(strongest) + 1} is {strongest / norms[weak]:.1f} times as strong as "
        f"{weak + 1}; where that does not show, try --weights "
        f"{' '.join(f'{weight:.3g}' for weight in weights)} with --auto-strength."
    )
