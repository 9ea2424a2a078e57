"""Random adapters for the tiny base, and ways to look at what they do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.deltas import FrozenDelta
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.bases.base import Base
from b4m.bases.sampling import attached
from b4m.merging.layerwise import seed_of
from b4m.merging.teacher_bank import Bank, ConceptImages, build_bank

Shapes = Mapping[str, tuple[int, int]]


def draw_pair(out: int, into: int, rank: int, seed: int, size: float = 1.0) -> LowRank:
    """A random pair; dW x has about `size` times the spread of x."""
    generator = torch.Generator().manual_seed(seed)
    up_OR = torch.randn(out, rank, generator=generator) * (size / rank**0.5)
    return LowRank(up_OR, torch.randn(rank, into, generator=generator) / into**0.5)


def draw_adapter(
    shapes: Shapes, rank: int, seed: int, metadata: Metadata | None = None, size: float = 1.0
) -> Adapter:
    layers = {
        name: draw_pair(out, into, rank, 1000 * seed + index, size)
        for index, (name, (out, into)) in enumerate(shapes.items())
    }
    return Adapter(layers, metadata or Metadata())


def fixed(layers: Mapping[str, LowRank]) -> dict[str, FrozenDelta]:
    """Deltas without parameters."""
    return {name: FrozenDelta(pair) for name, pair in layers.items()}


def shapes_of(base: Base) -> dict[str, tuple[int, int]]:
    return {n: (m.out_features, m.in_features) for n, m in base.linears().items()}


def adapters_of(base: Base, content_rank: int = 3, style_rank: int = 4) -> tuple[Adapter, Adapter]:
    """Random content "teapot" and style "stripes" on every attention linear of the base."""
    shapes = shapes_of(base)
    content = Metadata(stage="content", content="teapot", base_hash=base.hash, base_id="tiny")
    style = Metadata(stage="style", style="stripes", base_hash=base.hash, base_id="tiny")
    return (
        draw_adapter(shapes, content_rank, 1, content, 0.3),
        draw_adapter(shapes, style_rank, 2, style, 0.3),
    )


@torch.no_grad()
def look(base: Base, adapter: Adapter | None) -> Tensor:
    """The UNet's output with the adapter (or what hangs on it now), for two fixed inputs."""
    generator = torch.Generator().manual_seed(7)
    size = (2, *base.latent_shape)
    x_BCHW = torch.randn(size, generator=generator)
    text = base.encode_prompts(["a snq teapot in w@z style", "a red car"])
    with attached(base, adapter):
        return base.predict(base.model, x_BCHW, torch.tensor([200, 700]), text)


def draw_as_we_do(model: Any, layers: Mapping[str, nn.Module], seed: int = 0) -> None:
    """Seed PEFT's merge of each layer as `merge_layers` seeds ours; PEFT draws from one stream."""
    merge = model._generalized_task_arithmetic_weighted_adapter

    def seeded(
        kind: str, adapters: object, weights: object, target: nn.Module, *given: object
    ) -> Any:
        name = next(name for name, layer in layers.items() if layer is target)
        torch.manual_seed(seed_of(seed, name))
        return merge(kind, adapters, weights, target, *given)

    model._generalized_task_arithmetic_weighted_adapter = seeded


@contextmanager
def dense_weights(base: Base, additions: Mapping[str, Tensor]) -> Iterator[None]:
    """Add dense matrices to the UNet's weights themselves, for the block's time."""
    kept = {}
    with torch.no_grad():
        for name, dense_OI in additions.items():
            weight = base.model.get_submodule(name).weight
            kept[name] = weight.clone()
            weight += dense_OI
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                base.model.get_submodule(name).weight.copy_(weight)


def bank_of(base: Base, entries: int, seed: int = 0) -> Bank:
    """A bank of random latents: 3 pictures of the content, 2 of the style."""
    joint_prompt = base.encode_prompts(["a snq teapot in w@z style"])

    def images(count: int, prompt: str, draw: int) -> ConceptImages:
        generator = torch.Generator().manual_seed(draw)
        size = (count, *base.latent_shape)
        mean_NCHW = torch.randn(size, generator=generator)
        prompts = base.encode_prompts([prompt] * count)
        joint = joint_prompt[[0] * count]
        return ConceptImages(mean_NCHW, 0.1 * torch.ones(size), prompts, prompts, joint)

    content, style = images(3, "a snq teapot", 3), images(2, "a red car in w@z style", 4)
    return build_bank(base, content, style, entries, seed)
