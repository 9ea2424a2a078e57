"""Recording in MLflow: limits, links between runs, processes side by side, servers gone."""

import os
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from b4m import tracking
from b4m.errors import B4MError
from b4m.plan import MergeJob
from tests.tracking.conftest import client

CHILD = """
import sys
from b4m.tracking import open_tracker
with open_tracker(sys.argv[1], stage=sys.argv[1], settings={"rank": 8}) as tracker:
    for step in range(40):
        tracker.metrics({"train/loss": 1.0 / (step + 1)}, step)
    print(tracker.run_id)
"""


def test_flatten_joins_names_with_dots_and_opens_dataclasses() -> None:
    found = dict(tracking.flatten({"adapter": {"rank": 8}, "job": MergeJob("cat", "ink", "svd")}))
    assert found["adapter.rank"] == 8
    assert found["job.method"] == "svd"


def test_everything_of_a_run_is_recorded(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B4M_GIT_COMMIT", "c0ffee")
    monkeypatch.setenv("B4M_KFP_RUN_ID", "run-7")
    monkeypatch.setenv("B4M_IMAGE", "example.org/b4m@sha256:0")
    (tmp_path / "data.dvc").write_text("outs:\n- md5: abc123.dir\n  size: 3\n  path: data\n")
    adapter = tmp_path / "merged.safetensors"
    adapter.write_bytes(b"weights")
    settings = {f"p{number}": number for number in range(230)} | {"long": "x" * 9000}
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with tracking.open_tracker(
            "b4m/octopus+openmoji/s0", stage="merge", method="b4m", settings=settings
        ) as tracker:
            tracker.metrics({"train/loss": 0.5}, 1)
            tracker.metrics({"train/loss": 0.25}, 2)
            tracker.image("samples/octopus in w@z style", Image.new("RGB", (8, 8)), 2)
            tracker.files([adapter], "adapters")
            tracker.tags({"extra": "yes", "empty": ""})
    run = client(store).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "b4m/octopus+openmoji/s0"
    assert len(run.data.params) == 231
    assert len(run.data.params["long"]) == 6000
    history = client(store).get_metric_history(tracker.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.25)]
    expected = {
        "b4m.stage": "merge",
        "b4m.method": "b4m",
        "mlflow.source.git.commit": "c0ffee",
        "dvc.data_md5": "abc123.dir",
        "kfp.run_id": "run-7",
        "image": "example.org/b4m@sha256:0",
        "extra": "yes",
    }
    assert expected.items() <= run.data.tags.items()
    assert "empty" not in run.data.tags
    files = tmp_path / "runs" / "mlartifacts" / tracker.run_id / "artifacts"
    assert (files / "adapters" / "merged.safetensors").read_bytes() == b"weights"
    assert list((files / "images").glob("samples*octopus*.png"))
    assert not (tmp_path / "mlruns").exists()


def test_children_point_to_their_parent_and_share_its_experiment(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "parents")
    with tracking.open_tracker("compare", stage="compare") as parent:
        monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
        with tracking.children_of(parent.run_id), tracking.open_tracker("content") as child:
            pass
        with tracking.open_tracker("outside") as outside:
            pass
    monkeypatch.setenv("B4M_PARENT_RUN", parent.run_id)
    with tracking.open_tracker("in another process") as other:
        pass
    for run_id in (child.run_id, other.run_id):
        found = client(store).get_run(run_id)
        assert found.data.tags["mlflow.parentRunId"] == parent.run_id
        assert found.info.experiment_id == client(store).get_run(parent.run_id).info.experiment_id
    assert "mlflow.parentRunId" not in client(store).get_run(outside.run_id).data.tags


