"""Adapter files: read any tool's, write any tool's; strict at the door.

An adapter is one safetensors file that stands alone: pairs by module path, alpha folded into up
(up <- alpha / rank up), and a header that says what it is. Reading refuses what it does not fully
understand and names it: other tools load such files with parts missing, silently
(huggingface/diffusers#9291, #11790). Tensors are read as float32 at least.

Equal adapters give equal bytes, so files can be compared and cached by hash.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.bases.sdxl.blocks import group_of, role_of
from b4m.errors import B4MError
from b4m.files import forms, keys

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"


def read_adapter(path: str | Path) -> Adapter:
    """Read an adapter in the key style of diffusers, PEFT, kohya (sd-scripts) or ComfyUI.

    Args:
        path: a safetensors file, or a folder with exactly one (PEFT's, diffusers').

    Raises:
        B4MError: when the file is missing, truncated or pickled; holds no pairs, unknown names,
            half a pair, convolutions, DoRA, LoHa or LoKr; or holds NaN or infinite numbers.
    """
    file = _locate(Path(path))
    tensors, header = _load(file)
    pairs, _ = _pairs(file, tensors, header)
    return Adapter(
        layers={module: pair for (network, module), pair in pairs.items() if network == keys.UNET},
        metadata=Metadata.from_header(header),
        text_layers={
            f"{network}.{module}": pair
            for (network, module), pair in pairs.items()
            if network != keys.UNET
        },
    )


def write_adapter(
    path: str | Path, adapter: Adapter, form: str = "diffusers", dtype: str = "float32"
) -> Path:
    """Write an adapter atomically, as a file that the named tool loads.

    Args:
        path: the file; for "peft" a folder, or a file beside which adapter_config.json is written.
        adapter: layers of rank 0 stand for zero and are left out.
        form: "diffusers" (also for PEFT's loaders in diffusers), "peft" (PeftModel of the UNet),
            or "kohya" (sd-scripts, A1111, ComfyUI).
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
    pairs = _addressed(adapter, file)
    _check_finite(pairs, file, DTYPES[dtype])
    content = forms.serialize(
        forms.tensors(form, pairs, DTYPES[dtype]), forms.header(form, pairs, adapter.metadata)
    )
    config = forms.peft_config(pairs, adapter.metadata) if form == "peft" else None
    file.parent.mkdir(parents=True, exist_ok=True)
    if config is not None:
        _replace(file.parent / PEFT_CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    _replace(file, content)
    return file


def describe(path: str | Path) -> dict[str, Any]:
    """What a file is, for `b4m inspect`: size, style, ranks, where its energy sits, metadata.

    A file that holds something else than low-rank pairs is described too, with the reason under
    "problem"; a damaged one raises.
    """
    file = _locate(Path(path))
    tensors, header = _load(file)
    facts: dict[str, Any] = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "tensors": len(tensors),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
    }
    own = {k: v for k, v in header.items() if k.startswith("b4m.")}
    facts["metadata"] = dict(sorted((own or header).items()))
    try:
        pairs, style = _pairs(file, tensors, header)
    except B4MError as problem:
        return facts | {"problem": str(problem)}
    unet = {module: pair for (network, module), pair in pairs.items() if network == keys.UNET}
    energy = {"content": 0.0, "style": 0.0}
    for module, pair in unet.items():
        energy[role_of(module)] += pair.inner(pair)
    return facts | {
        "key_style": style,
        "layers": len(unet),
        "text_layers": len(pairs) - len(unet),
        "ranks": dict(sorted(Counter(pair.rank for pair in pairs.values()).items())),
        "groups": dict(sorted(Counter(group_of(module) for module in unet).items())),
        "norm": sum(energy.values()) ** 0.5,
        "norm_by_role": {role: value**0.5 for role, value in energy.items()},
    }


def _locate(path: Path) -> Path:
    """The one safetensors file that a path means."""
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise B4MError(f"{path} holds {len(found)} safetensors files; name the one to read")
        return found[0]
    if not path.is_file():
        raise B4MError(f"there is no adapter file {path}")
    if path.suffix != ".safetensors":
        raise B4MError(f"{path} is no .safetensors file; pickled adapters can run code, convert it")
    return path


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            header = dict(opened.metadata() or {})
            return {name: opened.get_tensor(name) for name in opened.keys()}, header
    except (SafetensorError, OSError) as error:
        raise B4MError(f"{file} is damaged or no safetensors file ({error})") from None


def _pairs(
    file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]
) -> tuple[dict[forms.Address, LowRank], str]:
    """Pairs by address with alpha folded in, and the file's key style."""
    _refuse_foreign(file, tensors)
    parsed = {name: keys.parse(name) for name in tensors}
    unknown = [name for name, key in parsed.items() if key is None]
    if unknown:
        raise B4MError(
            f"{file} has {len(unknown)} names (of {len(tensors)}) that are no LoRA of SDXL's "
            f"attention or text encoders: {_few(unknown)}"
        )
    if not tensors:
        raise B4MError(f"{file} holds no tensors")
    parts: dict[forms.Address, dict[str, Tensor]] = {}
    styles: Counter[str] = Counter()
    for name, key in parsed.items():
        assert key is not None
        styles[key.style] += bool(key.style)
        slot = parts.setdefault((key.network, key.module), {})
        if key.part in slot:
            raise B4MError(f"{file} holds {key.part} of {key.module} twice, also as {name}")
        slot[key.part] = tensors[name]
    halves = [f"{n}.{m}" for (n, m), slot in parts.items() if not {"up", "down"} <= slot.keys()]
    if halves:
        raise B4MError(f"{file} has up without down, or down without up, for {_few(halves)}")
    style = styles.most_common(1)[0][0]
    alphas = _Alphas(file, style, header)
    pairs = {address: _fold(file, address, slot, alphas) for address, slot in sorted(parts.items())}
    _check_finite(pairs, file, torch.float32)
    return pairs, style


