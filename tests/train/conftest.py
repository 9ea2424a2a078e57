"""A tiny base and a prepared folder for the training floor."""

from pathlib import Path

import pytest

from b4m.data.prepare import prepare
from b4m.sdxl import Base, load_base
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
