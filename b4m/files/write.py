"""Write adapter files for every tool.

Equal adapters give equal bytes, so files can be compared and cached by hash.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.bases import families, family_of
from b4m.bases.family import Family
from b4m.bases.named import NamedFamily
from b4m.errors import B4MError
from b4m.files import forms
from b4m.files.read import DTYPES, Address, check_finite, few
from b4m.files.scales import PEFT_CONFIG
from b4m.files.translate import renamed
from b4m.io import write_whole

PEFT_WEIGHTS = "adapter_model.safetensors"


def write_adapter(
    path: str | Path, adapter: Adapter, form: str = "", dtype: str = "float32"
) -> Path:
    """Write an adapter atomically, as a file that the named tool loads.

    Args:
        path: the file; for "peft" a folder, or a file beside which adapter_config.json is written.
        adapter: layers of rank 0 stand for zero and are left out.
        form: "diffusers" (also for PEFT's loaders in diffusers), "peft" (PeftModel of the
            denoiser), "kohya" (sd-scripts, A1111, ComfyUI) or "comfyui"; "" keeps the names of a
            base that is known by its names alone, and is "diffusers" for others.
        dtype: "float32", "float16" or "bfloat16".

    Returns:
        The path of the safetensors file.

    Raises:
        B4MError: for an unknown form or dtype, an empty adapter, a layer that has no name in this
            form, or numbers that are not finite in this dtype.
    """
    if form not in ("", *forms.FORMS) or dtype not in DTYPES:
        raise B4MError(
            f"cannot write form {form!r} in {dtype!r}; forms: {', '.join(forms.FORMS)}; "
            f"dtypes: {', '.join(DTYPES)}"
        )
    family = family_of(adapter.layers, adapter.metadata.family) or families()[0]
    if isinstance(family, NamedFamily):
        adapter = renamed(adapter, family, form) if form else adapter
        form = "peft" if any(n.startswith("base_model.") for n in adapter.layers) else form
    form = form or "diffusers"
    file = Path(path)
    if form == "peft" and file.suffix != ".safetensors":
        file = file / PEFT_WEIGHTS
    pairs = _addressed(adapter, family, file)
    check_finite(pairs, file, DTYPES[dtype])
    content = forms.serialize(
        forms.tensors(form, family, pairs, DTYPES[dtype]),
        forms.header(form, family, pairs, adapter.metadata),
    )
    config = forms.peft_config(family, pairs, adapter.metadata) if form == "peft" else None
    if config is not None:
        write_whole(file.parent / PEFT_CONFIG, json.dumps(config, indent=2) + "\n")
    return write_whole(file, content)


def with_rank(adapter: Adapter, rank: int) -> Adapter:
    """The adapter with every layer of one rank: cut to it (Eckart-Young), or filled up with zeros.

    Loaders that exchange adapters without recompiling, and old ones, want one rank. What is lost is
    told in a warning and in the metadata as `energy_lost`, the share of the squared Frobenius norm.
    """
    energy = lost = 0.0

    def changed(pair: LowRank) -> LowRank:
        nonlocal energy, lost
        whole = pair.norm() ** 2
        cut, share = pair.truncate(rank)
        energy, lost = energy + whole, lost + whole * share
        more = rank - cut.rank
        up_OR = torch.nn.functional.pad(cut.up, (0, more))
        return LowRank(up_OR, torch.nn.functional.pad(cut.down, (0, 0, 0, more)))

    even = adapter.mapped(changed)
    config = dict(adapter.metadata.config)
    if lost > 0:
        share = lost / energy
        config["energy_lost"] = share
        warnings.warn(f"rank {rank} loses {share:.2%} of the energy of the layers", stacklevel=2)
    return replace(even, metadata=replace(adapter.metadata, rank=rank, config=config))


def _addressed(adapter: Adapter, family: Family, file: Path) -> dict[Address, LowRank]:
    """All pairs of an adapter by network and module; rank 0 left out, names checked."""
    pairs = {(family.denoiser, module): pair for module, pair in adapter.layers.items()}
    for name, pair in adapter.text_layers.items():
        network, _, module = name.partition(".")
        pairs[network, module] = pair
    pairs = {address: pair for address, pair in pairs.items() if pair.rank > 0}
    if not pairs:
        raise B4MError(f"{file}: an adapter without layers is not written")
    unknown = [".".join(a) for a in pairs if a[0] not in family.networks or not family.known(*a)]
    if unknown:
        raise B4MError(
            f"{file}: {len(unknown)} names are not layers of {family.title}: {few(unknown)}"
        )
    return pairs
