"""Fixtures that all floors share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with SDXL's topology and random weights: 32 px pictures, 8x8x4 latents."""
    import b4m  # noqa: F401  (installs the torchvision guard)
    from b4m.mini import sdxl, tokenizer

    captions = ["a snq cat animal in w@z style", "an octopus in flat style", "a red car"]
    folder = tmp_path_factory.mktemp("base") / "tiny-sdxl"
    learned = tokenizer.learn(captions, vocabulary=600, max_tokens=32)
    sdxl.build_pipeline(sdxl.TINY, learned).save_pretrained(folder)
    return folder
