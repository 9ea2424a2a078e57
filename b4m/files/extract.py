"""A LoRA of two checkpoints: what a fine-tuning changed, layer by layer, at a low rank.

    dW = W_tuned - W_base,     the best pair of at most this rank (Eckart-Young)

Convolutions are matrices, outputs x inputs * kernel (LoCon). What is no matrix of the denoiser
(biases, norms, text encoders, the autoencoder) has no place in such a file; that it changed is
told.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

from tqdm import tqdm

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.adapters.truncation import pair_of
from b4m.bases.family import Family
from b4m.bases.named import UNKNOWN, NamedFamily, split
from b4m.errors import B4MError
from b4m.files.checkpoint import Checkpoint, Weight
from b4m.files.read import few


def extract_adapter(
    base: Path, tuned: Path, rank: int, energy: float = 1.0, device: str = "cpu"
) -> Adapter:
    """The difference of two checkpoints of one base as an adapter.

    Args:
        base: checkpoint file or diffusers folder.
        tuned: the same after fine-tuning.
        rank: most ranks of a layer.
        energy: share of a layer's energy that is enough, in (0, 1].
        device: that decomposes.

    Returns:
        The adapter; "energy_lost" in its metadata is the share of the squared Frobenius norm of all
        layers that it lacks.

    Raises:
        B4MError: for unreadable files, checkpoints of two bases or layers of two shapes, or no
            difference.
    """
    first, second = Checkpoint(base), Checkpoint(tuned)
    if first.family.name != second.family.name:
        raise B4MError(
            f"{base} is {first.family.title}, {tuned} is {second.family.title}; a difference is of "
            "two checkpoints of one base"
        )
    family = second.family
    layers: dict[str, LowRank] = {}
    missing: list[str] = []
    whole = lost = 0.0
    for stem, weight in tqdm(second.weights.items(), "extract", unit="layer"):
        address = family.address(stem)
        if address is None or not family.knows(stem):
            continue
        before = first.matrix(address[:2], family)
        if before is None:
            missing.append(stem)
            continue
        after = weight.tensor()
        if before.shape != after.shape:
            raise B4MError(
                f"{stem} is {tuple(before.shape)} in {base} and {tuple(after.shape)} in {tuned}; "
                "are they of one base?"
            )
        difference = (after - before).to(device)
        total = float(difference.double().square().sum())
        if not math.isfinite(total):
            raise B4MError(f"{stem} has NaN or infinite numbers in {base} or {tuned}")
        if total > 0:
            pair, share = pair_of(difference, rank, energy)
            layers[_name(family, address, weight)] = pair.to(device="cpu")
            whole, lost = whole + total, lost + total * share
    if lost > 0:
        share = lost / whole
        warnings.warn(f"rank {rank} loses {share:.2%} of the energy of the change", stacklevel=2)
    others = [name for name in second.others if second.others[name] != first.others.get(name)]
    if others:
        warnings.warn(
            f"{len(others)} changed tensors are no matrices and are left out: {few(others)}",
            stacklevel=2,
        )
    if missing:
        warnings.warn(f"{base} lacks {len(missing)} layers: {few(missing)}", stacklevel=2)
    if not layers:
        raise B4MError(f"no linear layer differs between {base} and {tuned}")
    return Adapter(layers, _about(family, rank, energy, base, tuned, lost / whole))


def _name(family: Family, address: tuple[str, str, str], weight: Weight) -> str:
    """The layer's name in an adapter: a module path, or of named families as ComfyUI has it."""
    if not isinstance(family, NamedFamily):
        return address[1]
    path = split(weight.stem)[1]
    whole = family.wholes.get(path)
    diffusers = whole is not None and whole.part(path) is not None and path != whole.original
    beginning = f"{family.root}." if diffusers else "diffusion_model."
    return beginning + path + ("@" + "x".join(map(str, weight.kernel)) if weight.kernel else "")


def _about(
    family: Family, rank: int, energy: float, base: Path, tuned: Path, lost: float
) -> Metadata:
    name = "" if family is UNKNOWN else family.name
    config = {
        "base": base.name,
        "tuned": tuned.name,
        "rank": rank,
        "energy": energy,
        "energy_lost": lost,
    }
    return Metadata(method="extract", concept=tuned.stem, rank=rank, family=name, config=config)
