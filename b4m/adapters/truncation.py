"""Layers cut to fewer ranks, and what that loses of their energy.

The energy of a layer is its squared Frobenius norm, the sum of its squared singular values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from b4m.adapters.lazy import Lazy, Size, is_lazy, made, size_of
from b4m.adapters.lowrank import LowRank

_ZERO = 1e-12  # of the largest eigenvalue
Result = TypeVar("Result")


@dataclass(frozen=True)
class Lost:
    """Shares of energy that a cut drops, in [0, 1].

    Attributes:
        total: of all layers together.
        worst_layer: the largest of one layer.
    """

    total: float
    worst_layer: float


def cut(
    layers: Mapping[str, LowRank], ranks: Mapping[str, int]
) -> tuple[Mapping[str, LowRank], Lost | None]:
    """Each layer at its best approximation of at most `ranks[name]` ranks (0 keeps all).

    Lazy layers are cut twice: once to see what is lost, and when they are asked for.

    Returns:
        The layers, and what was lost; None if no layer was too wide.
    """
    wide = [name for name in layers if 0 < ranks[name] < size_of(layers, name)[1]]
    if not wide:
        return layers, None

    def shorter(name: str) -> tuple[LowRank, float]:
        return layers[name].truncate(ranks[name])

    lazy = is_lazy(layers)
    cuts = (
        Lazy(wide, shorter) if lazy else dict(zip(wide, side_by_side(shorter, wide), strict=True))
    )
    sizes: dict[str, Size] = {}
    energy = lost = worst = 0.0
    for name in layers:
        pair, share = cuts[name] if name in cuts else (layers[name], 0.0)
        sizes[name] = pair.out_features, pair.rank, pair.in_features
        kept = pair.norm() ** 2
        energy, lost = energy + kept / (1.0 - share), lost + kept * share / (1.0 - share)
        worst = max(worst, share)

    def result(name: str) -> LowRank:
        return cuts[name][0] if name in cuts else layers[name]

    return made(layers, result, [layers], sizes.get), Lost(lost / energy if energy else 0.0, worst)


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


def pair_of(dense_OI: Tensor, rank: int, energy: float = 1.0) -> tuple[LowRank, float]:
    """The best pair for a matrix, in its singular basis (Eckart-Young), and the share it loses.

    By the eigenvectors of the smaller Gram matrix, in float64: singular values below 1e-6 of the
    largest are taken for zero.

    Args:
        dense_OI: the matrix.
        rank: most ranks that are kept.
        energy: share of the energy that is enough.
    """
    wide = dense_OI.shape[0] > dense_OI.shape[1]
    matrix = (dense_OI.T if wide else dense_OI).double()
    squares, left = torch.linalg.eigh(matrix @ matrix.T)
    squares, left = squares.flip(0).clamp(min=0), left.flip(1)
    total = float(squares.sum())
    kept = int((squares > _ZERO * squares[0]).sum())
    kept = min(kept, rank, ranks_for(squares.sqrt(), energy))
    root_K = squares[:kept].sqrt().sqrt()
    up, down = left[:, :kept] * root_K, (left[:, :kept].T @ matrix) / root_K[:, None]
    pair = LowRank(down.T, up.T) if wide else LowRank(up, down)
    lost = float(squares[kept:].sum()) / total if total > 0 else 0.0
    return pair.to(dtype=torch.promote_types(dense_OI.dtype, torch.float32)), lost


def ranks_for(sigma_K: Tensor, energy: float) -> int:
    """How many of these singular values, largest first, hold this share of their squares' sum."""
    if energy >= 1:
        return len(sigma_K)
    squares = sigma_K.double().square()
    left_out = squares.flip(0).cumsum(0).flip(0)  # of the k-th on
    return int((left_out > (1 - energy) * squares.sum()).sum())
