"""What each written form of an adapter holds: tensors, header, and PEFT's config.

    diffusers   names that `load_lora_weights` reads; no alpha, which is scale 1; its own header key
    peft        names of PeftModel and an adapter_config.json with alpha = rank
    kohya       names of sd-scripts in the original code's naming, an alpha tensor per layer, ss_*
    comfyui     "diffusion_model." and the original code's names; no alpha
    ""          diffusers; an adapter of a family that is known by its names alone keeps its names

Factors are written as they are, so a round trip keeps every bit in float32. The exception is
kohya's form with unequal ranks. diffusers (0.42) loses kohya's alphas when they differ from layer
to layer, so all layers get the largest rank as alpha and up is multiplied by rank / alpha, which
every tool undoes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from b4m import torchvision_guard
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.bases.family import Family
from b4m.bases.named import NamedFamily, split
from b4m.errors import B4MError
from b4m.extras import needs
from b4m.files import keys
from b4m.files.read import Address
from b4m.files.scales import HEADER_KEY
from b4m.files.translate import flat

FORMS = ("diffusers", "peft", "kohya", "comfyui")
Pairs = Mapping[Address, LowRank]


def tensors(form: str, family: Family, pairs: Pairs, dtype: torch.dtype) -> dict[str, Tensor]:
    """The form's tensors by name, on the CPU and in the storage dtype."""
    found: dict[str, Tensor] = {}
    largest = max(pair.rank for pair in pairs.values())
    for (network, module), pair in pairs.items():
        stem, alone = _stem(form, family, network, module)
        if alone:
            down, up, alpha = keys.kohya_names(stem)
            found[alpha] = torch.tensor(float(largest))
            pair = pair if pair.rank == largest else pair.scale(pair.rank / largest)
        elif form == "diffusers" and not isinstance(family, NamedFamily):
            down, up = keys.diffusers_names(family, network, module)
        else:
            down, up = keys.peft_names(stem)
        kernel = family.kernel(network, module)
        found[down], found[up] = pair.down, pair.up
        if kernel:
            found[down] = pair.down.unflatten(1, (-1, *kernel))
            found[up] = pair.up[(..., *[None] * len(kernel))]
    return {
        name: tensor.detach().cpu().to(torch.float32 if tensor.ndim == 0 else dtype)
        for name, tensor in found.items()
    }


def header(form: str, family: Family, pairs: Pairs, metadata: Metadata) -> dict[str, str]:
    """The form's header; kohya's has sd-scripts' keys, which A1111 shows and trainers read."""
    found = {"format": "pt", **metadata.to_header(), **family.file_header}
    forms = {_form_of(form, family, *address) for address in pairs}
    if forms == {"diffusers"}:
        found[HEADER_KEY] = json.dumps(_diffusers_config(family, pairs), sort_keys=True)
    if "kohya" not in forms:
        return found
    rank = max(pair.rank for pair in pairs.values())
    found |= {
        **family.kohya_header,
        "ss_network_alpha": str(float(rank)),
        "ss_network_dim": str(rank),
        "ss_network_module": "networks.lora",
        "ss_output_name": metadata.concept or metadata.method or "adapter",
        "ss_seed": str(metadata.seed),
    }
    if metadata.triggers:
        tags = {trigger: 1 for trigger in metadata.triggers.values()}
        found["ss_tag_frequency"] = json.dumps({"b4m": tags})
    return found


def peft_config(family: Family, pairs: Pairs, metadata: Metadata) -> dict[str, Any]:
    """PEFT's own LoraConfig for these pairs: alpha = rank everywhere, unusual ranks by pattern.

    Raises:
        B4MError: for pairs of the text encoders, since PEFT's form holds one network, or without
            the package peft.
    """
    if any(network != family.denoiser for network, _ in pairs):
        raise B4MError(
            "PEFT's form holds one network and this adapter also has text encoder layers; "
            "write the diffusers or kohya form"
        )
    torchvision_guard.install()  # peft imports transformers, which looks for torchvision
    with needs("train", "the PEFT form of an adapter"):
        from peft import LoraConfig
    named = isinstance(family, NamedFamily)
    modules = {split(module)[1] if named else module: p for (_, module), p in pairs.items()}
    base = metadata.base_id or None
    config = LoraConfig(base_model_name_or_path=base, inference_mode=True, **_ranks(modules))
    # PEFT writes its sets in any order
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}


def serialize(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """A safetensors file whose bytes depend on the contents alone.

    safetensors itself writes the header's entries in the order of a randomly seeded hash.
    """
    raw = save({name: t.contiguous() for name, t in sorted(tensors.items())}, dict(header))
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    table["__metadata__"] = dict(sorted(table["__metadata__"].items()))
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensor data starts at a multiple of eight
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def _stem(form: str, family: Family, network: str, module: str) -> tuple[str, bool]:
    """A layer's name in the file, and whether an alpha stands beside its factors."""
    if isinstance(family, NamedFamily):
        stem = family.kohya_stem(network, module)
        return stem, flat(stem)
    if form == "kohya":
        return family.kohya_stem(network, module), True
    if form == "comfyui":
        return family.comfyui_stem(network, module), False
    return f"base_model.model.{module}", False


def _form_of(form: str, family: Family, network: str, module: str) -> str:
    """The form whose header a layer asks for."""
    if not isinstance(family, NamedFamily):
        return form
    if flat(module):
        return "kohya"
    roots = (f"{family.root}.", "text_encoder")
    return "diffusers" if module.startswith(roots) and "text_encoders." not in module else "dotted"


def _diffusers_config(family: Family, pairs: Pairs) -> dict[str, Any]:
    """What diffusers' `save_lora_weights` packs into its header: a LoraConfig of each network."""
    networks: dict[str, dict[str, LowRank]] = {}
    for (network, module), pair in pairs.items():
        if isinstance(family, NamedFamily):
            network, _, module = family.kohya_stem(network, module).partition(".")
        # Text encoders have lost the first element of their paths in transformers 5; PEFT looks for
        # modules that end with these names, so that they are found in both.
        networks.setdefault(network, {})[module.removeprefix("text_model.")] = pair
    return {
        f"{network}.{name}": value
        for network, modules in networks.items()
        for name, value in _ranks(modules).items()
    }


def _ranks(modules: Mapping[str, LowRank]) -> dict[str, Any]:
    """Entries of a LoraConfig that follow from the pairs: alpha = rank in every layer."""
    ranks = {module: pair.rank for module, pair in sorted(modules.items())}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": list(ranks),
    }
