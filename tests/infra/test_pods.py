"""What the compiled file says of a task is in the Pod that tests/infra/pods.py makes of it.

The Pods themselves are run on a cluster by hand: infra/README.md.
"""

from pathlib import Path
from typing import Any

import pytest
from kfp import compiler

from pipelines.customize import customize
from tests.infra.pods import Pods


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Pods:
    file = tmp_path_factory.mktemp("compiled") / "customize.yaml"
    compiler.Compiler().compile(customize, str(file))
    made = Pods(file, {"gpus": "1", "memory": "32G"}, Path("/outputs"))
    made._names = lambda: []  # type: ignore[method-assign] # asks the cluster
    return made


def _pod(pods: Pods, label: str) -> dict[str, Any]:
    return dict(pods.pod(label, "localhost/b4m-python:0.1.0", ["sh", "-c", "true"])["spec"])


def test_amounts_are_parameters_of_the_pipeline_and_a_gpu_is_a_limit(pods: Pods) -> None:
    resources = _pod(pods, "exec-train-adapters")["containers"][0]["resources"]
    assert resources["limits"] == {"memory": "32G", "nvidia.com/gpu": "1"}
    assert resources["requests"] == {"cpu": "1", "memory": "32G"}


def test_a_task_that_runs_no_base_gets_no_gpu(pods: Pods) -> None:
    resources = _pod(pods, "exec-plan-jobs")["containers"][0]["resources"]
    assert resources == {
        "limits": {"memory": "2G"},
        "requests": {"cpu": "100m", "memory": "2G"},
    }


def test_every_task_gets_the_store_its_settings_its_secrets_and_its_run(pods: Pods) -> None:
    for label in pods.executors:
        pod = _pod(pods, label)
        claims = [each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"][2:]]
        assert claims == ["b4m-store"]
        variables = {each["name"]: each.get("valueFrom") for each in pod["containers"][0]["env"]}
        assert variables["B4M_WORK"]["configMapKeyRef"]["name"] == "b4m-settings"
        assert variables["HF_TOKEN"]["secretKeyRef"]["optional"] is True
        assert "pipeline/runid" in variables["B4M_KFP_RUN_ID"]["fieldRef"]["fieldPath"]
        assert pod["activeDeadlineSeconds"] == 86400
