"""A finished adapter made leaner: ranks that carry little, and directions that the base lacks.

    prune       each layer keeps the smallest rank that holds a share of its energy (Eckart-Young)
    intruders   u_i, s_i, v_i of W + dW (the k largest) whose u_i is like no left singular vector of
                W, max_j |<u_i, u_j(W)>| < eps, are weakened:  dW <- dW - (1 - w) s_i u_i v_i^T,
                then dW is cut to the rank that it had

Intruder dimensions: arXiv 2410.21228, where fine-tuning that has many forgets more; k = 10,
eps = 0.5 and w = 0.75 are those of PEFT's `reduce_intruder_dimension`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lazy import made, size_of
from b4m.adapters.lowrank import LowRank
from b4m.adapters.truncation import cut, ranks_for
from b4m.bases import family_of
from b4m.bases.family import Family
from b4m.errors import B4MError
from b4m.files.checkpoint import Checkpoint

TOP, THRESHOLD = 10, 0.5


def pruned(adapter: Adapter, energy: float) -> Adapter:
    """Every layer with the smallest rank that holds this share of its energy.

    The metadata get the new largest rank, and the share of all energy that is lost.

    Args:
        adapter: whose layers are cut.
        energy: in (0, 1]; 1 drops only what is zero.
    """
    every = adapter.every()
    kept = {name: max(1, _kept(every[name], energy)) for name in every}
    shorter, lost = cut(every, kept)

    def part(names: Mapping[str, LowRank]) -> Mapping[str, LowRank]:
        return made(
            names, lambda name: shorter[name], [shorter], lambda name: size_of(shorter, name)
        )

    rank = max((size_of(shorter, name)[1] for name in every), default=0)
    config = {**adapter.metadata.config, "energy_lost": lost.total if lost else 0.0}
    metadata = replace(adapter.metadata, rank=rank, config=config)
    return Adapter(part(adapter.layers), metadata, part(adapter.text_layers))


def without_intruders(adapter: Adapter, base: Checkpoint, weight: float) -> Adapter:
    """The adapter with its intruder dimensions weakened; layers of the text encoders as they are.

    Args:
        adapter: of this base.
        base: its weights.
        weight: on intruders, in [0, 1]; 0 takes them out.

    Raises:
        B4MError: if the base lacks a layer or has it in another size.
    """
    family = family_of(adapter.layers, adapter.metadata.family)
    found: list[int] = []

    def weakened(name: str) -> LowRank:
        assert family is not None
        pair = adapter.layers[name]
        result, number = weaken(pair, matrix_of(base, family, name, pair), weight)
        found.append(number)
        return result

    layers = {name: weakened(name) for name in adapter.layers}
    config = {**adapter.metadata.config, "intruders": sum(found), "intruder_weight": weight}
    return replace(adapter, layers=layers, metadata=replace(adapter.metadata, config=config))


def matrix_of(base: Checkpoint, family: Family, name: str, pair: LowRank) -> Tensor:
    """The base's weights of a layer.

    Raises:
        B4MError: if it is not there or of another size.
    """
    matrix = base.matrix((family.denoiser, name), family)
    if matrix is None:
        raise B4MError(f"{base.path} has no layer {name}, which the adapter changes")
    if tuple(matrix.shape) != pair.shape:
        raise B4MError(
            f"{name} is {matrix.shape[0]} x {matrix.shape[1]} in {base.path} and {pair.size} in "
            "the adapter; give the base that it is made for"
        )
    return matrix


def weaken(pair: LowRank, base_OI: Tensor, weight: float) -> tuple[LowRank, int]:
    """One layer with its intruders weakened, and how many there are."""
    merged = base_OI.double() + pair.to(dtype=torch.float64).dense()
    left, sigma, right = torch.linalg.svd(merged, full_matrices=False)
    base_left = torch.linalg.svd(base_OI.double(), full_matrices=False).U
    likeness = (left[:, :TOP].T @ base_left).abs().max(dim=1).values
    places = (likeness < THRESHOLD).nonzero().flatten()
    if not len(places):
        return pair, 0
    intruders = LowRank(left[:, places] * sigma[places], right[places]).scale(weight - 1)
    changed, _ = (pair.to(dtype=torch.float64) + intruders).truncate(pair.rank)
    return changed.to(dtype=pair.up.dtype), len(places)


def _kept(pair: LowRank, energy: float) -> int:
    sigma = pair.singular_values()
    nonzero = int((sigma > 10 * torch.finfo(sigma.dtype).eps * sigma[:1]).sum())
    return min(nonzero, ranks_for(sigma, energy))
