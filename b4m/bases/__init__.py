"""Base models: one folder is one family.

To add one, add its folder and its row in `FAMILIES`; nothing else changes. The folder holds

    family.py   FAMILY, a `bases.family.Family`: names and groups of its linears, and the diffusers
                pipelines whose folders are its own. Tables alone, no torch, no diffusers.
    load.py     load(base, path, device, dtype) -> `bases.base.Base`: reads such a folder.
    model.py    that Base: which linears get pairs; how prompts and images are encoded and latents
                decoded; its `bases.noising`; one call of the denoiser; the sampling loop.

What several families need is here: noising, latents of AutoencoderKL, names of CLIP's linears,
finding and hashing of files. `tests/toy_dit` is a whole family, a flow-matching DiT, in little.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

from b4m import torchvision_guard
from b4m.bases.family import Family
from b4m.errors import B4MError
from b4m.extras import needs

if TYPE_CHECKING:
    from b4m.adapters.lowrank import LowRank
    from b4m.bases.base import Base

FAMILIES = {"sdxl": "b4m.bases.sdxl"}
_log = logging.getLogger(__name__)


def families() -> list[Family]:
    """The tables of every family that can be loaded."""
    return [import_module(f"{package}.family").FAMILY for package in FAMILIES.values()]


def family_of(layers: Mapping[str, LowRank], declared: str = "") -> Family | None:
    """The family that a denoiser's layers are of, see `bases.recognition`; None without layers.

    Args:
        layers: pair by name, as an adapter holds them.
        declared: name of the family that the adapter says it is of, which decides between families
            that fit equally well.
    """
    from b4m.adapters.lazy import size_of
    from b4m.bases.recognition import recognise

    shapes = {name: size_of(layers, name)[::2] for name in layers}
    return recognise(shapes, declared)[0] if shapes else None


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
        if path.is_file():
            from b4m.bases.recognition import family_of_checkpoint

            name = family_of_checkpoint(base, path)
        else:
            name = _family_of_pipeline(base, pipeline_class(path))
        loaded: Base = import_module(f"{FAMILIES[name]}.load").load(base, path, device, dtype)
    took = time.monotonic() - start
    _log.info("base %s (%s) in %s on %s: %.1f s", base, name, loaded.dtype, loaded.device, took)
    return loaded


def _family_of_pipeline(base: str, pipeline: str) -> str:
    """Name of the family that a diffusers pipeline is of."""
    for family in families():
        if pipeline in family.pipelines:
            return family.name
    known = "; ".join(f"{one.title}: {', '.join(one.pipelines)}" for one in families())
    raise B4MError(f"base {base}: {pipeline or 'its pipeline'} is of no known family ({known})")


@lru_cache(maxsize=1)
def shared_base(base: str, dtype: str = "auto") -> Base:
    """`load_base`, once per process as long as the same base is asked for."""
    return load_base(base, dtype=dtype)
