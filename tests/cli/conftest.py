"""Run commands in this process, on files of one layer."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from b4m import cli
from tests.cli.answers import Answer, write_adapter


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("B4M_TRACKING", "off")


@pytest.fixture
def b4m(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command; gives the exit status, the output and the errors."""

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A user's folder with one content and one style."""
    folder = tmp_path / "images"
    for kind, concept in (("content", "cat"), ("style", "ink")):
        (folder / kind / concept).mkdir(parents=True)
        for number in range(2):
            image = Image.effect_noise((48, 48), 40 + number).convert("RGB")
            image.save(folder / kind / concept / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two files with one layer each."""
    folder = tmp_path_factory.mktemp("adapters")
    return write_adapter(folder / "a.safetensors"), write_adapter(folder / "b.safetensors", 0.2)
