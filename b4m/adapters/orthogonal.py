"""Seeded orthogonal bases: the frozen blocks of B4M's partly learnable projections.

The basis of a layer follows from (basis_seed, layer name, block) alone. So a content run and a
style run that share the seed share every frozen block, whatever order, subset or machine they are
built in; the released code draws them from the process's generator and hopes that both runs agree.

Entries are rounded to multiples of 2^-20: two LAPACKs differ in the last bits of a QR, and *make*
compares frozen blocks bit for bit. The rounding costs 4e-7 of orthonormality, as float32 does.
"""

import hashlib

import torch
from torch import Tensor

GRID = 2.0**20


def generator_for(seed: int, layer: str, block: str) -> torch.Generator:
    """A CPU generator that depends on nothing but its three arguments."""
    digest = hashlib.sha256(f"{seed}/{layer}/{block}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A random matrix Q with Q^T Q = I (rows >= columns) or Q Q^T = I (rows < columns).

    Uniform over all such matrices: QR of a Gaussian matrix with the signs of R's diagonal moved
    into Q (Mezzadri, math-ph/0609050). Drawn in float64, returned in float32.

    Args:
        rows: rows of the result, may be 0.
        columns: columns of the result, may be 0.
        generator: on the CPU.
    """
    if rows < columns:
        return orthonormal(columns, rows, generator).T.contiguous()
    gaussian = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    basis, triangle = torch.linalg.qr(gaussian)
    basis = basis * triangle.diagonal().sign()
    return ((basis * GRID).round() / GRID).float()
