"""The loss that tells whether a training learned anything."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from b4m.adapters.adapter import Adapter
from b4m.bases.base import Base
from b4m.bases.sampling import attached
from b4m.data.cache import Cache
from b4m.data.manifest import read_manifest, training_rows
from b4m.training.losses import Noise, denoising_losses
from b4m.training.training_set import read_training_set


@pytest.fixture
def loss_of(
    base: Base, prepared: Path, tmp_path: Path
) -> Callable[[str, str, Adapter | None], float]:
    """Mean denoising loss of a concept's pictures under 64 fixed draws of noise."""

    def measure(kind: str, concept: str, adapter: Adapter | None) -> float:
        rows = training_rows(read_manifest(prepared), kind, concept)
        examples = read_training_set(prepared, rows, base, Cache(tmp_path, base))
        generator = torch.Generator().manual_seed(99)
        picks = [index % len(rows) for index in range(64)]
        shown = examples.draw(picks, generator).to(base.device)
        x0_BCHW, text = shown.x0_BCHW, shown.text
        noise = Noise.sample(base, 64, generator)
        with torch.no_grad(), attached(base, adapter):
            return float(denoising_losses(base.model, base, x0_BCHW, noise, text).mean())

    return measure