def _fold(
    file: Path, address: forms.Address, slot: Mapping[str, Tensor], alphas: _Alphas
) -> LowRank:
    """One pair in float32 or better, with up multiplied by alpha / rank."""
    where = f"{file}, {'.'.join(address)}"
    kinds = {tensor.dtype for tensor in slot.values()}
    if not kinds <= {torch.float64, *DTYPES.values()}:
        raise B4MError(f"{where} is stored as {', '.join(map(str, kinds))}; convert it to float16")
    dtype = torch.float64 if torch.float64 in kinds else torch.float32
    try:
        pair = LowRank(slot["up"].to(dtype), slot["down"].to(dtype))
    except B4MError as error:
        raise B4MError(f"{where}: {error}") from None
    if pair.rank == 0:
        raise B4MError(f"{where} has rank 0")
    if "alpha" not in slot:
        return pair.scale(alphas.scale(address, pair.rank))
    if slot["alpha"].numel() != 1:
        raise B4MError(f"{where}: alpha is {tuple(slot['alpha'].shape)} and not one number")
    return pair.scale(float(slot["alpha"]) / pair.rank)


class _Alphas:
    """The scale alpha / rank where a file keeps it outside its tensors.

    That is in PEFT's adapter_config.json, or in diffusers' own key of the header.
    """

    def __init__(self, file: Path, style: str, header: Mapping[str, str]) -> None:
        self.configs: dict[str, dict[str, Any]] = {}
        if style == "peft":
            config = file.parent / PEFT_CONFIG
            if not config.is_file():
                raise B4MError(
                    f"{file} has PEFT's names but no {PEFT_CONFIG} beside it, so its alpha is "
                    "unknown; put that file there"
                )
            self.configs[keys.UNET] = _json(config.read_text(encoding="utf-8"), str(config))
        elif "lora_adapter_metadata" in header:
            packed = _json(header["lora_adapter_metadata"], f"{file}'s lora_adapter_metadata")
            for name, value in packed.items():
                network, _, setting = name.partition(".")
                self.configs.setdefault(network, {})[setting] = value
        for found in self.configs.values():
            if found.get("use_dora"):
                raise B4MError(f"{file} is a DoRA; its weights are no low-rank pairs")
            for alpha in (found.get("lora_alpha", 1), *(found.get("alpha_pattern") or {}).values()):
                if not isinstance(alpha, int | float):
                    raise B4MError(f"{file}: the config's alpha {alpha!r} is no number")

    def scale(self, address: forms.Address, rank: int) -> float:
        """The factor on up of one layer; 1 where nothing is said, as diffusers reads it."""
        config = self.configs.get(address[0])
        if config is None or "lora_alpha" not in config:
            return 1.0
        alpha = float(config["lora_alpha"])
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", address[1]):
                alpha = float(value)
                break
        return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise B4MError(f"{where} is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise B4MError(f"{where} is no JSON object")
    return value


def _refuse_foreign(file: Path, tensors: Mapping[str, Tensor]) -> None:
    for pattern, kind in keys.FOREIGN.items():
        marked = [name for name in tensors if re.search(pattern, name)]
        if marked:
            raise B4MError(
                f"{file} is {kind}, not plain low-rank pairs, in {len(marked)} tensors: "
                f"{_few(marked)}"
            )
    conv = [name for name, tensor in tensors.items() if tensor.ndim == 4]
    if conv:
        raise B4MError(
            f"{file} adapts convolutions (a LoCon) in {len(conv)} tensors, which cannot be merged "
            f"as pairs of matrices: {_few(conv)}"
        )


def _check_finite(pairs: Mapping[forms.Address, LowRank], file: Path, dtype: torch.dtype) -> None:
    for address, pair in pairs.items():
        for part, tensor in (("up", pair.up), ("down", pair.down)):
            if not bool(torch.isfinite(tensor.to(dtype)).all()):
                raise B4MError(
                    f"{file}: {part} of {'.'.join(address)} has NaN or infinite numbers as {dtype}"
                )


def _addressed(adapter: Adapter, file: Path) -> dict[forms.Address, LowRank]:
    """All pairs of an adapter by network and module; rank 0 left out, names checked."""
    pairs = {(keys.UNET, module): pair for module, pair in adapter.layers.items()}
    for name, pair in adapter.text_layers.items():
        network, _, module = name.partition(".")
        pairs[network, module] = pair
    pairs = {address: pair for address, pair in pairs.items() if pair.rank > 0}
    if not pairs:
        raise B4MError(f"{file}: an adapter without layers is not written")
    networks = (keys.UNET, keys.TEXT, keys.TEXT_2)
    unknown = [".".join(a) for a in pairs if a[0] not in networks or not keys.known(*a)]
    if unknown:
        raise B4MError(f"{file}: {len(unknown)} names are no linears of SDXL: {_few(unknown)}")
    return pairs


def _replace(file: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _few(names: Iterable[str]) -> str:
    """The first three names, and how many more."""
    every = list(names)
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return ", ".join(every[:3]) + more
