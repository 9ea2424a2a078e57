"""Load SDXL from a diffusers folder or a single-file checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from b4m.bases.base import pick_device, pick_dtype
from b4m.bases.locate import files_hash, one_line, quiet, read_recipe, weight_files
from b4m.bases.sdxl.model import SDXLBase
from b4m.errors import B4MError


def load(base: str, path: Path, device: str = "auto", dtype: str = "auto") -> SDXLBase:
    """Load the parts of an SDXL model, frozen and in evaluation mode.

    Args:
        base: what the user calls it.
        path: a diffusers folder or a single-file checkpoint.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ...
        dtype: of the UNet and the text encoders: "fp32", "bf16", "fp16" or "auto", which is fp32 on
            a CPU and bf16 (fp16 on accelerators without it) elsewhere. The VAE is in float32.

    Raises:
        B4MError: if it does not load, or is not an SDXL.
    """
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    if path.is_file():
        pipe, digest = _from_file(path, kind), files_hash([path])
    else:
        pipe = _from_folder(base, path, kind)
        digest = files_hash(weight_files(base, path / "unet"))
    _check_topology(base, pipe)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        module.requires_grad_(False).eval()
    pipe.to(where)
    return SDXLBase(
        unet=pipe.unet,
        vae=pipe.vae,
        text_encoders=(pipe.text_encoder, pipe.text_encoder_2),
        tokenizers=(pipe.tokenizer, pipe.tokenizer_2),
        scheduler=pipe.scheduler,
        id=base,
        hash=digest,
        device=where,
        dtype=kind,
        recipe=read_recipe(path),
        empty_prompt="zeros" if pipe.config.force_zeros_for_empty_prompt else "encoded",
    )


def _from_folder(base: str, folder: Path, dtype: torch.dtype) -> Any:
    from diffusers import StableDiffusionXLPipeline

    if not (folder / "unet").is_dir():
        raise B4MError(f"base {base}: no unet in it; give an SDXL model")
    plain = [f for f in (folder / "unet").glob("*.safetensors") if ".fp16" not in f.name]
    half_only = not plain and any((folder / "unet").glob("*.fp16.safetensors"))
    try:
        with quiet():
            return StableDiffusionXLPipeline.from_pretrained(
                folder,
                dtype={"vae": torch.float32, "default": dtype},
                variant="fp16" if half_only else None,
                add_watermarker=False,
                local_files_only=True,
            )
    except Exception as error:  # a damaged tokenizer, config or weight file raises many kinds
        raise B4MError(f"base {base}: does not load as SDXL: {one_line(error)}") from error


def _from_file(path: Path, dtype: torch.dtype) -> Any:
    from diffusers import StableDiffusionXLPipeline

    try:
        pipe = StableDiffusionXLPipeline.from_single_file(
            str(path), dtype=torch.float32, add_watermarker=False
        )
    except Exception as error:  # the reader raises many kinds for "this is no such checkpoint"
        raise B4MError(
            f"base {path}: does not load as a single-file SDXL checkpoint: {one_line(error)}"
        ) from error
    for module in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
        module.to(dtype)
    return pipe


def _check_topology(base: str, pipe: Any) -> None:
    """SDXL, and no refiner or other family: two text encoders and text_time conditioning."""
    parts = (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    if any(part is None for part in parts) or pipe.unet.config.addition_embed_type != "text_time":
        raise B4MError(
            f"base {base}: is not an SDXL base (two text encoders, text_time conditioning)"
        )
