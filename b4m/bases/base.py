"""What every base model offers to training, merging and sampling; one subclass is one family.

Shape suffixes: B batch, C H W latents.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from b4m.bases.family import Family
from b4m.bases.noising import Noising
from b4m.errors import B4MError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
StepCallback = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What a base is told about B images: tensors by name, batch first."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Conditioning:
        """The prompts `rows`; a list may name one row several times."""
        index: Any = list(rows) if not isinstance(rows, slice | Tensor) else rows
        return Conditioning({name: value[index] for name, value in self.tensors.items()})

    def where(self, kept_B: Tensor, other: Conditioning) -> Conditioning:
        """The conditioning with rows of another, or its only row, where `kept_B` is False.

        What the other has nothing of, stays.
        """

        def mixed(name: str, value: Tensor) -> Tensor:
            if name not in other.tensors:
                return value
            keep = kept_B.to(value.device).reshape(-1, *[1] * (value.dim() - 1))
            return torch.where(keep, value, other.tensors[name].to(value))

        return Conditioning({name: mixed(name, value) for name, value in self.tensors.items()})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Conditioning:
        """Move, and cast if a dtype is given."""
        return Conditioning(
            {name: value.to(device, dtype or value.dtype) for name, value in self.tensors.items()}
        )

    @classmethod
    def cat(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Put the prompts of all parts into one batch, in order."""
        names = parts[0].tensors
        return cls({name: torch.cat([part.tensors[name] for part in parts]) for name in names})


@dataclass(frozen=True)
class Frame:
    """Which part of an image is seen, in pixels.

    Attributes:
        original: width and height before any scaling.
        corner: left and top of the part, in the scaled image.
        size: width and height of the part.
    """

    original: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]


@dataclass(eq=False, kw_only=True)
class Base(ABC):
    """A frozen text-to-image model in evaluation mode.

    Attributes:
        id: folder, hub id or file that it was loaded from.
        hash: SHA-256 of the denoiser's weights, the identity of the base.
        device: where it computes.
        dtype: of the denoiser and the text encoders.
        recipe: settings that suit this base, by verb ("train", "merge", "sample") and name.
    """

    family: ClassVar[Family]
    id: str
    hash: str
    device: torch.device
    dtype: torch.dtype
    recipe: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The denoising network, whose linears adapters are added to."""

    @property
    @abstractmethod
    def encoders(self) -> Mapping[str, nn.Module]:
        """The text encoders by the names that adapter files give them."""

    @property
    @abstractmethod
    def noising(self) -> Noising:
        """The forward process that the base was trained under."""

    @property
    @abstractmethod
    def pixels(self) -> int:
        """Side of the square images that the base was trained on."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents."""

    @property
    def parameters(self) -> int:
        """Parameters of the denoiser."""
        return sum(p.numel() for p in self.model.parameters())

    @abstractmethod
    def linears(self) -> dict[str, nn.Linear]:
        """The denoiser's linears that adapters are trained on, by module path."""

    def text_linears(self) -> dict[str, nn.Linear]:
        """The text encoders' linears that adapters may have, by "NETWORK.PATH" of their files."""
        return {
            f"{network}.{name}": module
            for network, encoder in self.encoders.items()
            for path, module in encoder.named_modules()
            if isinstance(module, nn.Linear) and (name := self.family.module(network, path))
        }

    def part_read(self, prompt: str) -> str:
        """The beginning of a prompt that the text encoders read; where they cut nothing, all."""
        return prompt

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of B prompts, with gradients unless they are turned off."""

    @torch.no_grad()
    def unconditional(self, count: int) -> Conditioning:
        """What stands for "no prompt" in guidance, several times: the empty text."""
        return self.encode_prompts([""])[[0] * count]

    def framed(self, text: Conditioning, frames: Sequence[Frame]) -> Conditioning:
        """The conditioning with what the base is told of sizes and crops; most are told nothing."""
        return text

    @abstractmethod
    def encode_images(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Posterior mean and standard deviation of the latents, (B, C, H, W) each, float32.

        Args:
            images: RGB, of one size.
        """

    @abstractmethod
    def decode_latents(self, latents_BCHW: Tensor) -> list[Image.Image]:
        """B RGB images."""

    @abstractmethod
    def predict(
        self, model: nn.Module, latents_BCHW: Tensor, t_B: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """One call of the denoiser: its raw output in float32.

        Args:
            model: `self.model` or an `AdaptedModel` over it.
            latents_BCHW: noisy latents.
            t_B: times as `noising` draws them.
            conditioning: of the B prompts.
        """

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        guidance: float,
        negative: str,
        before_step: StepCallback,
    ) -> list[Image.Image]:
        """One image for each prompt with its seed, with whatever hangs on the model.

        The noise of an image comes from a CPU generator with its seed.

        Args:
            prompts: B texts.
            seeds: B seeds.
            steps: denoising steps.
            guidance: classifier-free guidance scale; 1 is off.
            negative: negative prompt; "" means the base's own unconditional embedding.
            before_step: called with the index of each step before the denoiser is.
        """

    def checkpoint_gradients(self, enabled: bool) -> None:
        """Let the denoiser forget activations and compute them again in the backward pass."""
        model: Any = self.model
        if enabled:
            model.enable_gradient_checkpointing()
        else:
            model.disable_gradient_checkpointing()

    @property
    @abstractmethod
    def helpers(self) -> tuple[nn.Module, ...]:
        """Networks that encode and decode, which training needs no more once all is cached."""

    def to_device(self) -> None:
        """Bring the encoders and the decoder to the base's device."""
        for module in self.helpers:
            module.to(self.device)

    def offload(self) -> None:
        """Take them off the accelerator until they are needed again."""
        if self.device.type == "cpu":
            return
        for module in self.helpers:
            module.to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA if there is one, this process's own if several."""
    if name != "auto":
        return torch.device(name)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of this name: auto, fp32, bf16 or fp16.

    Raises:
        B4MError: for another name.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        half_is_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported()
        return torch.bfloat16 if half_is_bf16 else torch.float16
    if name not in DTYPES:
        raise B4MError(f"precision {name!r} is unknown; choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]
