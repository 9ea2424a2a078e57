"""Write the toy's folder: random weights, 32 px images, 8 x 8 latents in 16 patches."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from b4m.bases.locate import quiet

BLOCKS = 2
TEXT_WIDTH = 16
CHANNELS = 4
TOKENS = 24
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def write_toy(folder: Path) -> Path:
    """Save the toy as `StableDiffusion3Pipeline.save_pretrained` does; equal bytes every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=CHANNELS,
                out_channels=CHANNELS,
                num_layers=BLOCKS,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=2 * TEXT_WIDTH,
                caption_projection_dim=32,
                pooled_projection_dim=2 * TEXT_WIDTH,
                pos_embed_max_size=8,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(),
            text_encoder=_text_encoder(),
            tokenizer=_tokenizer(),
            text_encoder_2=_text_encoder(),
            tokenizer_2=_tokenizer(),
            text_encoder_3=None,
            tokenizer_3=None,
        )
    with quiet():
        pipe.save_pretrained(folder)
    return folder


def _vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=2,
        sample_size=32,
        scaling_factor=1.5,
        shift_factor=0.1,
    )
    with torch.no_grad():  # latents as certain as a trained autoencoder's
        vae.quant_conv.bias[CHANNELS:] = -8.0
    return vae


def _text_encoder() -> CLIPTextModelWithProjection:
    vocabulary = _vocabulary()
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            bos_token_id=vocabulary[BOS],
            eos_token_id=vocabulary[EOS],
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
        )
    ).eval()


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab=_vocabulary(), merges=[], model_max_length=TOKENS)


def _vocabulary() -> dict[str, int]:
    """ASCII's letters, inside and at the end of a word, and CLIP's two marks."""
    letters = [chr(code) for code in range(33, 127)]
    every = [*letters, *(f"{letter}</w>" for letter in letters), BOS, EOS]
    return {piece: index for index, piece in enumerate(every)}
