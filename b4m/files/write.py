"""Write adapter files for every tool.

Equal adapters give equal bytes, so files can be compared and cached by hash.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lazy import Size, made, size_of
from b4m.adapters.lowrank import LowRank
from b4m.adapters.truncation import cut
from b4m.bases import families, family_of
from b4m.bases.family import Family
from b4m.bases.named import NamedFamily
from b4m.errors import B4MError
from b4m.files import forms
from b4m.files.read import DTYPES, Address, few
from b4m.files.scales import PEFT_CONFIG
from b4m.files.tensors import Entry, is_finite, write_tensors
from b4m.files.translate import renamed
from b4m.io import write_whole

PEFT_WEIGHTS = "adapter_model.safetensors"
Place = tuple[Mapping[str, LowRank], str]  # a mapping of layers and a name in it


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
    places = _addressed(adapter, family, file)
    sizes = {address: size_of(*place) for address, place in places.items()}
    ranks = {address: size[1] for address, size in sizes.items()}
    config = forms.peft_config(family, ranks, adapter.metadata) if form == "peft" else None
    layers, alpha = forms.layout(form, family, sizes, DTYPES[dtype])
    alphas = [Entry(layer.alpha, (), torch.float32) for layer in layers if layer.alpha]
    factors = [entry for layer in layers for entry in layer.entries()]
    header = forms.header(form, family, ranks, adapter.metadata)

    def tensors() -> Iterator[Tensor]:
        yield from (torch.tensor(alpha) for _ in alphas)
        for layer in layers:
            mapping, name = places[layer.address]
            yield from _finite(layer, mapping[name], file)

    write_tensors(file, header, [*alphas, *factors], tensors())
    if config is not None:
        write_whole(file.parent / PEFT_CONFIG, json.dumps(config, indent=2) + "\n")
    return file


def with_rank(adapter: Adapter, rank: int) -> Adapter:
    """The adapter with every layer of one rank: cut to it (Eckart-Young), or filled up with zeros.

    Loaders that exchange adapters without recompiling, and old ones, want one rank. What is lost is
    told in a warning and in the metadata as `energy_lost`, the share of the squared Frobenius norm.
    """
    every = adapter.every()
    shorter, lost = cut(every, dict.fromkeys(every, rank))

    def size(name: str) -> Size:
        rows, _, columns = size_of(shorter, name)
        return rows, rank, columns

    def even(names: Mapping[str, LowRank]) -> Mapping[str, LowRank]:
        return made(names, lambda name: _filled(shorter[name], rank), [shorter], size)

    config = dict(adapter.metadata.config)
    if lost is not None and lost.total > 0:
        config["energy_lost"] = lost.total
        warnings.warn(
            f"rank {rank} loses {lost.total:.2%} of the energy of the layers", stacklevel=2
        )
    return Adapter(
        even(adapter.layers),
        replace(adapter.metadata, rank=rank, config=config),
        even(adapter.text_layers),
    )


def _filled(pair: LowRank, rank: int) -> LowRank:
    more = rank - pair.rank
    up_OR = torch.nn.functional.pad(pair.up, (0, more))
    return LowRank(up_OR, torch.nn.functional.pad(pair.down, (0, 0, 0, more)))


def _finite(layer: forms.Written, pair: LowRank, file: Path) -> Iterator[Tensor]:
    """The layer's tensors in the order of its entries.

    Raises:
        B4MError: for NaN and infinite numbers, also those that the storage dtype makes.
    """
    for entry, tensor in layer.tensors(pair).items():
        if not is_finite(tensor):
            part = "down" if entry == layer.down else "up"
            where = ".".join(filter(None, layer.address))
            raise B4MError(
                f"{file}: {part} of {where} has NaN or infinite numbers as {entry.dtype}"
            )
        yield tensor


def _addressed(adapter: Adapter, family: Family, file: Path) -> dict[Address, Place]:
    """Where all pairs of an adapter are, by network and module; rank 0 left out, names checked."""
    places = {(family.denoiser, name): (adapter.layers, name) for name in adapter.layers}
    for name in adapter.text_layers:
        network, _, module = name.partition(".")
        places[network, module] = adapter.text_layers, name
    places = {address: place for address, place in places.items() if size_of(*place)[1] > 0}
    if not places:
        raise B4MError(f"{file}: an adapter without layers is not written")
    unknown = [".".join(a) for a in places if a[0] not in family.networks or not family.known(*a)]
    if unknown:
        raise B4MError(
            f"{file}: {len(unknown)} names are not layers of {family.title}: {few(unknown)}"
        )
    return places
