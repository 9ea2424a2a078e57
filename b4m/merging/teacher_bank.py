"""A seeded bank of (latent, t, noise, prompt) entries for learned merges.

What a single adapter predicts for an entry is a fixed function of that entry, so with a bank it is
computed once and reused at every step: of ZipLoRA's four forwards per step two remain, of DuoLoRA's
eight two, and these two share one batch. Entry k serves content and style together: one noise and
one timestep, a content picture with its prompt and a style picture with its own. Timesteps are
stratified over the schedule, so a small bank covers it evenly.

Shape suffixes: K entries; N pictures; C H W latents.
"""

from collections.abc import Mapping, Sequence
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
from b4m.merging.context import called
from b4m.training.randomness import ShuffledIndices, derive_seed
from b4m.training.training_set import TrainingSet, read_training_set


@dataclass(frozen=True)
class OwnImages:
    """Pictures of one concept as a base sees them.

    Attributes:
        mean_NCHW: means of the latents' posterior, scaled.
        std_NCHW: its standard deviations.
        prompts: the N captions as the concept's own adapter encodes them.
    """

    mean_NCHW: Tensor
    std_NCHW: Tensor
    prompts: Conditioning

    def __len__(self) -> int:
        return len(self.mean_NCHW)


@dataclass(frozen=True)
class ConceptImages(OwnImages):
    """Pictures of one of two concepts.

    Attributes:
        merged_prompts: the captions as the merged adapter encodes them.
        joint_prompt: N prompts that name content and style together, as the other adapter encodes
            them.

    Without layers of the text encoders all adapters encode a caption alike.
    """

    merged_prompts: Conditioning
    joint_prompt: Conditioning


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


@dataclass(frozen=True)
class OwnEntries:
    """K entries of one concept: noisy latents, and prompts as its adapter encodes them."""

    noisy_KCHW: Tensor
    prompts: Conditioning


def concepts_of(adapters: Sequence[Adapter]) -> list[tuple[str, str]]:
    """Kind and name of what each adapter was taught; the name is "" where its file has none.

    Two adapters are a content and a style, in this order; more must say what they are.

    Raises:
        B4MError: if one of more than two does not.
    """
    if len(adapters) == 2:
        return [("content", adapters[0].metadata.content), ("style", adapters[1].metadata.style)]
    found = []
    for number, adapter in enumerate(adapters):
        known = {"content": adapter.metadata.content, "style": adapter.metadata.style}
        named = [(kind, name) for kind, name in known.items() if name]
        if len(named) != 1:
            raise B4MError(
                f"{called(number, len(adapters))} does not say that it is of one content or one "
                "style, which a learned merge of more than two needs; train it with b4m, or merge "
                "in closed form"
            )
        found += named
    return found


def own_entries(
    base: Base,
    folder: Path,
    adapters: Sequence[Adapter],
    entries: int,
    seed: int,
    workdir: Path,
) -> tuple[list[OwnEntries], Tensor]:
    """The bank of any number of adapters, each one's own entries alone, and the timesteps t_K.

    Of two adapters they are those of `build_bank`.

    Args:
        base: encodes pictures and prompts.
        folder: prepared data folder that holds all concepts.
        adapters: see `concepts_of`.
        entries: K, 1 or more.
        seed: as in `build_bank`.
        workdir: the cache of latents and text embeddings lies here.

    Raises:
        B4MError: if the folder does not hold the concepts, or an adapter does not say its own.
    """
    reader = _Reader(base, folder, workdir)
    kinds = [kind for kind, _ in concepts_of(adapters)]
    names = [kind if k == kinds.index(kind) else f"{kind} {k}" for k, kind in enumerate(kinds)]
    images = {
        name: OwnImages(*reader.latents(shown), reader.encode(adapter, shown.captions))
        for name, adapter, shown in zip(names, adapters, reader.shown(adapters), strict=True)
    }
    base.offload()
    drawn = _draw(base, images, entries, seed)
    halves = [
        OwnEntries(noisy, images[name].prompts[rows].to(base.device))
        for name, (rows, noisy) in drawn.sides.items()
    ]
    return halves, drawn.t_K


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
    reader = _Reader(base, folder, workdir)
    of_content, of_style = reader.shown([content, style])
    joint = merged_caption(*(rows[0].class_word for rows in reader.rows([content, style])))
    merged = content + style

    def read(images: TrainingSet, own: Adapter, other: Adapter) -> ConceptImages:
        return ConceptImages(
            *reader.latents(images),
            reader.encode(own, images.captions),
            reader.encode(merged, images.captions),
            reader.encode(other, [joint])[[0] * len(images)],
        )

    both = read(of_content, content, style), read(of_style, style, content)
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
    both = {"content": content, "style": style}
    drawn = _draw(base, both, entries, seed)

    def side(name: str) -> BankHalf:
        images, (rows, noisy_KCHW) = both[name], drawn.sides[name]
        prompts = (images.prompts, images.merged_prompts, images.joint_prompt)
        return BankHalf(noisy_KCHW, *(one[rows].to(base.device) for one in prompts))

    return Bank(side("content"), side("style"), drawn.noise_KCHW, drawn.t_K)


