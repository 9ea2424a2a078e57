"""What every training of an adapter does around its losses: layers, files' metadata, fingerprint.

The methods hold the mathematics; this holds the bookkeeping they share.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import b4m
from b4m.adapters.attach import AdaptedModel, attention_linears
from b4m.adapters.deltas import LowRankDelta
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.bases.sdxl.blocks import select
from b4m.bases.sdxl.load import Base
from b4m.bases.sdxl.sample import sample
from b4m.config import MergeSettings, TrainSettings
from b4m.data.cache import Cache
from b4m.data.manifest import ManifestRow, data_hash, read_manifest
from b4m.train.loop import LoopConfig, Preview
from b4m.train.randomness import derive_seed

_PREVIEW_STEPS = 20


@dataclass(frozen=True)
class Run:
    """One training: its data, base, settings and places."""

    method: str
    kind: str
    concept: str
    folder: Path
    rows: Sequence[ManifestRow]
    base: Base
    settings: TrainSettings
    workdir: Path

    @classmethod
    def open(
        cls,
        method: str,
        kind: str,
        concept: str,
        folder: Path,
        base: Base,
        settings: TrainSettings,
        workdir: Path,
    ) -> "Run":
        """Read the manifest of the prepared folder; everything else is as given."""
        rows = read_manifest(folder)
        return cls(method, kind, concept, folder, rows, base, settings, workdir)

    @property
    def cache(self) -> Cache:
        """Latents and text embeddings of this base, shared by all runs of the working folder."""
        return Cache(self.workdir / "cache", self.base)

    @property
    def plan(self) -> LoopConfig:
        """The loop's plan from the settings."""
        wanted = self.settings
        return LoopConfig(
            steps=wanted.steps,
            batch_size=wanted.batch_size,
            accumulation=wanted.accumulation,
            clip=wanted.clip,
            warmup=wanted.warmup,
            checkpoint_every=wanted.checkpoint_every,
            sample_every=wanted.sample_every,
            seed=wanted.seed,
        )

    def fingerprint(self, used: Sequence[ManifestRow]) -> str:
        """Hash of all that decides the result: settings, base, pictures and captions."""
        return fingerprint(
            self.method,
            self.kind,
            self.concept,
            self.settings,
            self.base.hash,
            str(self.base.dtype),
            data_hash(self.folder, used),
        )

    def linears(self, blocks: str = "") -> dict[str, nn.Linear]:
        """The attention linears that the method's or the settings' block filter keeps."""
        every = attention_linears(self.base.unet)
        return {name: every[name] for name in select(every, blocks or self.settings.blocks)}

    def generator(self, layer: str) -> torch.Generator:
        """Randomness of a layer's initial values; a block filter does not shift that of others."""
        return torch.Generator().manual_seed(derive_seed(self.settings.seed, "start", layer))

    def metadata(self, used: Sequence[ManifestRow], layers: Mapping[str, LowRank]) -> Metadata:
        """What the adapter says about itself, as far as all methods agree."""
        trained = [row for row in used if row.role == "train"]
        names = {row.kind: row.concept for row in trained}
        return Metadata(
            method=self.method,
            stage=self.kind,
            concept=self.concept,
            content=names.get("content", ""),
            style=names.get("style", ""),
            rank=max((pair.rank for pair in layers.values()), default=0),
            triggers={row.kind: row.trigger for row in trained},
            class_words={row.kind: row.class_word for row in trained},
            base_id=self.base.id,
            base_hash=self.base.hash,
            data_hash=data_hash(self.folder, used),
            code_version=code_version(),
            seed=self.settings.seed,
            config={"settings": asdict(self.settings)},
        )

    def preview(self, used: Sequence[ManifestRow]) -> Preview:
        """Draw the first training caption with whatever hangs on the base's UNet at the time."""
        caption = next(row.caption for row in used if row.role == "train")

        def draw(_step: int) -> dict[str, Image.Image]:
            images = sample(self.base, [caption], [self.settings.seed], steps=_PREVIEW_STEPS)
            self.base.offload()
            return {caption: images[0]}

        return draw


@contextmanager
def adapted(
    base: Base, deltas: Mapping[str, nn.Module], gradient_checkpointing: bool = False
) -> Iterator[AdaptedModel]:
    """The base's UNet with trainable deltas, for the block's time; afterwards it is as before."""
    model = AdaptedModel(base.unet, deltas).to(base.device)
    try:
        with checkpointed(base, gradient_checkpointing):
            yield model
    finally:
        model.remove()


@contextmanager
def checkpointed(base: Base, wanted: bool) -> Iterator[None]:
    """Let the UNet forget activations and compute them again in the backward pass, if wanted."""
    unet: Any = base.unet
    if wanted:
        unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if wanted:
            unet.disable_gradient_checkpointing()


def exported(deltas: Mapping[str, LowRankDelta]) -> dict[str, LowRank]:
    """The trained pairs in float32 on the CPU."""
    return {
        name: delta.lowrank().to(dtype=torch.float32, device="cpu")
        for name, delta in deltas.items()
    }


def fingerprint(*parts: str | TrainSettings | MergeSettings) -> str:
    """SHA-256 over texts and settings."""
    texts = [part if isinstance(part, str) else json.dumps(asdict(part)) for part in parts]
    return hashlib.sha256("\x1f".join(texts).encode()).hexdigest()


def tensors_hash(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the values of float32 tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def code_version() -> str:
    """Version of b4m, with the commit that the image or the runner states in GIT_COMMIT."""
    commit = os.environ.get("GIT_COMMIT", "")
    return f"{b4m.__version__}+{commit[:12]}" if commit else b4m.__version__
