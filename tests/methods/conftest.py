"""A tiny base, a prepared folder, and the loss that tells whether a training learned anything."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from b4m.adapters.files import Adapter
from b4m.data.cache import Cache
from b4m.data.manifest import read_manifest, training_rows
from b4m.data.prepare import prepare
from b4m.sdxl import Base, load_base
from b4m.sdxl.sample import attached
from b4m.train.examples import Noise, denoising_losses, read_examples
from tests.data.worlds import write_user_folder


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> Base:
    """The tiny base, loaded once; whoever hangs deltas on it takes them off."""
    return load_base(str(tiny_base), device="cpu")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teapot (1 picture) and stripes (5 pictures), with partners."""
    folder = tmp_path_factory.mktemp("prepared")
    return prepare(write_user_folder(folder / "own"), folder / "data", "teapot", "stripes")


@pytest.fixture
def loss_of(
    base: Base, prepared: Path, tmp_path: Path
) -> Callable[[str, str, Adapter | None], float]:
    """Mean denoising loss of a concept's pictures under 64 fixed draws of noise."""

    def measure(kind: str, concept: str, adapter: Adapter | None) -> float:
        rows = training_rows(read_manifest(prepared), kind, concept)
        examples = read_examples(prepared, rows, base, Cache(tmp_path, base))
        generator = torch.Generator().manual_seed(99)
        picks = [index % len(rows) for index in range(64)]
        x0_BCHW, text = examples.draw(picks, generator, base.device)
        noise = Noise.draw(base, 64, generator)
        with torch.no_grad(), attached(base, adapter):
            return float(denoising_losses(base.unet, base, x0_BCHW, noise, text).mean())

    return measure
