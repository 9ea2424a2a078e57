"""What components do beside their call into the library."""

import shutil
from pathlib import Path

import pytest
from kfp import dsl

from b4m import jobs, tracking
from components.train_adapters import train_adapters


@pytest.fixture
def database(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("MLFLOW_RUN_ID", "B4M_PARENT_RUN", "B4M_TRACKING", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    uri = f"sqlite:///{shutil.copyfile(empty_database, tmp_path / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def test_data_from_a_cache_do_not_bring_back_the_parent_of_their_run(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server replays the artifacts of a cached task with all that their metadata say."""
    from mlflow import MlflowClient

    monkeypatch.setenv("B4M_KFP_RUN_ID", "yesterday")
    with tracking.pipeline_step(last=True) as old:
        pass
    children = []

    def train(task: object, out: str) -> None:
        with tracking.open_tracker("lora/cat/s0") as child:
            children.append(child.run_id)

    monkeypatch.setattr(jobs, "train_shard", train)
    monkeypatch.setattr(jobs.Task, "read", lambda *given: None)
    monkeypatch.setenv("B4M_KFP_RUN_ID", "today")
    data = dsl.Dataset(uri=str(tmp_path / "data"), metadata={"parent_run": old.run_id})
    outputs = dsl.Dataset(uri=str(tmp_path / "jobs")), data, dsl.Model(uri=str(tmp_path / "out"))
    train_adapters.python_func({}, False, "base", *outputs)

    client = MlflowClient(tracking_uri=database)
    parent = client.get_run(children[0]).data.tags["mlflow.parentRunId"]
    assert parent != old.run_id
    assert client.get_run(parent).data.tags["kfp.run_id"] == "today"


def test_no_component_reads_metadata_of_its_inputs(repo_root: Path) -> None:
    """A cache replays them, and a server rounds their numbers."""
    for file in (repo_root / "components").glob("*.py"):
        assert ".metadata" not in file.read_text(encoding="utf-8"), file.name