@dataclass(frozen=True)
class _Draw:
    """Noise and timesteps that all concepts share; chosen pictures and noisy latents of each."""

    noise_KCHW: Tensor
    t_K: Tensor
    sides: Mapping[str, tuple[list[int], Tensor]]


def _draw(base: Base, concepts: Mapping[str, OwnImages], entries: int, seed: int) -> _Draw:
    generator = torch.Generator("cpu").manual_seed(derive_seed(seed, "bank"))
    first = next(iter(concepts.values()))
    size = (entries, *first.mean_NCHW.shape[1:])
    noise_KCHW = torch.randn(size, generator=generator).to(base.device)
    t_K = base.noising.stratified_times(entries, generator).to(base.device)
    sides = {}
    for name, images in concepts.items():
        rows = ShuffledIndices(len(images), entries, seed, name).batch(0)
        jitter_KCHW = torch.randn(size, generator=generator)
        x0_KCHW = images.mean_NCHW[rows] + images.std_NCHW[rows] * jitter_KCHW.to(images.std_NCHW)
        sides[name] = rows, base.noising.add(x0_KCHW.to(base.device), noise_KCHW, t_K)
    return _Draw(noise_KCHW, t_K, sides)


class _Reader:
    """Pictures and captions of a prepared folder, encoded once."""

    def __init__(self, base: Base, folder: Path, workdir: Path) -> None:
        self.base, self.folder = base, folder
        self.cache = Cache(workdir / "cache", base)

    def rows(self, adapters: Sequence[Adapter]) -> list[list[ManifestRow]]:
        """The training rows of what each adapter was taught."""
        manifest = read_manifest(self.folder)
        return [_concept_rows(manifest, kind, name) for kind, name in concepts_of(adapters)]

    def shown(self, adapters: Sequence[Adapter]) -> list[TrainingSet]:
        """What each adapter was shown."""
        return [
            read_training_set(self.folder, rows, self.base, self.cache)
            for rows in self.rows(adapters)
        ]

    @staticmethod
    def latents(images: TrainingSet) -> tuple[Tensor, Tensor]:
        """Means and deviations."""
        return images.mean_VNCHW[0], images.std_VNCHW[0]

    def encode(self, adapter: Adapter, captions: Sequence[str]) -> Conditioning:
        """Captions as an adapter encodes them."""
        if not adapter.text_layers:
            return self.cache.texts(captions)
        return encode_prompts_with(self.base, adapter, captions)


def _concept_rows(manifest: Sequence[ManifestRow], kind: str, concept: str) -> list[ManifestRow]:
    names = sorted({row.concept for row in manifest if (row.kind, row.role) == (kind, "train")})
    if not concept and len(names) != 1:
        raise B4MError(
            f"the {kind} adapter does not name its concept and the data holds "
            f"{len(names)} ({', '.join(names[:5])}); prepare a folder with one {kind}"
        )
    return training_rows(manifest, kind, concept or names[0])
