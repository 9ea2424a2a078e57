"""Fixtures that all floors share."""

from pathlib import Path

import pytest
from hypothesis import settings

from b4m import torchvision_guard
from b4m.bases import load_base
from b4m.bases.base import Base
from b4m.data.prepare import prepare
from tests.data.worlds import write_user_folder

torchvision_guard.install()  # tests import diffusers, peft and open_clip by themselves too

# Few examples, the same in every run: what fails here fails everywhere. A longer search is
# `pytest --hypothesis-profile=default`.
settings.register_profile("ci", derandomize=True, max_examples=40, deadline=None)
settings.load_profile("ci")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with SDXL's topology and random weights: 32 px images, 4x8x8 latents."""
    from b4m.testing import write_tiny_base

    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny-sdxl")


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> Base:
    """The tiny base, loaded once; whoever hangs deltas on it takes them off."""
    return load_base(str(tiny_base), device="cpu")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store of MLflow without runs, to be copied: to make its tables takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teapot (1 picture) and stripes (5 pictures), with partners."""
    folder = tmp_path_factory.mktemp("prepared")
    return prepare(write_user_folder(folder / "own"), folder / "data", "teapot", "stripes")
