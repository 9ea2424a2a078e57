"""How two adapters meet in the layers that both have: before a merge, what it will be up against.

With dW = up down of each, all from small matrices:

    cosine      <A, B> / (|A| |B|)                    1: the same change, -1: they cancel
    overlap     mean cos^2 of the principal angles between the row spaces (what the layers read) and
                between the column spaces (what they write): |Q_a^T Q_b|_F^2 / min(K_a, K_b),
                Q orthonormal bases. 0: nothing shared, 1: one space lies in the other
    chance      what two random spaces of these sizes share on average: max(K_a, K_b) / size
    strength    s = max(|A|, |B|) / |A + B|, at which the sum is as large as the stronger one

A block's cosine and norms are those of its layers together; its overlaps are their means.
Overlap as the LoRA paper has it (arXiv 2106.09685, section 7.2), with min for unequal ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.bases import families, family_of
from b4m.errors import B4MError
from b4m.files.translate import read_together

_ALIKE, _AGAINST, _CROWDED, _UNEQUAL = 0.2, -0.1, 4.0, 3.0  # rules of thumb of the advice


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

    @property
    def strength(self) -> float:
        """The factor on A + B that gives it the norm of the stronger one; 1 if they cancel."""
        whole = sum(self.squares) + 2 * self.inner
        return (max(self.squares) / whole) ** 0.5 if whole > 1e-12 * sum(self.squares) else 1.0

    def facts(self) -> dict[str, Any]:
        """Rounded, for people and JSON."""
        return {
            "layers": self.layers,
            "norms": [round(square**0.5, 4) for square in self.squares],
            "cosine": round(self.cosine, 4),
            "overlap_in": round(self.spaces[0], 4),
            "overlap_out": round(self.spaces[1], 4),
            "chance_in": round(self.chance[0], 4),
            "chance_out": round(self.chance[1], 4),
        }


def overlap_of(first: LowRank, second: LowRank) -> Overlap:
    """Where two pairs of one layer meet.

    Raises:
        B4MError: if they are of different sizes.
    """
    spaces, chance = [], []
    for turn in (lambda pair: pair, lambda pair: LowRank(pair.down.mT, pair.up.mT)):
        one, two = (turn(pair).row_space().double() for pair in (first, second))
        ranks = one.shape[1], two.shape[1]
        shared = float((one.mT @ two).square().sum())
        spaces.append(shared / min(ranks) if min(ranks) else 0.0)
        chance.append(max(ranks) / one.shape[0])
    squares = first.inner(first), second.inner(second)
    return Overlap(first.inner(second), squares, (spaces[0], spaces[1]), (chance[0], chance[1]))


def together(overlaps: Iterable[Overlap]) -> Overlap:
    """Several layers as one."""
    every = list(overlaps)

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values) if values else 0.0

    return Overlap(
        inner=sum(one.inner for one in every),
        squares=(sum(one.squares[0] for one in every), sum(one.squares[1] for one in every)),
        spaces=(mean([one.spaces[0] for one in every]), mean([one.spaces[1] for one in every])),
        chance=(mean([one.chance[0] for one in every]), mean([one.chance[1] for one in every])),
        layers=len(every),
    )


def compare_files(paths: Sequence[str | Path]) -> dict[str, Any]:
    """How two adapter files meet: as a whole, by block, and what follows from it in words.

    Raises:
        B4MError: for a file that cannot be read, or files of different bases.
    """
    first, second = read_together(paths)
    family = family_of(first.layers or second.layers, first.metadata.family) or families()[0]
    one, two = _layers(first), _layers(second)
    blocks: dict[str, list[Overlap]] = {}
    for name in sorted(one.keys() & two.keys()):
        text = name in first.text_layers
        group = name.partition(".")[0] if text else family.group_of(name)
        try:
            blocks.setdefault(group, []).append(overlap_of(one[name], two[name]))
        except B4MError as error:
            raise B4MError(f"{name}: {error}") from None
    whole = together(overlap for group in blocks.values() for overlap in group)
    alone = [sum(pair.norm() ** 2 for pair in layers.values()) ** 0.5 for layers in (one, two)]
    return {
        "files": [str(path) for path in paths],
        "base": family.title,
        "layers": [len(one), len(two)],
        "norms": [round(norm, 4) for norm in alone],
        "shared": whole.facts(),
        "strength": round(whole.strength, 4),
        "blocks": {group: together(overlaps).facts() for group, overlaps in blocks.items()},
        "advice": advice(whole, {group: together(overlaps) for group, overlaps in blocks.items()}),
    }


def advice(whole: Overlap, blocks: dict[str, Overlap]) -> list[str]:
    """What to expect of a merge, in words. The limits are rules of thumb, not measured ones."""
    if not whole.layers:
        return ["No layer is in both, so any merge keeps both as they are."]
    said = []
    if whole.cosine > _ALIKE:
        said.append(
            f"Both push in the same direction (cosine {whole.cosine:.2f}): a plain sum is too "
            f"strong; multiply it by {whole.strength:.2f}, or take the svd merge."
        )
    elif whole.cosine < _AGAINST:
        said.append(
            f"They push against each other (cosine {whole.cosine:.2f}): a plain sum loses of both; "
            "ties keeps the stronger one where they disagree."
        )
    norms = [square**0.5 for square in whole.squares]
    if min(norms) > 0 and max(norms) > _UNEQUAL * min(norms):
        weak = "first" if norms[0] < norms[1] else "second"
        said.append(
            f"One is {max(norms) / min(norms):.1f} times as strong as the other; give the {weak} "
            "one more weight if it does not show."
        )
    crowded = [
        name
        for name, block in blocks.items()
        if block.spaces[0] > min(_CROWDED * block.chance[0], 0.9)
    ]
    if crowded:
        said.append(
            f"They read the same directions in {len(crowded)} of {len(blocks)} blocks (most in "
            f"{max(crowded, key=lambda name: blocks[name].spaces[0])}): nplora takes these from "
            "the first one, tsv makes them orthogonal."
        )
    return said or ["They hardly meet: a direct merge keeps both."]


def _layers(adapter: Adapter) -> dict[str, LowRank]:
    return adapter.layers | adapter.text_layers
