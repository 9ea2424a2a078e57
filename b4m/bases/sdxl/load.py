"""The base model: an SDXL folder, hub id or single-file checkpoint, ready to train against.

The VAE stays in float32 whatever the rest is in: SDXL's own overflows in float16 and then draws
black pictures.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from b4m.errors import B4MError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_WEIGHTS = ("*.safetensors", "*.bin")
_CHUNK = 1 << 24


@dataclass(eq=False)
class Base:
    """A text-to-image model with SDXL's parts; the identity of its UNet is `hash`.

    `empty_prompt` says what stands for "no prompt" in guidance: "zeros" or the "encoded" empty
    text (SDXL base 1.0: zeros).
    """

    unet: nn.Module
    vae: nn.Module
    text_encoders: tuple[nn.Module, ...]
    tokenizers: tuple[Any, ...]
    scheduler: Any
    id: str
    hash: str
    device: torch.device
    dtype: torch.dtype
    empty_prompt: str = "zeros"
    parameters: int = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = sum(p.numel() for p in self.unet.parameters())

    @property
    def pixels(self) -> int:
        """Side of the square pictures that the base was trained on, in pixels."""
        return self.latent_side * self._vae_factor

    @property
    def latent_side(self) -> int:
        """Side of the latents, in latent pixels."""
        return int(_config(self.unet).sample_size)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return int(_config(self.unet).in_channels)

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon" or "v_prediction"."""
        return str(self.scheduler.config.prediction_type)

    @property
    def _vae_factor(self) -> int:
        return int(2 ** (len(_config(self.vae).block_out_channels) - 1))

    def to_device(self) -> None:
        """Bring the VAE and the text encoders to the base's device."""
        for module in (self.vae, *self.text_encoders):
            module.to(self.device)

    def offload(self) -> None:
        """Take the VAE and the text encoders off the accelerator until they are needed again."""
        if self.device.type == "cpu":
            return
        for module in (self.vae, *self.text_encoders):
            module.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def load_base(base: str, device: str = "auto", dtype: str = "auto") -> Base:
    """Load the parts of an SDXL model, frozen and in evaluation mode.

    Args:
        base: a diffusers folder, a single-file checkpoint (`.safetensors`) or a hub id.
        device: "auto" (CUDA if there is one), "cpu", "cuda", "cuda:1", ...
        dtype: of the UNet and the text encoders: "fp32", "bf16", "fp16" or "auto", which is fp32 on
            a CPU and bf16 (fp16 on accelerators without it) elsewhere. The VAE is in float32.

    Raises:
        B4MError: if there is no such base, or it is no SDXL.
    """
    where = torch.device(_auto_device() if device == "auto" else device)
    kind = _dtype(dtype, where)
    path = Path(base)
    if path.is_file():
        pipe, digest = _from_file(path, kind), _hash([path])
    else:
        folder = path if path.is_dir() else _download(base)
        pipe, digest = _from_folder(base, folder, kind), _hash(_unet_files(base, folder))
    _check_topology(base, pipe)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        module.requires_grad_(False).eval()
    pipe.to(where)
    return Base(
        unet=pipe.unet,
        vae=pipe.vae,
        text_encoders=(pipe.text_encoder, pipe.text_encoder_2),
        tokenizers=(pipe.tokenizer, pipe.tokenizer_2),
        scheduler=pipe.scheduler,
        id=base,
        hash=digest,
        device=where,
        dtype=kind,
        empty_prompt="zeros" if pipe.config.force_zeros_for_empty_prompt else "encoded",
    )


@lru_cache(maxsize=1)
def shared_base(base: str, dtype: str = "auto") -> Base:
    """`load_base`, once per process as long as the same base is asked for."""
    return load_base(base, dtype=dtype)