def test_the_environment_is_left_as_it_was(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent that is written down there would reach programs that have nothing to do with it."""
    monkeypatch.setenv("B4M_KFP_RUN_ID", "run-1")
    with tracking.open_tracker("parent") as parent:
        pass
    before = {key: value for key, value in os.environ.items() if key.startswith("B4M_")}
    with tracking.children_of(parent.run_id), tracking.pipeline_step():
        assert {k: v for k, v in os.environ.items() if k.startswith("B4M_")} == before


def test_a_run_made_by_the_platform_is_used_and_left_open(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tracking.open_tracker("first"):
        pass
    given = {"b4m.stage": "customize"}
    made = client(store).create_run("1", run_name="by the platform", tags=given)
    client(store).log_param(made.info.run_id, "content", '"cat"')  # as Kubeflow's plugin does
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    monkeypatch.setenv("B4M_KFP_RUN_ID", "run-1")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with (
            tracking.pipeline_step("ours", {"content": "cat"}, last=True),
            tracking.open_tracker("ours", stage="report", method="b4m") as tracker,
        ):
            tracker.metrics({"eval/clip_t": 0.3})
        tracking.end_pipeline("KILLED")
    run = client(store).get_run(made.info.run_id)
    assert tracker.run_id == made.info.run_id
    assert run.info.status == "RUNNING"
    assert run.data.metrics == {"eval/clip_t": 0.3}
    assert run.data.params == {"content": '"cat"', "b4m.content": "cat"}
    assert run.data.tags["b4m.stage"] == "customize"  # what the platform said stays
    assert run.data.tags["b4m.method"] == "b4m"


def test_a_clusters_own_names_stand_in_for_mlflows(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    ours = f"sqlite:///{tmp_path / 'ours.db'}"
    settings = {
        "TRACKING_URI": ours,
        "EXPERIMENT_NAME": "team",
        "TRACKING_USERNAME": "me",
        "TRACKING_PASSWORD": "secret",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"B4M_MLFLOW_{name}", value)
        monkeypatch.setenv(f"MLFLOW_{name}", "")  # so that it is taken away again afterwards
        monkeypatch.delenv(f"MLFLOW_{name}")
    with tracking.open_tracker("content") as tracker:
        pass
    experiment = client(ours).get_run(tracker.run_id).info.experiment_id
    assert client(ours).get_experiment(experiment).name == "team"
    assert {key: os.environ[f"MLFLOW_{key}"] for key in settings} == settings


def test_a_platforms_address_goes_before_the_clusters(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B4M_MLFLOW_TRACKING_URI", "sqlite:////nowhere/at/all.db")
    monkeypatch.setenv("B4M_MLFLOW_TRACKING_PASSWORD", "of the cluster")
    with tracking.open_tracker("first") as first:
        pass
    assert client(store).get_run(first.run_id).info.status == "FINISHED"
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    monkeypatch.setenv("MLFLOW_RUN_ID", first.run_id)
    with tracking.open_tracker("second") as second:
        pass
    assert second.run_id == first.run_id
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_an_error_ends_the_run_and_goes_on(
    store: str, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), tracking.open_tracker("breaks") as tracker:
        raise error("stop")
    assert client(store).get_run(tracker.run_id).info.status == status


def test_two_processes_may_make_the_database_at_once(no_store: str, repo_root: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(repo_root),
        "PYTHONWARNINGS": "error::RuntimeWarning",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, name],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("content", "style")
    ]
    for process in running:
        answer, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "locked" not in errors
        history = client(no_store).get_metric_history(answer.strip(), "train/loss")
        assert len(history) == 40


def test_a_server_that_is_gone_costs_seconds_and_one_warning(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.warns(RuntimeWarning, match="the work goes on") as caught:  # noqa: PT031
        with tracking.open_tracker("nobody listens", settings={"a": 1}) as tracker:
            tracker.metrics({"train/loss": 1.0}, 1)
    assert len(caught) == 1
    assert tracker.run_id == ""
    assert time.monotonic() - start < 20.0


def test_a_password_in_an_address_is_not_printed(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:planted-secret@127.0.0.1:9/a")
    with pytest.warns(RuntimeWarning) as caught, tracking.open_tracker("nobody listens"):
        pass
    assert "planted-secret" not in str(caught[0].message)
    with pytest.raises(B4MError, match="http://127.0.0.1:9/a cannot be reached") as error:
        tracking.fetch("run-1", Path("out"))
    assert "planted-secret" not in str(error.value)


class _Away:
    """An MLflow client whose server does not answer for some time."""

    def __init__(self) -> None:
        self.away = True
        self.recorded: list[object] = []

    def log_batch(self, run: str, metrics: list[Any]) -> None:
        self._answer(*[(metric.step, metric.value) for metric in metrics])

    def set_terminated(self, run: str, status: str) -> None:
        self._answer(status)

    def _answer(self, *values: object) -> None:
        if self.away:
            raise ConnectionRefusedError("nobody listens")
        self.recorded += values


def test_what_a_server_that_was_away_has_missed_is_recorded_in_its_order(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B4M_TRACKING_WAIT", "60")
    server, slept = _Away(), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        server.away = len(slept) < 3

    monkeypatch.setattr("time.sleep", sleep)
    tracker = tracking.tracker.MLflowTracker(server, "run", owned=True)
    with pytest.warns(RuntimeWarning, match="nobody listens"):
        tracker.metrics({"train/loss": 2.0}, 1)
    tracker.metrics({"train/loss": 1.0}, 2)
    assert server.recorded == []
    assert slept == []  # training goes on meanwhile
    tracker.finish("FINISHED")
    assert server.recorded == [(1, 2.0), (2, 1.0), "FINISHED"]
    assert len(slept) == 3


def test_a_store_that_breaks_in_the_middle_gives_one_warning(store: str, tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="the work goes on") as caught:  # noqa: PT031
        with tracking.open_tracker("breaks later") as tracker:
            tracker.files([tmp_path / "missing.bin"])
            tracker.files([tmp_path / "missing too.bin"])
            tracker.metrics({"train/loss": 1.0}, 1)
    assert [one.category for one in caught].count(RuntimeWarning) == 1
    assert client(store).get_run(tracker.run_id).data.metrics == {"train/loss": 1.0}


def test_tracking_can_be_switched_off(no_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("B4M_TRACKING", "off")
    with tracking.open_tracker("silent") as tracker:
        tracker.params({"a": 1})
        tracker.image("p", Image.new("RGB", (8, 8)))
        tracker.files([])
        tracker.tags({})
        tracker.metrics({"b": 2.0})
    assert isinstance(tracker, tracking.NullTracker)
    assert not Path("runs").exists()


def test_the_default_store_lies_below_the_working_directory(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"


def test_importing_the_tracker_imports_neither_mlflow_nor_torch(repo_root: Path) -> None:
    code = "import sys, b4m.tracking; print('mlflow' in sys.modules, 'torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["False", "False"]
