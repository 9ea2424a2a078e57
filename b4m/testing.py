"""A tiny base with SDXL's own classes and topology, for tests: ours, and those of B4M's users.

    base = load_base(str(write_tiny_base(tmp_path / "tiny-sdxl")), device="cpu")

It has random weights, images of 32 px and latents of 4 x 8 x 8, and takes a second to make. The
UNet has SDXL's block types, hence its eleven attention groups under the same names, two text
encoders whose penultimate layers are concatenated, the pooled output of the second one together
with the size conditioning ("text_time"), and an AutoencoderKL. What works on it works on SDXL by
changing one argument. b4m-mini builds its trained mini-SDXL with the same functions.

The noise schedule differs, and is written in the scheduler's config where every tool reads it:
v-prediction with zero terminal SNR (Lin et al., arXiv 2305.08891), because a small net cannot
paint a clean white background from epsilon-prediction.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from b4m import torchvision_guard

torchvision_guard.install()  # before diffusers and transformers are imported

from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

RECIPE = {
    "train": {
        "rank": 8,
        "steps": 150,
        "lr": 1e-3,
        "lr_other": 2e-4,
        "batch_size": 8,
        "accumulation": 1,
    },
    "merge": {"b4m.lr": 2e-3, "b4m.batch_size": 4, "b4m.accumulation": 1},
    "sample": {"guidance": 3.0, "batch_size": 16},
}
"""Settings that suit a small base, tried on mini-SDXL by eye: larger steps, and few of them."""


@dataclass(frozen=True)
class Architecture:
    """Widths and depths; everything else is SDXL's.

    Attributes:
        pixels: side of the training images.
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
    first, second = build_text_encoders(arch, tokenizer)
    return StableDiffusionXLPipeline(
        vae=build_vae(arch),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=build_unet(arch),
        scheduler=build_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def learn_tokenizer(captions: Iterable[str], vocabulary: int, max_tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer with a small vocabulary: CLIP's own has more rows than mini-SDXL weights.

    The algorithm is CLIP's (lower-cased, byte-level BPE with an end-of-word mark). Every text can
    be written in it; unknown words fall into pieces.

    Args:
        captions: texts to learn from; their order does not matter.
        vocabulary: number of rows, at least 514.
        max_tokens: length of a prompt, begin and end marks included.
    """
    begin, end = "<|startoftext|>", "<|endoftext|>"
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=end))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2 - len(letters),
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(captions), trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    pieces = letters + [f"{letter}</w>" for letter in letters] + ["".join(m) for m in merges]
    table = {piece: row for row, piece in enumerate([*dict.fromkeys(pieces), begin, end])}
    return CLIPTokenizer(vocab=table, merges=merges, model_max_length=max_tokens)


def write_recipe(folder: Path) -> None:
    """Put `b4m.json` into a base's folder: the settings that suit it, read by every verb."""
    (folder / "b4m.json").write_text(json.dumps({"recipe": RECIPE}, indent=2) + "\n")


def write_tiny_base(folder: Path) -> Path:
    """Write a tiny base with random weights as an ordinary diffusers folder; return it."""
    texts = ["a snq cat animal in w@z style", "an octopus in flat style", "a red car"]
    tokenizer = learn_tokenizer(texts, vocabulary=600, max_tokens=TINY.max_tokens)
    build_pipeline(TINY, tokenizer).save_pretrained(folder)
    write_recipe(folder)
    return folder
