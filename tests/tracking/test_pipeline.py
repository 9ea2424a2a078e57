"""The run of a pipeline in MLflow: found by the pipeline run's id, whoever looks, and closed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from b4m import tracking
from b4m.errors import B4MError
from tests.tracking.conftest import client


def test_a_pipelines_run_lives_as_long_as_its_steps(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B4M_KFP_RUN_ID", "run-1")

    def status() -> str:
        return str(client(store).get_run(parent.run_id).info.status)

    with tracking.pipeline_step("customize/cat+ink", {"content": "cat"}) as parent:
        pass
    assert status() == "RUNNING"
    with tracking.pipeline_step(), tracking.open_tracker("content") as child:
        pass
    assert client(store).get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert status() == "RUNNING"
    with pytest.raises(ValueError, match="no such style"), tracking.pipeline_step():
        raise ValueError("no such style")
    assert status() == "FAILED"
    with tracking.pipeline_step(last=True):  # the step was tried again
        pass
    assert status() == "FINISHED"
    run = client(store).get_run(parent.run_id)
    assert run.info.run_name == "customize/cat+ink"
    assert run.data.params == {"content": "cat"}
    assert run.data.tags["b4m.stage"] == "pipeline"


def test_every_pipeline_run_has_a_parent_of_its_own(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = []
    for run in ("run-1", "run-2", "run-1"):
        monkeypatch.setenv("B4M_KFP_RUN_ID", run)
        with tracking.pipeline_step(last=True) as parent, tracking.open_tracker("content") as child:
            pass
        tags = client(store).get_run(child.run_id).data.tags
        assert tags["mlflow.parentRunId"] == parent.run_id
        assert tags["kfp.run_id"] == run
        parents.append(parent.run_id)
    assert parents[0] == parents[2] != parents[1]


def test_steps_that_begin_at_once_share_one_parent(store: str, repo_root: Path) -> None:
    code = (
        "from b4m.tracking import pipeline_step\n"
        "with pipeline_step() as parent:\n"
        "    print(parent.run_id)"
    )
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "B4M_KFP_RUN_ID": "run-1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = {process.communicate(timeout=300)[0].strip() for process in running}
    assert len(answers) == 1
    assert [run.info.run_id for run in client(store).search_runs(["1"])] == list(answers)


def test_a_parent_that_two_servers_made_is_the_earlier_one(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a server no lock keeps two steps from finding no parent at the same moment."""
    monkeypatch.setenv("B4M_KFP_RUN_ID", "run-1")
    with tracking.pipeline_step() as first:
        pass
    look = tracking.pipeline.parents_of
    seen: list[list[object]] = [[]]  # the second step looks before the first one has made it

    def late(*given: object) -> list[object]:
        return seen.pop() if seen else look(*given)

    monkeypatch.setattr(tracking.pipeline, "parents_of", late)
    with tracking.pipeline_step() as second:
        pass
    assert second.run_id == first.run_id
    assert len(client(store).search_runs(["1"])) == 1


