"""A compiled pipeline is a picture of the data's way, made without torch and the library."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import components

# `python -m pipelines` in an interpreter that refuses what only tasks may import
COMPILE = """
import runpy, sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "b4m", "diffusers", "mlflow", "numpy"}:
            raise ImportError(f"{name} must not be imported to compile")

sys.meta_path.insert(0, Refuse())
sys.argv = ["pipelines", *sys.argv[1:]]
runpy.run_module("pipelines", run_name="__main__", alter_sys=True)
"""


def _compile(repo_root: Path, out: Path, **environment: str) -> str:
    subprocess.run(
        [sys.executable, "-c", COMPILE, "compile", "customize", "--out", str(out)],
        cwd=repo_root,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compiled(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compiled") / "customize.yaml"
    _compile(repo_root, out, B4M_IMAGE="")
    return out


@pytest.fixture(scope="module")
def spec(compiled: Path) -> dict[str, Any]:
    return next(iter(yaml.safe_load_all(compiled.read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def platform(compiled: Path) -> dict[str, Any]:
    documents = list(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    return documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def _tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All tasks that run something, by the name that people see."""
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    found = {}
    for dag in dags:
        for task in dag["tasks"].values():
            component = spec["components"][task["componentRef"]["name"]]
            if "executorLabel" in component:
                found[task["taskInfo"]["name"]] = {**task, "executor": component["executorLabel"]}
    return found


def test_the_compiled_file_loads_as_a_component(compiled: Path) -> None:
    loaded = components.load_component_from_file(str(compiled))
    assert loaded.component_spec.name == "customize"
    inputs = loaded.component_spec.inputs
    assert inputs is not None
    assert len(inputs) <= 12
    assert inputs["methods"].default[0] == "b4m"


def test_compiling_twice_gives_the_same_bytes(compiled: Path, repo_root: Path) -> None:
    again = _compile(repo_root, compiled.with_name("again.yaml"), B4M_IMAGE="")
    assert again == compiled.read_text(encoding="utf-8")


def test_content_and_style_are_trained_side_by_side(spec: dict[str, Any]) -> None:
    tasks = _tasks(spec)
    content, style = tasks["train content"], tasks["train style"]
    kind = [t["inputs"]["parameters"]["kind"]["runtimeValue"]["constant"] for t in (content, style)]
    assert kind == ["content", "style"]
    assert "dependentTasks" not in content
    assert "dependentTasks" not in style


def test_the_tasks_are_the_ways_of_the_data(spec: dict[str, Any]) -> None:
    assert set(_tasks(spec)) == {
        "prepare data",
        "train content",
        "train style",
        "shelve adapters",
        "merge",
        "sample merged",
        "sample alone",
        "evaluate",
        "report",
    }
    root = spec["root"]["dag"]["tasks"]
    needs = {name: set(task.get("dependentTasks", [])) for name, task in root.items()}
    loops = {task["taskInfo"]["name"]: name for name, task in root.items() if "for-loop" in name}
    assert needs[loops["trainings"]] == {"prepare-data"}
    assert needs["shelve-adapters"] == {loops["trainings"]}
    assert needs[loops["methods"]] == {"prepare-data", "shelve-adapters"}
    assert needs[loops["alone"]] == {"prepare-data", "shelve-adapters"}
    assert needs["evaluate"] == {"prepare-data", loops["alone"], loops["methods"]}
    assert needs["report"] == {"prepare-data", "evaluate", loops["alone"], loops["methods"]}


def test_all_tasks_run_in_one_image_that_the_environment_names(
    spec: dict[str, Any], repo_root: Path, tmp_path: Path
) -> None:
    def images(document: dict[str, Any]) -> set[str]:
        executors = document["deploymentSpec"]["executors"].values()
        return {executor["container"]["image"] for executor in executors}

    assert len(images(spec)) == 1
    text = _compile(repo_root, tmp_path / "other.yaml", B4M_IMAGE="example.org/b4m@sha256:0")
    assert images(next(iter(yaml.safe_load_all(text)))) == {"example.org/b4m@sha256:0"}


def test_no_task_installs_packages_when_it_starts(spec: dict[str, Any]) -> None:
    for executor in spec["deploymentSpec"]["executors"].values():
        assert "pip install" not in " ".join(executor["container"]["command"])


def test_only_tasks_that_run_a_model_ask_for_an_accelerator(spec: dict[str, Any]) -> None:
    executors = spec["deploymentSpec"]["executors"]
    with_accelerator = {
        name
        for name, task in _tasks(spec).items()
        if "accelerator" in executors[task["executor"]]["container"].get("resources", {})
    }
    assert with_accelerator == {
        "train content",
        "train style",
        "merge",
        "sample merged",
        "sample alone",
        "evaluate",
    }


def test_a_cluster_without_accelerators_is_asked_for_none(repo_root: Path, tmp_path: Path) -> None:
    text = _compile(repo_root, tmp_path / "cpu.yaml", B4M_GPU="0")
    assert "nvidia.com/gpu" not in text


def test_loops_run_no_more_tasks_at_once_than_the_environment_says(
    repo_root: Path, tmp_path: Path
) -> None:
    text = _compile(repo_root, tmp_path / "one.yaml", B4M_PARALLEL="1")
    root = next(iter(yaml.safe_load_all(text)))["root"]["dag"]["tasks"]
    limits = [task["iteratorPolicy"] for task in root.values() if "iteratorPolicy" in task]
    assert limits == [{"parallelismLimit": 1}] * 3


def test_every_task_gets_settings_and_secrets_and_none_is_written_down(
    spec: dict[str, Any], platform: dict[str, Any], repo_root: Path
) -> None:
    settings = yaml.safe_load(
        (repo_root / "infra/kustomize/base/kustomization.yaml").read_text(encoding="utf-8")
    )["configMapGenerator"][0]
    for task in _tasks(spec).values():
        given = platform[task["executor"]]
        assert given["configMapAsEnv"][0]["configMapName"] == settings["name"]
        assert given["secretAsEnv"][0]["secretName"] == "b4m-secrets"
        assert given["pvcMount"][0]["mountPath"] == "/store"
    defined = {literal.partition("=")[0] for literal in settings["literals"]}
    keys = {e["configMapKey"] for e in given["configMapAsEnv"][0]["keyToEnv"]}
    assert keys == defined


def test_inputs_are_explained_to_the_reader_of_the_ui(spec: dict[str, Any]) -> None:
    lacking = [
        f"{name}.{key}"
        for name, component in {**spec["components"], "root": spec["root"]}.items()
        if name == "root" or "executorLabel" in component
        for section in component["inputDefinitions"].values()
        for key, definition in section.items()
        if not definition.get("description")
    ]
    assert not lacking