def pipeline(base: Base) -> Any:
    """Diffusers' own pipeline over the parts of `base` (nothing is copied)."""
    from diffusers import StableDiffusionXLPipeline

    base.to_device()
    pipe = StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=base.text_encoders[0],
        text_encoder_2=base.text_encoders[1],
        tokenizer=base.tokenizers[0],
        tokenizer_2=base.tokenizers[1],
        unet=base.unet,
        scheduler=type(base.scheduler).from_config(base.scheduler.config),
        force_zeros_for_empty_prompt=base.empty_prompt == "zeros",
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _config(module: nn.Module) -> Any:
    return module.config


def _auto_device() -> str:
    """CUDA if there is one; under `accelerate launch` this process's own."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        half_is_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported()
        return torch.bfloat16 if half_is_bf16 else torch.float16
    if name not in _DTYPES:
        raise B4MError(f"precision {name!r} is unknown; choose auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _from_folder(base: str, folder: Path, dtype: torch.dtype) -> Any:
    from diffusers import StableDiffusionXLPipeline

    index = folder / "model_index.json"
    if not index.is_file():
        raise B4MError(f"base {base}: no model_index.json in it; give a diffusers SDXL folder")
    if "unet" not in json.loads(index.read_text()):
        raise B4MError(f"base {base}: its model_index.json lists no unet; give an SDXL model")
    plain = [f for f in (folder / "unet").glob("*.safetensors") if ".fp16" not in f.name]
    half_only = not plain and any((folder / "unet").glob("*.fp16.safetensors"))
    try:
        with _quiet():
            return StableDiffusionXLPipeline.from_pretrained(
                folder,
                dtype={"vae": torch.float32, "default": dtype},
                variant="fp16" if half_only else None,
                add_watermarker=False,
                local_files_only=True,
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise B4MError(f"base {base}: does not load as SDXL: {_one_line(error)}") from error


def _from_file(path: Path, dtype: torch.dtype) -> Any:
    from diffusers import StableDiffusionXLPipeline

    try:
        pipe = StableDiffusionXLPipeline.from_single_file(
            str(path), dtype=torch.float32, add_watermarker=False
        )
    except Exception as error:  # the reader raises many kinds for "this is no such checkpoint"
        raise B4MError(
            f"base {path}: does not load as a single-file SDXL checkpoint: {_one_line(error)}"
        ) from error
    for module in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
        module.to(dtype)
    return pipe


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars for the seconds that reading local files takes."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    shown = [each for each in (diffusers_logging, transformers_logging) if _shows(each)]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()


def _shows(library_logging: Any) -> bool:
    return bool(library_logging.is_progress_bar_enabled())


def _download(base: str) -> Path:
    if base.count("/") != 1 or base.startswith((".", "/")):
        raise B4MError(f"base {base}: no such folder or file; `dvc pull` brings the shipped ones")
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(base))
    except Exception as error:  # offline, unknown id, no access: all say "could not be had"
        raise B4MError(
            f"base {base}: no such folder or file, and the hub does not give it: {_one_line(error)}"
        ) from error


def _check_topology(base: str, pipe: Any) -> None:
    """SDXL, and no refiner or other family: two text encoders and text_time conditioning."""
    parts = (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    if any(part is None for part in parts) or pipe.unet.config.addition_embed_type != "text_time":
        raise B4MError(f"base {base}: is no SDXL base (two text encoders, text_time conditioning)")


def _unet_files(base: str, folder: Path) -> list[Path]:
    """The config and the weights that diffusers reads: safetensors before bin, full before half."""
    for pattern in _WEIGHTS:
        files = sorted((folder / "unet").glob(pattern))
        plain = [file for file in files if ".fp16." not in file.name]
        if files:
            return [folder / "unet" / "config.json", *(plain or files)]
    raise B4MError(f"base {base}: no weights in {folder / 'unet'}; the download is incomplete")


def _hash(files: list[Path]) -> str:
    """SHA-256 over the digests of the files."""
    total = hashlib.sha256()
    for file in files:
        total.update(_digest(file).encode())
    return total.hexdigest()


def _digest(file: Path) -> str:
    """SHA-256 of one file; a hub cache names large files by it, which saves reading 10 GB."""
    stored = file.resolve().name
    if file.is_symlink() and len(stored) == 64 and file.resolve().parent.name == "blobs":
        return stored
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
