"""Write adapter files for every tool.

Equal adapters give equal bytes, so files can be compared and cached by hash.
"""

from __future__ import annotations

import json
from pathlib import Path

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.bases import families, family_of
from b4m.bases.family import Family
from b4m.errors import B4MError
from b4m.files import forms
from b4m.files.read import DTYPES, PEFT_CONFIG, Address, check_finite, few
from b4m.io import write_whole

PEFT_WEIGHTS = "adapter_model.safetensors"


def write_adapter(
    path: str | Path, adapter: Adapter, form: str = "diffusers", dtype: str = "float32"
) -> Path:
    """Write an adapter atomically, as a file that the named tool loads.

    Args:
        path: the file; for "peft" a folder, or a file beside which adapter_config.json is written.
        adapter: layers of rank 0 stand for zero and are left out.
        form: "diffusers" (also for PEFT's loaders in diffusers), "peft" (PeftModel of the
            denoiser), or "kohya" (sd-scripts, A1111, ComfyUI).
        dtype: "float32", "float16" or "bfloat16".

    Returns:
        The path of the safetensors file.

    Raises:
        B4MError: for an unknown form or dtype, an empty adapter, an unknown layer name, text
            encoder layers in "peft", or numbers that are not finite in this dtype.
    """
    if form not in forms.FORMS or dtype not in DTYPES:
        raise B4MError(
            f"cannot write form {form!r} in {dtype!r}; forms: {', '.join(forms.FORMS)}; "
            f"dtypes: {', '.join(DTYPES)}"
        )
    file = Path(path)
    if form == "peft" and file.suffix != ".safetensors":
        file = file / PEFT_WEIGHTS
    family, pairs = _addressed(adapter, file)
    check_finite(pairs, file, DTYPES[dtype])
    content = forms.serialize(
        forms.tensors(form, family, pairs, DTYPES[dtype]),
        forms.header(form, family, pairs, adapter.metadata),
    )
    config = forms.peft_config(family, pairs, adapter.metadata) if form == "peft" else None
    if config is not None:
        write_whole(file.parent / PEFT_CONFIG, json.dumps(config, indent=2) + "\n")
    return write_whole(file, content)


def _addressed(adapter: Adapter, file: Path) -> tuple[Family, dict[Address, LowRank]]:
    """All pairs of an adapter by network and module; rank 0 left out, names checked."""
    declared = adapter.metadata.family
    family = family_of(adapter.layers, declared) or families(declared)[0]
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
            f"{file}: {len(unknown)} names are not linears of {family.title}: {few(unknown)}"
        )
    return family, pairs
