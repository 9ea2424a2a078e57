"""A seeded bank of (latent, t, noise, prompt) entries for learned merges.

What a single adapter predicts for an entry is a fixed function of that entry, so with a bank it is
computed once and reused at every step: of ZipLoRA's four forwards per step two remain, of DuoLoRA's
eight two, and these two share one batch. Entry k serves content and style together: one noise and
one timestep, a content picture with its prompt and a style picture with its own. Timesteps are
stratified over the schedule, so a small bank covers it evenly.

Shape suffixes: K entries; N pictures; C H W latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.bases.base import Base, Conditioning
from b4m.bases.sampling import encode_prompts_with
from b4m.data.cache import Cache
from b4m.data.captions import merged_caption
from b4m.data.manifest import ManifestRow, read_manifest, training_rows
from b4m.errors import B4MError
from b4m.training.randomness import ShuffledIndices, derive_seed
from b4m.training.training_set import read_training_set


@dataclass(frozen=True)
class ConceptImages:
    """Pictures of one concept as a base sees them.

    Attributes:
        mean_NCHW: means of the latents' posterior, scaled.
        std_NCHW: its standard deviations.
        prompts: the N captions as the concept's own adapter encodes them.
        merged_prompts: the same captions as the merged adapter encodes them.
        joint_prompt: N prompts that name content and style together, as the other adapter encodes
            them.

    Without layers of the text encoders all adapters encode a caption alike.
    """

    mean_NCHW: Tensor
    std_NCHW: Tensor
    prompts: Conditioning
    merged_prompts: Conditioning
    joint_prompt: Conditioning

    def __len__(self) -> int:
        return len(self.mean_NCHW)


@dataclass(frozen=True)
class BankHalf:
    """One concept's half of the bank: noisy latents, and prompts as in `ConceptImages`."""

    noisy_KCHW: Tensor
    prompts: Conditioning
    merged_prompts: Conditioning
    joint_prompt: Conditioning


@dataclass(frozen=True)
class Bank:
    """K entries on the base's device; `content` and `style` share noise and timesteps."""

    content: BankHalf
    style: BankHalf
    noise_KCHW: Tensor
    t_K: Tensor

    def __len__(self) -> int:
        return len(self.t_K)


def read_concept_images(
    base: Base, folder: Path, content: Adapter, style: Adapter, workdir: Path
) -> tuple[ConceptImages, ConceptImages]:
    """The training pictures of both adapters' concepts, encoded once and kept below `workdir`.

    Args:
        base: encodes pictures and prompts.
        folder: prepared data folder that holds both concepts.
        content: its metadata name the concept; a file of another tool names none, then the folder
            must hold exactly one content.
        style: likewise.
        workdir: the cache of latents and text embeddings lies here.

    Raises:
        B4MError: if the folder does not hold the concepts.
    """
    manifest = read_manifest(folder)
    cache = Cache(workdir / "cache", base)
    content_rows = _concept_rows(manifest, "content", content.metadata.content)
    style_rows = _concept_rows(manifest, "style", style.metadata.style)
    joint = merged_caption(content_rows[0].class_word)
    merged = content + style

    def encode(adapter: Adapter, captions: Sequence[str]) -> Conditioning:
        if not adapter.text_layers:
            return cache.texts(captions)
        return encode_prompts_with(base, adapter, captions)

    def read(rows: Sequence[ManifestRow], own: Adapter, other: Adapter) -> ConceptImages:
        images = read_training_set(folder, rows, base, cache)
        return ConceptImages(
            images.mean_VNCHW[0],
            images.std_VNCHW[0],
            encode(own, images.captions),
            encode(merged, images.captions),
            encode(other, [joint])[[0] * len(rows)],
        )

    both = read(content_rows, content, style), read(style_rows, style, content)
    base.offload()
    return both


def build_bank(
    base: Base, content: ConceptImages, style: ConceptImages, entries: int, seed: int
) -> Bank:
    """Draw K entries; equal seeds give equal banks on every device.

    Args:
        base: gives the noise schedule, the device and the size of the latents.
        content: pictures of the content; each is used about equally often.
        style: pictures of the style.
        entries: K, 1 or more.
        seed: of the pictures' order, posterior samples, noise and timesteps.
    """
    generator = torch.Generator("cpu").manual_seed(derive_seed(seed, "bank"))
    size = (entries, *content.mean_NCHW.shape[1:])
    noise_KCHW = torch.randn(size, generator=generator).to(base.device)
    t_K = base.noising.stratified_times(entries, generator).to(base.device)

    def side(images: ConceptImages, name: str) -> BankHalf:
        rows = ShuffledIndices(len(images), entries, seed, name).batch(0)
        jitter_KCHW = torch.randn(size, generator=generator)
        x0_KCHW = images.mean_NCHW[rows] + images.std_NCHW[rows] * jitter_KCHW.to(images.std_NCHW)
        noisy_KCHW = base.noising.add(x0_KCHW.to(base.device), noise_KCHW, t_K)
        prompts = (images.prompts, images.merged_prompts, images.joint_prompt)
        return BankHalf(noisy_KCHW, *(one[rows].to(base.device) for one in prompts))

    return Bank(side(content, "content"), side(style, "style"), noise_KCHW, t_K)


def _concept_rows(manifest: Sequence[ManifestRow], kind: str, concept: str) -> list[ManifestRow]:
    names = sorted({row.concept for row in manifest if (row.kind, row.role) == (kind, "train")})
    if not concept and len(names) != 1:
        raise B4MError(
            f"the {kind} adapter does not name its concept and the data holds "
            f"{len(names)} ({', '.join(names[:5])}); prepare a folder with one {kind}"
        )
    return training_rows(manifest, kind, concept or names[0])
