"""Random adapters, banks and a full-size random SDXL UNet, for benchmarks: no weights needed."""

import math
from types import SimpleNamespace
from typing import Any

import torch

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.bases.base import Base, Conditioning
from b4m.bases.sdxl.model import SDXLBase
from b4m.merging.teacher_bank import Bank, ConceptImages, build_bank

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64),
    "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (2, 2, 2),
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 64 + 6 * 32,
}


def random_adapter(
    shapes: dict[str, tuple[int, int]], rank: int, seed: int, device: str, size: float = 1.0
) -> Adapter:
    """Random factors; dW x has about `size` times the spread of x."""
    generator = torch.Generator(device).manual_seed(seed)
    layers = {}
    for name, (rows_O, columns_I) in shapes.items():
        up_OR = torch.randn(rows_O, rank, generator=generator, device=device)
        down_RI = torch.randn(rank, columns_I, generator=generator, device=device)
        layers[name] = LowRank(up_OR * size / math.sqrt(rank), down_RI / math.sqrt(columns_I))
    return Adapter(layers)


def random_bank(base: Base, entries: int) -> Bank:
    """A bank of random latents and prompts of the base's sizes."""
    config: Any = base.model.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

    def images(seed: int) -> ConceptImages:
        generator = torch.Generator().manual_seed(seed)
        size = (2, *base.latent_shape)
        mean, hidden = torch.randn(size, generator=generator), (2, 77, config.cross_attention_dim)
        caption, joint = (
            Conditioning(
                {
                    "hidden": torch.randn(hidden, generator=generator),
                    "pooled": torch.randn(2, pooled, generator=generator),
                }
            )
            for _ in range(2)
        )
        return ConceptImages(mean, torch.full(size, 0.05), caption, caption, joint)

    return build_bank(base, images(3), images(4), entries, seed=0)


def random_sdxl(device: torch.device, size: str) -> Base:
    """SDXL's UNet with random weights, made on the device; there are no other parts."""
    from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.set_default_dtype(dtype)
    try:
        with device:
            unet = UNet2DConditionModel(**(SDXL_UNET | (SMALL if size == "small" else {})))
    finally:
        torch.set_default_dtype(torch.float32)
    vae: Any = SimpleNamespace(config=SimpleNamespace(block_out_channels=(128, 256, 512, 512)))
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    unet.requires_grad_(False).eval()
    return SDXLBase(
        unet=unet,
        vae=vae,
        text_encoders=(),
        tokenizers=(),
        scheduler=scheduler,
        id="random SDXL",
        hash="",
        device=device,
        dtype=dtype,
    )
