"""Generate images with adapters on a base, whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from PIL import Image
from torch import nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.attach import AdaptedModel
from b4m.adapters.deltas import FrozenDelta
from b4m.adapters.lowrank import LowRank
from b4m.bases.base import Base, Conditioning
from b4m.errors import B4MError

StepHook = Callable[[int, AdaptedModel], None]


@dataclass(frozen=True)
class Attachment:
    """What a sampling rule hangs on a base.

    Attributes:
        deltas: additions by module path of the denoiser's linears.
        text: an adapter whose text-encoder layers alone are used.
    """

    deltas: Mapping[str, nn.Module]
    text: Adapter


Deltas = Mapping[str, nn.Module] | Adapter | Attachment


@torch.no_grad()
def sample(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    deltas: Deltas | None = None,
    steps: int = 25,
    guidance: float = 5.0,
    negative: str = "",
    step_hook: StepHook | None = None,
    batch_size: int = 4,
) -> list[Image.Image]:
    """One image for every prompt and seed, prompt by prompt.

    The initial noise comes from one CPU generator per seed, so it is the same for every method,
    device and batch size.

    Args:
        base: the model; its networks are left as they were.
        prompts: texts.
        seeds: seeds of the noise; the result has len(prompts) * len(seeds) images.
        deltas: additions by module path of the denoiser's linears, or a whole adapter with its
            text-encoder layers; None samples the base alone.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 is off.
        negative: negative prompt; "" means the base's own unconditional embedding.
        step_hook: called before each step with its index and the adapted model, so that a method
            may choose per step what is added. Needs `deltas`.
        batch_size: images generated together.

    Raises:
        B4MError: if the adapter names another base, or its layers are not those of this base.
    """
    jobs = list(product(prompts, seeds))
    images: list[Image.Image] = []
    with attached(base, deltas) as adapted:

        def before_step(index: int) -> None:
            if step_hook is not None and adapted is not None:
                step_hook(index, adapted)

        for start in range(0, len(jobs), batch_size):
            part = jobs[start : start + batch_size]
            images += base.generate(
                [prompt for prompt, _ in part],
                [seed for _, seed in part],
                steps=steps,
                guidance=guidance,
                negative=negative,
                before_step=before_step,
            )
    return images


@contextmanager
def attached(base: Base, deltas: Deltas | None) -> Iterator[AdaptedModel | None]:
    """Hold the deltas on the base's denoiser (and an adapter's text layers) for the block's time.

    Raises:
        B4MError: if the adapter names another base, or has layers that this base lacks.
    """
    if deltas is None:
        yield None
        return
    if isinstance(deltas, Adapter):
        check_base(base, deltas)
    with ExitStack() as stack:
        adapted = AdaptedModel(base.model, _on_device(base, deltas))
        stack.callback(adapted.remove)
        if isinstance(deltas, Adapter | Attachment):
            text = deltas if isinstance(deltas, Adapter) else deltas.text
            stack.enter_context(text_attached(base, text))
        yield adapted


@contextmanager
def text_attached(base: Base, adapter: Adapter) -> Iterator[None]:
    """Hold an adapter's text-encoder layers on the base's encoders for the block's time.

    Raises:
        B4MError: if it has layers of an encoder that this base lacks.
    """
    with ExitStack() as stack:
        for network, layers in adapter.text_networks().items():
            if network not in base.encoders:
                raise B4MError(
                    f"the adapter has layers of {network}, which this base lacks; "
                    "give the base that it was trained on"
                )
            encoder = base.encoders[network]
            modules = {text_module(encoder, name): pair for name, pair in layers.items()}
            stack.callback(AdaptedModel(encoder, _frozen(base, modules)).remove)
        yield


@torch.no_grad()
def encode_prompts_with(base: Base, adapter: Adapter, prompts: Sequence[str]) -> Conditioning:
    """The conditioning of prompts under an adapter's text-encoder layers, on the CPU.

    Each prompt is encoded on its own: within a batch the last bits depend on what else is in it.
    """
    with text_attached(base, adapter):
        return Conditioning.cat([base.encode_prompts([prompt]) for prompt in prompts]).to("cpu")


def text_module(encoder: nn.Module, layer: str) -> str:
    """The module path of a file's layer; newer transformers drop a level of the first encoder."""
    return layer if hasattr(encoder, "text_model") else layer.removeprefix("text_model.")


def check_base(base: Base, adapter: Adapter) -> None:
    """Refuse an adapter of another base; a file of another tool does not say what it is for."""
    metadata = adapter.metadata
    if metadata.base_hash and metadata.base_hash != base.hash:
        raise B4MError(
            f"the adapter was trained on base {metadata.base_id} ({metadata.base_hash[:12]}), this "
            f"base is {base.id} ({base.hash[:12]}); give the base that it was trained on"
        )


def _on_device(base: Base, deltas: Deltas) -> Mapping[str, nn.Module]:
    if isinstance(deltas, Attachment):
        return deltas.deltas
    return _frozen(base, deltas.layers) if isinstance(deltas, Adapter) else deltas


def _frozen(base: Base, layers: Mapping[str, LowRank]) -> dict[str, nn.Module]:
    return {
        name: FrozenDelta(pair.to(dtype=base.dtype, device=base.device))
        for name, pair in layers.items()
    }
