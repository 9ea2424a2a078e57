"""The scale alpha / rank where a file keeps it outside its tensors.

That is in PEFT's adapter_config.json, or in diffusers' own key of the header.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from b4m.errors import B4MError
from b4m.io import read_text

PEFT_CONFIG = "adapter_config.json"
HEADER_KEY = "lora_adapter_metadata"
_KINDS = ("LORA", "LOHA", "LOKR")
_DEFAULTS = {"r": 8, "lora_alpha": 8}  # of PEFT's configs


class Scales:
    """Factors on up of the layers that have no alpha of their own.

    Args:
        file: the adapter file.
        style: its style of names; "peft" needs the config beside it.
        header: of the file.
        denoiser: name of the network that PEFT's config speaks of.

    Attributes:
        dora: whether a config says that there are magnitudes.

    Raises:
        B4MError: if PEFT's config is missing or cannot be read, or has an alpha that is not a
            number.
    """

    def __init__(self, file: Path, style: str, header: Mapping[str, str], denoiser: str) -> None:
        self.configs: dict[str, dict[str, Any]] = {}
        if style == "peft":
            config = file.parent / PEFT_CONFIG
            if config.is_file():
                self.configs[denoiser] = _peft_config(config)
            elif "ai-toolkit" not in header.get("software", ""):  # it writes alpha = rank
                raise B4MError(
                    f"{file} has PEFT's names but no {PEFT_CONFIG} beside it, so its alpha is "
                    "unknown; put that file there"
                )
        elif HEADER_KEY in header:
            packed = _json(header[HEADER_KEY], f"{file}'s {HEADER_KEY}")
            for name, value in packed.items():
                network, _, setting = name.partition(".")
                setting = "lora_alpha" if setting == "alpha" else setting  # LoHa's and LoKr's name
                self.configs.setdefault(network, {})[setting] = value
        place = file.parent / PEFT_CONFIG if style == "peft" else file
        for found in self.configs.values():
            _check(place, found)
        self.dora = any(config.get("use_dora") for config in self.configs.values())

    def scale(self, network: str, module: str, rank: int | None) -> float:
        """The factor on up of one layer; 1 where nothing is said, as diffusers reads it.

        Args:
            network: name in diffusers' files, e.g. "unet" or "transformer".
            module: module path.
            rank: inner size of the layer's factors; None takes the config's.
        """
        config = self.configs.get(network)
        if config is None or "lora_alpha" not in config:
            return 1.0
        alpha = _of(module, config["lora_alpha"], config.get("alpha_pattern"))
        if rank is None:
            rank = int(_of(module, config.get("r", 8), config.get("rank_pattern")))
        return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _of(module: str, usual: float, patterns: Mapping[str, float] | None) -> float:
    """A setting of one layer, as PEFT finds it: the first pattern that fits, or the usual one."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(value)
    return float(usual)


def _check(file: Path, config: Mapping[str, Any]) -> None:
    alphas, ranks = config.get("alpha_pattern") or {}, config.get("rank_pattern") or {}
    for patterns in (alphas, ranks):
        if not isinstance(patterns, Mapping):
            raise B4MError(f"{file}: the config's pattern {patterns!r} is not a table of numbers")
    for alpha in (config.get("lora_alpha", 1), *alphas.values()):
        if not isinstance(alpha, int | float) or isinstance(alpha, bool):
            raise B4MError(f"{file}: the config's alpha {alpha!r} is not a number")
    for rank in (config.get("r", 1), *ranks.values()):
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise B4MError(f"{file}: the config's rank {rank!r} is not a number of ranks")
    for pattern in (*alphas, *ranks):
        try:
            re.compile(pattern)
        except re.error as error:
            raise B4MError(f"{file}: {pattern!r} is not a pattern ({error})") from None


def _peft_config(path: Path) -> dict[str, Any]:
    """PEFT's settings by name, with its defaults; alpha is "lora_alpha" for every kind."""
    config = _json(read_text(path), str(path))
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind not in _KINDS:
        raise B4MError(f"{path} is a config of {kind}; those of {', '.join(_KINDS)} are read")
    if kind != "LORA" and "alpha" in config:
        config["lora_alpha"] = config["alpha"]
    return _DEFAULTS | config


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise B4MError(f"{where} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise B4MError(f"{where} is not a JSON object")
    return value
