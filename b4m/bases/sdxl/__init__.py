"""Everything that touches diffusers: load a base, condition, add noise, encode, sample."""

from b4m.bases.sdxl.conditioning import (
    Conditioning,
    encode_prompts,
    predict,
    time_ids,
    unconditional,
)
from b4m.bases.sdxl.latents import decode_latents, encode_images
from b4m.bases.sdxl.load import Base, load_base
from b4m.bases.sdxl.noise import add_noise, alphas_cumprod, target, to_epsilon
from b4m.bases.sdxl.sample import sample

__all__ = [
    "Base",
    "Conditioning",
    "add_noise",
    "alphas_cumprod",
    "decode_latents",
    "encode_images",
    "encode_prompts",
    "load_base",
    "predict",
    "sample",
    "target",
    "time_ids",
    "to_epsilon",
    "unconditional",
]
