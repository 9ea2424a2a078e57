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
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from b4m import torchvision_guard
from b4m.adapters.lazy import Size
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.bases.family import Family
from b4m.bases.named import NamedFamily, split
from b4m.errors import B4MError
from b4m.extras import needs
from b4m.files import keys
from b4m.files.read import Address
from b4m.files.scales import HEADER_KEY
from b4m.files.tensors import Entry
from b4m.files.translate import flat

FORMS = ("diffusers", "peft", "kohya", "comfyui")
Ranks = Mapping[Address, int]


@dataclass(frozen=True)
class Written:
    """A layer as it stands in a file.

    Attributes:
        address: which layer.
        down: its entry.
        up: its entry.
        alpha: name of its alpha, "" in forms without one.
        factor: on up, so that alpha / rank times it is 1.
    """

    address: Address
    down: Entry
    up: Entry
    alpha: str
    factor: float

    def entries(self) -> list[Entry]:
        """Its two factors in the order of their names."""
        return sorted([self.down, self.up], key=lambda entry: entry.name)

    def tensors(self, pair: LowRank) -> dict[Entry, Tensor]:
        """The pair's factors by entry, in the storage dtype."""
        up_OR = pair.up if self.factor == 1 else pair.up * self.factor
        factors = {self.down: pair.down, self.up: up_OR}
        return {
            entry: factors[entry].detach().cpu().to(entry.dtype).reshape(entry.shape)
            for entry in self.entries()
        }


def layout(
    form: str, family: Family, sizes: Mapping[Address, Size], dtype: torch.dtype
) -> tuple[list[Written], float]:
    """How the form writes layers of these sizes, in the order of the file, and kohya's alpha."""
    largest = max(rank for _, rank, _ in sizes.values())
    found = []
    for (network, module), (rows, rank, columns) in sizes.items():
        stem, alone = _stem(form, family, network, module)
        alpha = ""
        if alone:
            down, up, alpha = keys.kohya_names(stem)
        elif form == "diffusers" and not isinstance(family, NamedFamily):
            down, up = keys.diffusers_names(family, network, module)
        else:
            down, up = keys.peft_names(stem)
        kernel = family.kernel(network, module)
        inputs = (columns // math.prod(kernel), *kernel)
        found.append(
            Written(
                (network, module),
                Entry(down, (rank, *inputs), dtype),
                Entry(up, (rows, rank, *[1] * len(kernel)), dtype),
                alpha,
                rank / largest if alpha else 1.0,
            )
        )
    return sorted(found, key=lambda layer: layer.down.name), float(largest)


def header(form: str, family: Family, ranks: Ranks, metadata: Metadata) -> dict[str, str]:
    """The form's header; kohya's has sd-scripts' keys, which A1111 shows and trainers read."""
    found = {"format": "pt", **metadata.to_header(), **family.file_header}
    forms = {_form_of(form, family, *address) for address in ranks}
    if forms == {"diffusers"}:
        found[HEADER_KEY] = json.dumps(_diffusers_config(family, ranks), sort_keys=True)
    if "kohya" not in forms:
        return found
    rank = max(ranks.values())
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


def peft_config(family: Family, ranks: Ranks, metadata: Metadata) -> dict[str, Any]:
    """PEFT's own LoraConfig for these ranks: alpha = rank everywhere, unusual ones by pattern.

    Raises:
        B4MError: for layers of the text encoders, since PEFT's form holds one network, or without
            the package peft.
    """
    if any(network != family.denoiser for network, _ in ranks):
        raise B4MError(
            "PEFT's form holds one network and this adapter also has text encoder layers; "
            "write the diffusers or kohya form"
        )
    torchvision_guard.install()  # peft imports transformers, which looks for torchvision
    with needs("train", "the PEFT form of an adapter"):
        from peft import LoraConfig
    named = isinstance(family, NamedFamily)
    modules = {split(module)[1] if named else module: r for (_, module), r in ranks.items()}
    base = metadata.base_id or None
    config = LoraConfig(base_model_name_or_path=base, inference_mode=True, **_ranks(modules))
    # PEFT writes its sets in any order
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}


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


def _diffusers_config(family: Family, ranks: Ranks) -> dict[str, Any]:
    """What diffusers' `save_lora_weights` packs into its header: a LoraConfig of each network."""
    networks: dict[str, dict[str, int]] = {}
    for (network, module), rank in ranks.items():
        if isinstance(family, NamedFamily):
            network, _, module = family.kohya_stem(network, module).partition(".")
        # Text encoders have lost the first element of their paths in transformers 5; PEFT looks for
        # modules that end with these names, so that they are found in both.
        networks.setdefault(network, {})[module.removeprefix("text_model.")] = rank
    return {
        f"{network}.{name}": value
        for network, modules in networks.items()
        for name, value in _ranks(modules).items()
    }


def _ranks(modules: Mapping[str, int]) -> dict[str, Any]:
    """Entries of a LoraConfig that follow from the ranks: alpha = rank in every layer."""
    ranks = dict(sorted(modules.items()))
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": list(ranks),
    }
