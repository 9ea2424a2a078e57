"""Which family of bases an adapter or a checkpoint is of, by names and sizes of its layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from b4m.bases import families
from b4m.bases.family import Family
from b4m.bases.name_tables import TABLES
from b4m.bases.named import UNKNOWN
from b4m.errors import B4MError

_DENOISER = "model.diffusion_model."
# Beginnings of names of a checkpoint's other parts: they are alike in several families.
_BESIDE = ("first_stage_model.", "vae.", "conditioner.", "cond_stage_model.", "text_encoder")
_ADAPTER = (".lora_", ".lokr_", ".hada_", ".lora.")


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


def family_of_checkpoint(base: str, path: Path) -> str:
    """Name of the family that a single-file checkpoint is of, by the names and sizes in its header.

    Args:
        base: what the user calls it.
        path: the file.

    Raises:
        B4MError: if it is not a checkpoint of a family that can be loaded.
    """
    shapes = _denoiser_shapes(base, path)
    family = recognise(shapes)[0]
    loadable = {one.name: one.title for one in families()}
    if family.name in loadable:
        return family.name
    advice = f"give a checkpoint of {' or '.join(loadable.values())}"
    if family is UNKNOWN:
        few = ", ".join(list(shapes)[:2]) or "none"
        raise B4MError(
            f"base {base}: is of no known family; it has {len(shapes)} layers ({few}); {advice}"
        )
    raise B4MError(
        f"base {base}: is a checkpoint of {family.title}, of which only adapter files can be read; "
        f"{advice}"
    )


def _denoiser_shapes(base: str, path: Path) -> dict[str, tuple[int, int]]:
    """Outputs, and inputs times kernel, of the denoiser's layers by the names in the file."""
    try:
        with safe_open(path, "np") as stream:
            sizes = {name: stream.get_slice(name).get_shape() for name in stream.keys()}
    except (SafetensorError, OSError) as error:
        raise B4MError(
            f"base {base}: is not a safetensors file; give a folder that diffusers saved, or a "
            f"single-file checkpoint (.safetensors)"
        ) from error
    if any(part in name for name in sizes for part in _ADAPTER):
        raise B4MError(f"base {base}: is an adapter file; give the base model that it was made for")
    layers = {
        name.removesuffix(".weight"): (size[0], math.prod(size[1:]))
        for name, size in sizes.items()
        if name.endswith(".weight") and len(size) > 1
    }
    own = {name: size for name, size in layers.items() if name.startswith(_DENOISER)}
    return own or {n: size for n, size in layers.items() if not n.startswith(_BESIDE)}
