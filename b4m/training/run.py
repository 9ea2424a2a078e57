"""What every training of an adapter does around its losses: layers, files' metadata, key.

The methods hold the mathematics; this holds the bookkeeping they share.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from b4m.adapters.attach import AdaptedModel
from b4m.adapters.deltas import LowRankDelta
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.bases.base import Base
from b4m.data.cache import Cache
from b4m.data.manifest import ManifestRow, data_hash
from b4m.data.masks import mask_file
from b4m.errors import B4MError
from b4m.io import sha256
from b4m.settings import Settings, parse_pairs
from b4m.training.key import key
from b4m.training.loop import LoopConfig
from b4m.training.randomness import derive_seed
from b4m.training.report import NullTracker, Tracker
from b4m.training.settings import TrainSettings
from b4m.training.training_set import Augmentation
from b4m.version import code_version

S_co = TypeVar("S_co", bound=TrainSettings, covariant=True)


@dataclass(frozen=True)
class Run(Generic[S_co]):
    """One training: what is shown to which base, with which settings.

    Attributes:
        training: name of the way of training, e.g. "lora".
        kind: "content", "style" or "joint".
        concept: name of what is learned; of a joint training "content+style".
        folder: prepared data folder.
        rows: the lines of its manifest that this training is shown.
        base: the model to adapt.
        settings: what the way of training reads.
        workdir: for caches and the checkpoint.
        tracker: gets losses and sample images.
    """

    training: str
    kind: str
    concept: str
    folder: Path
    rows: Sequence[ManifestRow]
    base: Base
    settings: S_co
    workdir: Path
    tracker: Tracker = field(default_factory=NullTracker)

    @property
    def cache(self) -> Cache:
        """Latents and text embeddings of this base, shared by all runs of the working folder."""
        return Cache(self.workdir / "cache", self.base)

    @property
    def augmentation(self) -> Augmentation:
        """What is shown beside the images themselves."""
        return Augmentation.of(self.settings)

    @cached_property
    def data_hash(self) -> str:
        """Hash of the images and captions that are shown."""
        return data_hash(self.folder, self.rows)

    @cached_property
    def key(self) -> str:
        """Hash of all that decides the result."""
        base = self.base
        return key(
            self.training,
            self.kind,
            self.concept,
            self.settings,
            base.hash,
            str(base.dtype),
            self.data_hash,
            self._masks_hash(),
        )

    def _masks_hash(self) -> list[str]:
        """Hashes of the masks beside the images, if they are read."""
        if not self.settings.masked:
            return []
        masks = [mask_file(self.folder / row.file) for row in self.rows]
        return [sha256(mask) for mask in masks if mask.is_file()]

    def linears(self, blocks: str = "") -> dict[str, nn.Linear]:
        """The base's linears that the method's or the settings' block filter keeps."""
        every = self.base.linears()
        kept = self.base.family.select(every, blocks or self.settings.blocks)
        return {name: every[name] for name in kept}

    def by_block(self, setting: str, names: Iterable[str]) -> dict[str, float]:
        """A number for each layer of some blocks, from a setting such as "attn2=4,up_blocks.0=16".

        Args:
            setting: its name; the terms are those of `blocks`, and of several the last one counts.
            names: the layers that there are.

        Raises:
            B4MError: for a term that keeps nothing, or no number above 0.
        """
        listed = list(names)
        numbers: dict[str, float] = {}
        terms = [one.strip() for one in getattr(self.settings, setting).split(",") if one.strip()]
        for term, text in parse_pairs(terms).items():
            try:
                number = float(text)
            except ValueError:
                number = 0.0
            if number <= 0 or (setting == "block_ranks" and number % 1):
                raise B4MError(f"setting {setting}: {term}={text} must be a number above 0")
            numbers |= dict.fromkeys(self.base.family.select(listed, term), number)
        return numbers

    def generator(self, layer: str) -> torch.Generator:
        """Randomness of a layer's initial values; a block filter does not shift that of others."""
        return torch.Generator().manual_seed(derive_seed(self.settings.seed, "start", layer))

    def trained(self, role: str = "train") -> list[ManifestRow]:
        """The rows of this role."""
        return [row for row in self.rows if row.role == role]

    def metadata(self, layers: Mapping[str, LowRank]) -> Metadata:
        """What the adapter says about itself, as far as all methods agree."""
        trained = self.trained()
        concepts = {row.kind: row.concept for row in trained}
        return Metadata(
            method=self.training,
            stage=self.kind,
            concept=self.concept,
            content=concepts.get("content", ""),
            style=concepts.get("style", ""),
            rank=max((pair.rank for pair in layers.values()), default=0),
            triggers={row.kind: row.trigger for row in trained},
            class_words={row.kind: row.class_word for row in trained},
            family=self.base.family.name,
            base_id=self.base.id,
            base_hash=self.base.hash,
            data_hash=self.data_hash,
            code_version=code_version(),
            seed=self.settings.seed,
            config={"settings": self.settings.model_dump()},
        )


@contextmanager
def adapted(
    base: Base, deltas: Mapping[str, nn.Module], gradient_checkpointing: bool = False
) -> Iterator[AdaptedModel]:
    """The base's denoiser with trainable deltas for the block's time; afterwards as before."""
    model = AdaptedModel(base.model, deltas).to(base.device)
    try:
        with checkpointed(base, gradient_checkpointing):
            yield model
    finally:
        model.remove()


@contextmanager
def checkpointed(base: Base, enabled: bool) -> Iterator[None]:
    """Let the denoiser forget activations and compute them again in the backward pass."""
    if enabled:
        base.checkpoint_gradients(True)
    try:
        yield
    finally:
        if enabled:
            base.checkpoint_gradients(False)


def loop_config(settings: Settings) -> LoopConfig:
    """The loop's part of some settings; what they do not have keeps the loop's default."""
    names = [one.name for one in fields(LoopConfig) if one.name in type(settings).model_fields]
    return LoopConfig(**{name: getattr(settings, name) for name in names})


def exported(deltas: Mapping[str, LowRankDelta]) -> dict[str, LowRank]:
    """The trained pairs in float32 on the CPU."""
    return {
        name: delta.lowrank().to(dtype=torch.float32, device="cpu")
        for name, delta in deltas.items()
    }


def tensors_hash(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the values of float32 tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
