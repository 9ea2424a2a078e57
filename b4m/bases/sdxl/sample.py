"""Draw pictures: diffusers' own pipeline run over the base's parts, adapters attached by hooks.

So a picture drawn here equals the one that `StableDiffusionXLPipeline.load_lora_weights` draws from
the same adapter file. Only the VAE differs by intent: it decodes in float32.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from PIL import Image
from torch import nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.attach import AdaptedModel
from b4m.adapters.deltas import FrozenDelta
from b4m.bases.sdxl.latents import decode_latents
from b4m.bases.sdxl.load import Base, pipeline
from b4m.errors import B4MError

StepHook = Callable[[int, float, AdaptedModel], None]
Deltas = Mapping[str, nn.Module] | Adapter


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
    """Draw one picture for every prompt and seed, prompt by prompt.

    The initial noise comes from one CPU generator per seed, so it is the same for every method,
    device and batch size.

    Args:
        base: the model; its UNet is left as it was.
        prompts: texts.
        seeds: seeds of the noise; the result has len(prompts) * len(seeds) pictures.
        deltas: additions by module path of the UNet's linears, or a whole adapter with its text
            encoder layers; None draws with the base alone.
        steps: denoising steps.
        guidance: classifier-free guidance scale; 1 is off.
        negative: negative prompt; "" means the base's own unconditional embedding.
        step_hook: called before each step's forward with its index, its timestep and the adapted
            UNet, so that a method may choose per step what is added. Needs `deltas`.
        batch_size: pictures drawn together.

    Raises:
        B4MError: if the adapter names another base, or its layers are none of this base.
    """
    jobs = list(product(prompts, seeds))
    images: list[Image.Image] = []
    with attached(base, deltas) as adapted:
        pipe = pipeline(base)
        for start in range(0, len(jobs), batch_size):
            part = jobs[start : start + batch_size]
            with _before_each_step(base.unet, adapted, step_hook):
                result = pipe(
                    prompt=[prompt for prompt, _ in part],
                    negative_prompt=[negative] * len(part) if negative else None,
                    generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in part],
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    output_type="latent",
                )
            images += decode_latents(base, result.images)
    return images


@contextmanager
def attached(base: Base, deltas: Deltas | None) -> Iterator[AdaptedModel | None]:
    """Hold the deltas on the base's UNet (and an adapter's text layers) for the block's time."""
    if deltas is None:
        yield None
        return
    if isinstance(deltas, Adapter):
        _check_base(base, deltas)
    held: list[AdaptedModel] = []
    try:
        held.append(AdaptedModel(base.unet, _on_device(base, deltas)))
        if isinstance(deltas, Adapter):
            for prefix, encoder in zip(
                ("text_encoder.", "text_encoder_2."), base.text_encoders, strict=True
            ):
                layers = {
                    _inside(encoder, name.removeprefix(prefix)): FrozenDelta(
                        pair.to(dtype=base.dtype, device=base.device)
                    )
                    for name, pair in deltas.text_layers.items()
                    if name.startswith(prefix)
                }
                if layers:
                    held.append(AdaptedModel(encoder, layers))
        yield held[0]
    finally:
        for one in held:
            one.remove()


def _inside(encoder: nn.Module, layer: str) -> str:
    """The module path of a file's layer; newer transformers drop a level of the first encoder."""
    level = "text_model."
    return layer if hasattr(encoder, "text_model") else layer.removeprefix(level)


def _check_base(base: Base, adapter: Adapter) -> None:
    """Refuse an adapter of another base; a file of another tool does not say what it is for."""
    told = adapter.metadata
    if told.base_hash and told.base_hash != base.hash:
        raise B4MError(
            f"the adapter was trained on base {told.base_id} ({told.base_hash[:12]}), this base is "
            f"{base.id} ({base.hash[:12]}); give the base that it was trained on"
        )


def _on_device(base: Base, deltas: Deltas) -> Mapping[str, nn.Module]:
    if isinstance(deltas, Adapter):
        return {
            name: FrozenDelta(pair.to(dtype=base.dtype, device=base.device))
            for name, pair in deltas.layers.items()
        }
    return deltas


@contextmanager
def _before_each_step(
    unet: nn.Module, adapted: AdaptedModel | None, hook: StepHook | None
) -> Iterator[None]:
    if hook is None or adapted is None:
        yield
        return
    count = 0

    def call(_module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal count
        hook(count, float(args[1]), adapted)
        count += 1

    handle = unet.register_forward_pre_hook(call)
    try:
        yield
    finally:
        handle.remove()
