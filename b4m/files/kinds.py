"""Kinds of layers that are low-rank pairs without looking so: LoCon, LoHa, LoKr, exactly.

A convolution is a matrix: outputs x (inputs * kernel), so its pair is one too, with down (R, I, k,
k) read as R x I k k. With o the elementwise product and kron Kronecker's:

    LoHa    (A1 B1) o (A2 B2)   row i of up is kron of the rows i of A1 and A2, column j of down
            kron of the columns j of B1 and B2; rank r1 r2
    LoKr    kron(W1, W2), W = a b or whole. With W1 = a1 b1 and W2 = a2 b2 it is
            kron(a1, a2) kron(b1, b2), rank r1 r2; a whole W stands for W I or I W, whichever has
            the smaller inner size
    Tucker  with a core t (r r k k): down of the pair is t along b, and the rest is as above

Scales are those of LyCORIS 3 and PEFT 0.21: alpha / r, where r is the inner size of b; a LoKr of
two whole factors has none. LoHa: arXiv 2108.06098; LoKr: arXiv 2212.10650; both: arXiv 2309.14859.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from b4m.adapters.lowrank import LowRank
from b4m.errors import B4MError

Factors = tuple[Tensor, Tensor]
WIDEST = 1024  # largest rank of a LoHa or LoKr that is read as it is
_MOST = 1 << 27  # most numbers of a pair


def inner_size(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The r of alpha / r, from the parts' shapes; None where a file has no r."""
    names = {"LoRA": ("down",), "LoHa": ("hada_w1_b",), "LoKr": ("lokr_w2_b", "lokr_w1_b")}
    return next((shapes[name][0] for name in names[kind] if name in shapes), None)