def test_a_run_whose_processes_were_killed_can_be_closed(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B4M_KFP_RUN_ID", "run-1")
    with tracking.pipeline_step() as parent:
        pass
    tracking.end_pipeline("KILLED")
    assert client(store).get_run(parent.run_id).info.status == "KILLED"
    with tracking.pipeline_step(last=True):
        pass
    tracking.end_pipeline("KILLED")  # nothing is open any more
    assert client(store).get_run(parent.run_id).info.status == "FINISHED"


def test_results_come_back_by_the_pipeline_runs_id(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str) -> Path:
        path = tmp_path / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        return path

    monkeypatch.setenv("B4M_KFP_RUN_ID", "run-1")
    with tracking.pipeline_step("customize/cat+ink") as parent:
        parent.files([write("b4m-0.png")], "images")
        for stage, name, file, folder in (
            ("content", "lora/cat/s0", "content-cat-lora.safetensors", "adapter"),
            ("merge", "svd/cat+ink/s0", "merged-cat+ink-svd.safetensors", "adapter"),
            ("evaluate", "evaluate", "scores.csv", "scores"),
            ("report", "report", "report.html", "report"),
        ):
            with tracking.open_tracker(name, stage) as run:
                run.files([write(file)], folder)
    monkeypatch.setenv("B4M_KFP_RUN_ID", "run-2")
    with tracking.pipeline_step(), tracking.open_tracker("report", "report") as other:
        other.files([write("other.html")], "report")
    files = tracking.fetch("run-1", tmp_path / "back")
    assert [path.relative_to(tmp_path / "back").as_posix() for path in files] == [
        "adapters/lora-cat-s0.safetensors",
        "adapters/svd-cat+ink-s0.safetensors",
        "images/b4m-0.png",
        "report/report.html",
        "scores/scores.csv",
    ]
    assert files[0].read_text() == "content-cat-lora.safetensors"
    with pytest.raises(B4MError, match="knows no pipeline run 'run-3'"):
        tracking.fetch("run-3", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_what_would_be_thousands_of_runs_is_not_recorded(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B4M_KFP_RUN_ID", "run-1")
    with tracking.pipeline_step() as parent:
        with tracking.unrecorded(), tracking.open_tracker("merge") as merge:
            pass
        with tracking.open_tracker("evaluate") as recorded:
            pass
    assert merge.run_id == ""
    runs = {run.info.run_id for run in client(store).search_runs(["1"])}
    assert runs == {parent.run_id, recorded.run_id}


def _killed_child(store: str, run: str) -> str:
    """A run as a task leaves it that was killed outright."""
    tags = {"kfp.run_id": run, "b4m.stage": "content"}
    return str(client(store).create_run("1", tags=tags).info.run_id)


def _status(store: str, *runs: str) -> list[str]:
    return [client(store).get_run(run).info.status for run in runs]


def test_what_a_killed_run_left_open_is_closed_with_its_children(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {}
    for run in ("run-1", "run-2"):
        monkeypatch.setenv("B4M_KFP_RUN_ID", run)
        with tracking.pipeline_step() as parent:
            states[run] = parent.run_id, _killed_child(store, run)
    tracking.end_pipeline("KILLED", "run-1")
    assert _status(store, *states["run-1"]) == ["KILLED", "KILLED"]
    assert _status(store, *states["run-2"]) == ["RUNNING", "RUNNING"]


def test_the_last_step_closes_what_a_killed_task_left_open(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B4M_KFP_RUN_ID", "run-1")
    with tracking.pipeline_step():
        killed = _killed_child(store, "run-1")
    with tracking.pipeline_step(last=True) as parent, tracking.open_tracker("evaluate") as child:
        pass
    runs = parent.run_id, killed, child.run_id
    assert _status(store, *runs) == ["FINISHED", "KILLED", "FINISHED"]


def test_a_data_set_is_an_input_of_the_run(store: str) -> None:
    digest = "0123456789abcdef0123456789abcdef.dir"
    with tracking.open_tracker("content") as run:
        run.dataset("emojigrid", digest, "data/emojigrid")
    (found,) = client(store).get_run(run.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("emojigrid", digest)
    assert found.dataset.source == '{"uri": "data/emojigrid"}'
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]


def test_a_watched_run_records_how_much_of_the_machine_it_uses(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with tracking.open_tracker("content", watched=True) as run:
        time.sleep(0.5)
    metrics = client(store).get_run(run.run_id).data.metrics
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= {
        *metrics
    }
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    with tracking.open_tracker("content", watched=True) as run:
        time.sleep(0.5)
    assert client(store).get_run(run.run_id).data.metrics == {}


def test_mlflows_pages_open_on_the_runs_of_a_new_experiment(store: str) -> None:
    with tracking.open_tracker("content"):
        pass
    experiment = client(store).get_experiment_by_name("b4m")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
