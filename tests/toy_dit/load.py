"""Load the toy from a diffusers folder."""

from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

from b4m.bases.base import pick_device, pick_dtype
from b4m.bases.locate import files_hash, quiet, read_recipe, weight_files
from tests.toy_dit.model import ToyBase


def load(base: str, path: Path, device: str = "auto", dtype: str = "auto") -> ToyBase:
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    with quiet():
        pipe = StableDiffusion3Pipeline.from_pretrained(
            path,
            text_encoder_3=None,
            tokenizer_3=None,
            dtype={"vae": torch.float32, "default": kind},
            local_files_only=True,
        )
    for module in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        module.requires_grad_(False).eval()
    pipe.to(where)
    return ToyBase(
        pipe=pipe,
        id=base,
        hash=files_hash(weight_files(base, path / "transformer")),
        device=where,
        dtype=kind,
        recipe=read_recipe(path),
    )