def size(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Outputs, and inputs times kernel, of a layer by the shapes of its parts."""

    def count(numbers: tuple[int, ...]) -> int:
        product = 1
        for number in numbers:
            product *= number
        return product

    def whole(name: str, core: str) -> tuple[int, int]:
        if name in shapes:
            return shapes[name][0], count(shapes[name][1:])
        rows, columns = shapes[f"{name}_a"], shapes[f"{name}_b"]
        if core in shapes:
            return rows[1], columns[1] * count(shapes[core][2:])
        return rows[0], count(columns[1:])

    if kind == "LoRA":
        middle = count(shapes["lora_mid"][2:]) if "lora_mid" in shapes else 1
        return shapes["up"][0], count(shapes["down"][1:]) * middle
    if kind == "LoHa":
        return whole("hada_w1", "hada_t1")
    one, two = whole("lokr_w1", ""), whole("lokr_w2", "lokr_t2")
    return one[0] * two[0], one[1] * two[1]


def kernel(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """Kernel of a convolution's parts, () of a linear's, None where a flat factor hides it."""
    cores = {"LoRA": ("lora_mid", "down"), "LoHa": ("hada_t1",), "LoKr": ("lokr_t2", "lokr_w2")}
    for name in cores[kind]:
        if len(shapes.get(name, ())) > 2:
            return shapes[name][2:]
    return () if kind == "LoRA" or "lokr_w2" in shapes else None


def pair(kind: str, parts: Mapping[str, Tensor], rank: int = 0) -> tuple[LowRank, float]:
    """The layer as a low-rank pair, without its scale, and the share of its energy that is lost.

    Nothing is lost but in a LoHa or LoKr of a rank above `WIDEST`, which is cut to `rank`. A
    Kronecker product is cut by products of its factors' singular values, which are its own.

    Args:
        kind: "LoRA", "LoHa" or "LoKr".
        parts: its tensors in one floating dtype, convolutions with their kernels.
        rank: ranks kept of such a layer.

    Raises:
        B4MError: for such a layer if `rank` is 0, or for parts that do not fit each other.
    """
    shapes = {name: tuple(part.shape) for name, part in parts.items()}
    if kind == "LoRA":
        down = parts["down"]
        if "lora_mid" in parts:
            down = torch.einsum("rs...,si->ri...", parts["lora_mid"], down.flatten(1))
        return LowRank(parts["up"].flatten(1), down.flatten(1)), 0.0
    rows, columns = size(kind, shapes)
    if kind == "LoHa":
        first, second = _hadamard(parts, 1), _hadamard(parts, 2)
        inner = first[0].shape[1] * second[0].shape[1]
    else:
        first, second = (_split(*_factors(parts, name)) for name in ("lokr_w1", "lokr_w2"))
        inner = first[1].shape[0] * second[1].shape[0]
    if (rows + columns) * min(inner, rows, columns) > _MOST:
        raise B4MError(f"a {kind} of {rows} x {columns} and rank {inner} is larger than any model")
    if min(inner, rows, columns) <= WIDEST:
        product = _elementwise(first, second) if kind == "LoHa" else _kronecker(first, second)
        return (product, 0.0) if inner <= min(rows, columns) else (_whole(product), 0.0)
    if rank < 1:
        raise B4MError(
            f"a {kind} of rank {min(inner, rows, columns)}, which is no small pair; give a rank to "
            "cut it to with --rank"
        )
    if kind == "LoKr":
        return _kronecker_cut(LowRank(*first), LowRank(*second), rank)
    return _whole(_elementwise(first, second)).truncate(rank)


def _elementwise(first: Factors, second: Factors) -> LowRank:
    """(A1 B1) o (A2 B2)."""
    up_OR = torch.einsum("or,os->ors", first[0], second[0]).flatten(1)
    return LowRank(up_OR, torch.einsum("ri,si->rsi", first[1], second[1]).flatten(0, 1))


def _kronecker(first: Factors, second: Factors) -> LowRank:
    """kron(A1 B1, A2 B2)."""
    up, down = (
        torch.einsum("ab,cd->acbd", one, two).flatten(2).flatten(0, 1)
        for one, two in zip(first, second, strict=True)
    )
    return LowRank(up, down)


def _kronecker_cut(first: LowRank, second: LowRank, rank: int) -> tuple[LowRank, float]:
    """The best pair of this rank for a Kronecker product, and the share of energy lost."""
    one, two = first.svd_basis(), second.svd_basis()
    energies = torch.outer(*(p.up.double().square().sum(0).square() for p in (one, two))).flatten()
    kept = energies.topk(min(rank, energies.numel())).indices
    i, j = kept // two.rank, kept % two.rank
    up_OR = torch.einsum("ak,ck->ack", one.up[:, i], two.up[:, j]).flatten(0, 1)
    down_RI = torch.einsum("kb,kd->kbd", one.down[i], two.down[j]).flatten(1)
    total = float(energies.sum())
    lost = 1.0 - float(energies[kept].sum()) / total if total > 0 else 0.0
    return LowRank(up_OR, down_RI), max(lost, 0.0)


def _whole(product: LowRank) -> LowRank:
    """A pair whose rank is above its sizes, as its matrix and an identity."""
    dense = product.dense()
    rows, columns = dense.shape
    eye = torch.eye(min(rows, columns), dtype=dense.dtype)
    return LowRank(eye, dense) if rows <= columns else LowRank(dense, eye)


def _hadamard(parts: Mapping[str, Tensor], k: int) -> Factors:
    """One of LoHa's two products as factors."""
    a, b = parts[f"hada_w{k}_a"], parts[f"hada_w{k}_b"]
    if f"hada_t{k}" not in parts:
        return a, b.flatten(1)
    return a.T, torch.einsum("ij...,jr->ir...", parts[f"hada_t{k}"], b).flatten(1)


def _factors(parts: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor | None]:
    """A factor of LoKr as two factors, or whole with None."""
    if name in parts:
        return parts[name].flatten(1), None
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    if name == "lokr_w2" and "lokr_t2" in parts:
        return a.T, torch.einsum("ij...,jr->ir...", parts["lokr_t2"], b).flatten(1)
    return a, b.flatten(1)


def _split(first: Tensor, second: Tensor | None) -> Factors:
    if second is not None:
        return first, second
    rows, columns = first.shape
    if columns <= rows:
        return first, torch.eye(columns, dtype=first.dtype)
    return torch.eye(rows, dtype=first.dtype), first
