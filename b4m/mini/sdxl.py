"""mini-SDXL: SDXL's own classes and topology, small.

The UNet has SDXL's block types, hence its eleven attention groups under the same names, two text
encoders whose penultimate layers are concatenated, the pooled output of the second one together
with the size conditioning ("text_time"), and an AutoencoderKL that shrinks eight times. What works
here works on SDXL by changing one argument.

The noise schedule differs, and is written in the scheduler's config where every tool reads it:
v-prediction with zero terminal SNR (Lin et al., arXiv 2305.08891), because a small net cannot
paint a clean white background from epsilon-prediction.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

ATTENTION_GROUPS = 11


@dataclass(frozen=True)
class Architecture:
    """Widths and depths; everything else is SDXL's.

    Attributes:
        pixels: side of the training pictures.
        unet_channels: width of the three levels, multiples of 32.
        layers: transformer blocks per attention at the second and third level (SDXL: 2 and 10).
        head_dim: width of one attention head.
        text_widths: hidden size of the two text encoders.
        text_layers: their depth.
        vae_channels: width of each autoencoder level; n levels shrink 2 ** (n - 1) times.
        latent_channels: channels of a latent.
        max_tokens: length of a prompt.
    """

    pixels: int = 128
    unet_channels: tuple[int, int, int] = (96, 192, 320)
    layers: tuple[int, int] = (1, 2)
    head_dim: int = 32
    text_widths: tuple[int, int] = (96, 160)
    text_layers: int = 3
    vae_channels: tuple[int, ...] = (32, 64, 128, 160)
    vae_layers: int = 1
    latent_channels: int = 16
    max_tokens: int = 32


TINY = Architecture(
    pixels=32,
    unet_channels=(32, 32, 64),
    layers=(1, 1),
    head_dim=16,
    text_widths=(32, 32),
    text_layers=2,
    vae_channels=(32, 32, 32),
    latent_channels=4,
)


def build_unet(arch: Architecture) -> UNet2DConditionModel:
    """A UNet with SDXL's blocks and random weights."""
    pooled = arch.text_widths[1]
    time_embedding = 32
    return UNet2DConditionModel(
        sample_size=arch.pixels // 2 ** (len(arch.vae_channels) - 1),
        in_channels=arch.latent_channels,
        out_channels=arch.latent_channels,
        block_out_channels=arch.unet_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, *arch.layers),
        attention_head_dim=tuple(width // arch.head_dim for width in arch.unet_channels),
        cross_attention_dim=sum(arch.text_widths),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=time_embedding,
        projection_class_embeddings_input_dim=pooled + 6 * time_embedding,
    )


def build_vae(arch: Architecture) -> AutoencoderKL:
    """An autoencoder with random weights; latents are `latent_channels` deep."""
    levels = len(arch.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=arch.vae_channels,
        layers_per_block=arch.vae_layers,
        latent_channels=arch.latent_channels,
        sample_size=arch.pixels,
        # few groups: one channel per group would be an instance norm, which forgets colours
        norm_num_groups=2,
        force_upcast=False,
    )


def build_text_encoders(
    arch: Architecture, tokenizer: CLIPTokenizer
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """SDXL's two text encoders with random weights."""

    def config(width: int, activation: str) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=arch.text_layers,
            num_attention_heads=width // 32,
            max_position_embeddings=arch.max_tokens,
            hidden_act=activation,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    first, second = arch.text_widths
    return (
        CLIPTextModel(config(first, "quick_gelu")),
        CLIPTextModelWithProjection(config(second, "gelu")),
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """The schedule that mini-SDXL is trained on."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def build_pipeline(
    arch: Architecture, tokenizer: CLIPTokenizer, seed: int = 0
) -> StableDiffusionXLPipeline:
    """The whole model with random weights, ready for `save_pretrained`."""
    torch.manual_seed(seed)
    encoders = build_text_encoders(arch, tokenizer)
    parts: dict[str, Any] = {
        "vae": build_vae(arch),
        "text_encoder": encoders[0],
        "text_encoder_2": encoders[1],
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "unet": build_unet(arch),
        "scheduler": build_scheduler(),
    }
    return StableDiffusionXLPipeline(
        **parts, force_zeros_for_empty_prompt=True, add_watermarker=False
    )
