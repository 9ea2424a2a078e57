"""Randomness of training as a pure function of (seed, position).

The order of the examples and every draw of noise derive from the seed and the position in the run,
so a resumed run needs no stored generator and repeats exactly what the killed one would have done.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any sequence of numbers and names; different parts, unrelated seeds."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class ShuffledIndices:
    """An endless shuffled stream of example indices: one permutation after the other.

    Each example comes once before any comes twice; a batch may span two permutations.
    """

    examples: int
    batch_size: int
    seed: int
    name: str = "order"

    def batch(self, position: int) -> list[int]:
        """Indices of batch number `position`, counted from 0."""
        first = position * self.batch_size
        return [self._at(index) for index in range(first, first + self.batch_size)]

    def _at(self, index: int) -> int:
        epoch, place = divmod(index, self.examples)
        return _permutation(self.examples, derive_seed(self.seed, self.name, epoch))[place]


@lru_cache(maxsize=64)
def _permutation(examples: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randperm(examples, generator=generator).tolist())
