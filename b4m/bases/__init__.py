"""Base models: one folder is one family.

A family has two modules: `family` with its tables as `FAMILY` (no torch, no diffusers), and `load`
with `load(base, path, device, dtype) -> Base`. To add one, add its folder and its row here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

from b4m import torchvision_guard
from b4m.bases.family import Family
from b4m.extras import needs

if TYPE_CHECKING:
    from b4m.bases.base import Base

FAMILIES = {"sdxl": "b4m.bases.sdxl"}
_log = logging.getLogger(__name__)
_DEFAULT = "sdxl"  # of a single-file checkpoint, and of a folder that names no known pipeline


def families() -> list[Family]:
    """The tables of every family."""
    return [import_module(f"{package}.family").FAMILY for package in FAMILIES.values()]


def family_of(layers: Iterable[str]) -> Family | None:
    """The family whose denoiser has linears of all these names; None if no known one has."""
    names = list(layers)
    for family in families():
        if names and all(family.known(family.denoiser, name) for name in names):
            return family
    return None


def load_base(base: str, device: str = "auto", dtype: str = "auto") -> Base:
    """Load a base model of any known family, frozen and in evaluation mode.

    Args:
        base: a diffusers folder, a single-file checkpoint (`.safetensors`) or a hub id.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ...
        dtype: of the denoiser and the text encoders: "fp32", "bf16", "fp16" or "auto", which is
            fp32 on a CPU and bf16 (fp16 on accelerators without it) elsewhere.

    Raises:
        B4MError: if there is no such base, or its family is not known.
    """
    from b4m.bases.locate import locate, pipeline_class

    torchvision_guard.install()  # before diffusers and transformers are imported
    start = time.monotonic()
    with needs("train", f"base {base}"):
        path = locate(base)
        kind = pipeline_class(path)
        name = next((f.name for f in families() if kind in f.pipelines), _DEFAULT)
        loaded: Base = import_module(f"{FAMILIES[name]}.load").load(base, path, device, dtype)
    took = time.monotonic() - start
    _log.info("base %s (%s) in %s on %s: %.1f s", base, name, loaded.dtype, loaded.device, took)
    return loaded


@lru_cache(maxsize=1)
def shared_base(base: str, dtype: str = "auto") -> Base:
    """`load_base`, once per process as long as the same base is asked for."""
    return load_base(base, dtype=dtype)
