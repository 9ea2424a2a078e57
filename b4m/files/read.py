"""Read the adapter files of every tool, strictly.

An adapter is one safetensors file that stands alone: pairs by module path, alpha folded into up
(up <- alpha / rank up), and a header that says what it is. Reading refuses what it does not fully
understand and names it: other tools load such files with parts missing, silently
(huggingface/diffusers#9291, #11790). Tensors are read as float32 at least.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.bases import families
from b4m.bases.family import Family
from b4m.errors import B4MError
from b4m.files import keys

Address = tuple[str, str]  # network and module path
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PEFT_CONFIG = "adapter_config.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """What a file holds.

    Attributes:
        path: the file.
        family: the base models that its names belong to.
        style: the tool's style of names, see `b4m.files.keys`.
        pairs: by network and module path, alpha folded in.
        header: as it stands in the file.
    """

    path: Path
    family: Family
    style: str
    pairs: Mapping[Address, LowRank]
    header: Mapping[str, str]

    def adapter(self) -> Adapter:
        """The adapter."""
        denoiser = self.family.denoiser
        return Adapter(
            layers={name: pair for (net, name), pair in self.pairs.items() if net == denoiser},
            metadata=Metadata.from_header(self.header),
            text_layers={
                f"{net}.{name}": pair for (net, name), pair in self.pairs.items() if net != denoiser
            },
        )


def read_adapter(path: str | Path) -> Adapter:
    """Read an adapter in the key style of diffusers, PEFT, kohya (sd-scripts) or ComfyUI.

    Args:
        path: a safetensors file, or a folder with exactly one (PEFT's, diffusers').

    Raises:
        B4MError: when the file is missing, truncated or pickled; holds no pairs, unknown names,
            half a pair, convolutions, DoRA, LoHa or LoKr; or holds NaN or infinite numbers.
    """
    return read_file(Path(path)).adapter()


def read_file(path: Path) -> AdapterFile:
    """Read an adapter with all that its file tells; see `read_adapter`."""
    file = locate(path)
    return parse_file(file, *load_tensors(file))


def locate(path: Path) -> Path:
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


def load_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file and its header.

    Raises:
        B4MError: if it is damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            header = dict(opened.metadata() or {})
            return {name: opened.get_tensor(name) for name in opened.keys()}, header
    except (SafetensorError, OSError) as error:
        raise B4MError(f"{file} is damaged or no safetensors file ({error})") from None


def parse_file(file: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> AdapterFile:
    """Pairs by address with alpha folded in, and what the names tell."""
    _refuse_foreign(file, tensors)
    if not tensors:
        raise B4MError(f"{file} holds no tensors")
    declared = Metadata.from_header(header).family
    family = keys.recognise(tensors, families(declared))
    if family is None:
        titles = " or ".join(one.title for one in families())
        raise B4MError(f"{file} has no name of a LoRA of {titles}: {few(tensors)}")
    parsed = {name: keys.parse(name, family) for name in tensors}
    unknown = [name for name, key in parsed.items() if key is None]
    if unknown:
        raise B4MError(
            f"{file} has {len(unknown)} names (of {len(tensors)}) that are not those of a LoRA of "
            f"{family.title}'s attention or text encoders: {few(unknown)}"
        )
    parts: dict[Address, dict[str, Tensor]] = {}
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
        raise B4MError(f"{file} has up without down, or down without up, for {few(halves)}")
    style = styles.most_common(1)[0][0]
    scales = _Scales(file, style, header, family)
    pairs = {address: _fold(file, address, slot, scales) for address, slot in sorted(parts.items())}
    check_finite(pairs, file, torch.float32)
    _log.debug(
        "read %s: %d pairs of %s under the names of %s", file, len(pairs), family.title, style
    )
    return AdapterFile(file, family, style, pairs, header)


def _fold(file: Path, address: Address, slot: Mapping[str, Tensor], scales: _Scales) -> LowRank:
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
        return pair.scale(scales.scale(address, pair.rank))
    if slot["alpha"].numel() != 1:
        raise B4MError(f"{where}: alpha is {tuple(slot['alpha'].shape)} and not one number")
    return pair.scale(float(slot["alpha"]) / pair.rank)


class _Scales:
    """The scale alpha / rank where a file keeps it outside its tensors.

    That is in PEFT's adapter_config.json, or in diffusers' own key of the header.
    """

    def __init__(self, file: Path, style: str, header: Mapping[str, str], family: Family) -> None:
        self.configs: dict[str, dict[str, Any]] = {}
        if style == "peft":
            config = file.parent / PEFT_CONFIG
            if not config.is_file():
                raise B4MError(
                    f"{file} has PEFT's names but no {PEFT_CONFIG} beside it, so its alpha is "
                    "unknown; put that file there"
                )
            self.configs[family.denoiser] = _json(config.read_text(encoding="utf-8"), str(config))
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

    def scale(self, address: Address, rank: int) -> float:
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
                f"{few(marked)}"
            )
    conv = [name for name, tensor in tensors.items() if tensor.ndim == 4]
    if conv:
        raise B4MError(
            f"{file} adapts convolutions (a LoCon) in {len(conv)} tensors, which cannot be merged "
            f"as pairs of matrices: {few(conv)}"
        )


def check_finite(pairs: Mapping[Address, LowRank], file: Path, dtype: torch.dtype) -> None:
    """Refuse NaN and infinite numbers, also those that this storage dtype makes.

    Raises:
        B4MError: naming the layer.
    """
    for address, pair in pairs.items():
        for part, tensor in (("up", pair.up), ("down", pair.down)):
            if not bool(torch.isfinite(tensor.to(dtype)).all()):
                raise B4MError(
                    f"{file}: {part} of {'.'.join(address)} has NaN or infinite numbers as {dtype}"
                )


def few(names: Iterable[str]) -> str:
    """The first three names, and how many more."""
    every = list(names)
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return ", ".join(every[:3]) + more
