"""A store of one's own."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a SQLite store to be made; nothing inherited from the surroundings."""
    for name in [key for key in os.environ if key.startswith(("MLFLOW_", "B4M_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
def store(no_store: str, empty_database: Path, tmp_path: Path) -> str:
    """A SQLite store without runs."""
    (tmp_path / "runs").mkdir()
    shutil.copyfile(empty_database, tmp_path / "runs" / "mlflow.db")
    return no_store


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)
