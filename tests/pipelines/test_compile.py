"""A compiled pipeline is the way of the data, made without torch, and one that old servers read."""

import os
import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import components

from pipelines.cli import PIPELINES, main
from pipelines.resources import SECRETS
from tests.pipelines import oldest_server

IMAGE = "example.org/b4m@sha256:0"

# `b4m pipeline compile` in an interpreter that refuses what only tasks may import
COMPILE = """
import sys
from importlib.abc import MetaPathFinder

class Refuse(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "diffusers", "mlflow", "numpy", "pandas", "PIL"}:
            raise ImportError(f"{name} must not be imported to compile")

sys.meta_path.insert(0, Refuse())
from pipelines.cli import PIPELINES, main

for name in PIPELINES:
    assert main(["compile", name, "--out", f"{sys.argv[1]}/{name}.yaml"]) == 0
"""


@dataclass(frozen=True)
class Compiled:
    """A pipeline's YAML file with its two documents."""

    file: Path

    @cached_property
    def documents(self) -> list[dict[str, Any]]:
        return list(yaml.load_all(self.file.read_text(encoding="utf-8"), yaml.CSafeLoader))

    @property
    def spec(self) -> dict[str, Any]:
        return self.documents[0]

    @property
    def platform(self) -> dict[str, dict[str, Any]]:
        """Kubernetes' part by executor."""
        return self.documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """All tasks that run something, by the name that people see, with their executors."""
        spec = self.spec
        dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
        found = {}
        for task in (task for dag in dags for task in dag["tasks"].values()):
            label = spec["components"][task["componentRef"]["name"]].get("executorLabel")
            if label:
                container = spec["deploymentSpec"]["executors"][label]["container"]
                found[task["taskInfo"]["name"]] = {
                    **task,
                    "container": container,
                    "platform": self.platform[label],
                }
        return found

    @property
    def loops(self) -> list[dict[str, Any]]:
        tasks = self.spec["root"]["dag"]["tasks"].values()
        return [task for task in tasks if "parameterIterator" in task]


def _compile(repo_root: Path, out: Path, **environment: str) -> dict[str, Compiled]:
    """All pipelines by name, compiled in one process."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(out)],
        cwd=repo_root,
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {file.stem: Compiled(file) for file in out.glob("*.yaml")}


@pytest.fixture(scope="module")
def plain(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """As they are compiled where the environment says nothing."""
    return _compile(repo_root, tmp_path_factory.mktemp("compiled"), B4M_IMAGE="")


@pytest.fixture(scope="module", params=PIPELINES)
def compiled(plain: dict[str, Compiled], request: pytest.FixtureRequest) -> Compiled:
    return plain[request.param]


@pytest.fixture(scope="module")
def told(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """As they are compiled where the environment says all that it may."""
    environment = {
        "B4M_IMAGE": IMAGE,
        "B4M_PARALLEL": "1",
        "B4M_PULL_SECRET": "registry",
        "B4M_PULL_POLICY": "Always",
        **dict.fromkeys(("KFP_TOKEN", *SECRETS, *SECRETS.values()), "planted-secret"),
    }
    return _compile(repo_root, tmp_path_factory.mktemp("told"), **environment)


def test_the_compiled_file_loads_as_a_component(compiled: Compiled) -> None:
    loaded = components.load_component_from_file(str(compiled.file))
    assert loaded.component_spec.name == compiled.file.stem
    inputs = loaded.component_spec.inputs
    assert inputs is not None
    assert inputs["methods"].default[0] == "b4m"


def test_compiling_twice_gives_the_same_bytes(compiled: Compiled, tmp_path: Path) -> None:
    again = tmp_path / "again.yaml"
    assert main(["compile", compiled.file.stem, "--out", str(again)]) == 0
    assert again.read_bytes() == compiled.file.read_bytes()


def test_the_oldest_supported_server_reads_it(compiled: Compiled) -> None:
    oldest_server.parse(compiled.spec, compiled.documents[1])


def test_the_oldest_supported_server_refuses_what_it_does_not_know(compiled: Compiled) -> None:
    spec, platform = deepcopy(compiled.documents)
    executor = next(iter(spec["deploymentSpec"]["executors"].values()))
    executor["container"]["fieldOfTomorrow"] = 1
    with pytest.raises(json_format.ParseError, match="fieldOfTomorrow"):
        oldest_server.parse(spec, platform)
    spec, platform = deepcopy(compiled.documents)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    next(iter(executors.values()))["fieldOfTomorrow"] = 1
    with pytest.raises(json_format.ParseError, match="fieldOfTomorrow"):
        oldest_server.parse(spec, platform)


@pytest.mark.slow
def test_the_oldest_servers_messages_are_those_that_were_published(tmp_path: Path) -> None:
    packages = [
        f"{name}=={oldest_server.VERSION}" for name in ("kfp-pipeline-spec", "kfp-kubernetes")
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            tmp_path,
            *packages,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
    assert oldest_server.descriptors(tmp_path) == oldest_server.FILE.read_bytes()


def test_what_a_task_takes_from_around_it_is_there(compiled: Compiled) -> None:
    """The compiler does not look: parameters of resources inside a loop are easily left out."""
    spec = compiled.spec
    components = {"root": spec["root"], **spec["components"]}
    for name, component in components.items():
        defined = component.get("inputDefinitions", {})
        for key, task in component.get("dag", {}).get("tasks", {}).items():
            for kind in ("parameter", "artifact"):
                given = task.get("inputs", {}).get(f"{kind}s", {}).values()
                reference = f"componentInput{kind.title()}"
                taken = {value[reference] for value in given if reference in value}
                assert taken <= set(defined.get(f"{kind}s", {})), f"{name}/{key}"


def test_no_loop_has_a_name_of_its_own(compiled: Compiled) -> None:
    """Servers before 2.16 look for what is collected under the loop's key, not under its name."""
    for key, task in compiled.spec["root"]["dag"]["tasks"].items():
        if "parameterIterator" in task:
            assert task["taskInfo"]["name"] == key


def test_no_list_of_artifacts_goes_into_a_loop(compiled: Compiled) -> None:
    """A server keeps the last artifact of such a list (GetInputArtifactsByExecutionID)."""
    spec = compiled.spec
    for loop in compiled.loops:
        inputs = spec["components"][loop["componentRef"]["name"]]["inputDefinitions"]
        assert not [k for k, v in inputs["artifacts"].items() if v.get("isArtifactList")]


def test_what_makes_a_run_its_own_is_never_cached(compiled: Compiled) -> None:
    for name in ("plan", "prepare data"):
        assert not compiled.tasks[name]["cachingOptions"].get("enableCache")


def test_all_below_depends_on_the_data_of_this_run(compiled: Compiled) -> None:
    """So nothing of an earlier run stands in for a task that a changed image must reach."""
    tasks = compiled.spec["root"]["dag"]["tasks"]

    def above(name: str) -> set[str]:
        direct = set(tasks[name].get("dependentTasks", []))
        return direct.union(*(above(each) for each in direct))

    for name in set(tasks) - {"plan-jobs", "prepare-data"}:
        assert "plan-jobs" in above(name)
        assert "prepare-data" in above(name) or name.startswith("share-jobs")


def test_the_tasks_are_the_ways_of_the_data(compiled: Compiled) -> None:
    last = {"compare": "check outcomes", "customize": "publish"}[compiled.file.stem]
    assert set(compiled.tasks) == {
        last,
        "plan",
        "prepare data",
        "train",
        "collect adapters",
        "share out closed-form",
        "merge (closed-form)",
        "share out learned",
        "merge (learned)",
        "sample merged",
        "share out samples",
        "sample",
        "evaluate",
        "report",
    }
    assert len(compiled.loops) == 4


def test_no_name_of_a_method_or_a_baseline_is_written_down(compiled: Compiled) -> None:
    """What is merged and shown is the planner's business; parameters have defaults."""
    text = compiled.file.read_text(encoding="utf-8")
    text = text[text.index("components:") : text.index("\nroot:")]
    for name in ("klora", "duolora", "direct", "content only", "style only"):
        assert name not in text


def test_all_tasks_run_in_one_image_that_the_environment_names(
    compiled: Compiled, told: dict[str, Compiled]
) -> None:
    def images(pipeline: Compiled) -> set[str]:
        return {task["container"]["image"] for task in pipeline.tasks.values()}

    assert len(images(compiled)) == 1
    other = told[compiled.file.stem]
    assert images(other) == {IMAGE}
    for task in other.tasks.values():
        assert {"name": "B4M_IMAGE", "value": IMAGE} in task["container"]["env"]


def test_no_secret_of_who_compiles_is_written_down(told: dict[str, Compiled]) -> None:
    made = told["customize"]
    assert "planted-secret" not in made.file.read_text(encoding="utf-8")
    given = {
        e["envVar"]
        for t in made.tasks.values()
        for e in t["platform"]["secretAsEnv"][0]["keyToEnv"]
    }
    assert given == set(SECRETS.values())


def test_no_task_installs_packages_when_it_starts(compiled: Compiled) -> None:
    for task in compiled.tasks.values():
        assert "pip install" not in " ".join(task["container"]["command"])


def test_only_tasks_that_run_a_model_ask_for_an_accelerator(compiled: Compiled) -> None:
    asking = {n for n, t in compiled.tasks.items() if "accelerator" in t["container"]["resources"]}
    assert asking == {"train", "merge (learned)", "sample merged", "sample", "evaluate"}
    tolerating = {n for n, t in compiled.tasks.items() if "tolerations" in t["platform"]}
    assert tolerating == asking


def test_how_much_a_task_gets_is_a_parameter_of_text(compiled: Compiled) -> None:
    """A server reads these as text and takes none for a number."""
    inputs = compiled.spec["root"]["inputDefinitions"]["parameters"]
    given = {name: inputs[name] for name in ("gpus", "cpu", "memory")}
    assert {value["parameterType"] for value in given.values()} == {"STRING"}
    assert {name: value["defaultValue"] for name, value in given.items()} == {
        "gpus": "0",
        "cpu": "1",
        "memory": "4G",
    }
    resources = compiled.tasks["train"]["container"]["resources"]
    assert "pipelinechannel--gpus" in resources["accelerator"]["resourceCount"]
    assert "pipelinechannel--cpu" in resources["resourceCpuRequest"]
    for kind in ("Request", "Limit"):
        assert "pipelinechannel--memory" in resources[f"resourceMemory{kind}"]


def test_every_task_says_how_much_it_needs_and_ends_some_time(compiled: Compiled) -> None:
    for task in compiled.tasks.values():
        assert {"resourceCpuRequest", "resourceMemoryRequest", "resourceMemoryLimit"} <= set(
            task["container"]["resources"]
        )
        assert task["platform"]["activeDeadlineSeconds"] == str(24 * 3600)


def test_long_tasks_are_tried_again(compiled: Compiled) -> None:
    retried = {
        n for n, t in compiled.tasks.items() if t.get("retryPolicy", {}).get("maxRetryCount")
    }
    assert {"train", "merge (learned)", "merge (closed-form)", "sample merged", "sample"} <= retried


def test_no_value_is_written_into_the_text_of_another(compiled: Compiled) -> None:
    """A server puts values into such templates without escaping: a quotation mark breaks them."""
    for name, task in compiled.tasks.items():
        for key, value in task["inputs"]["parameters"].items():
            constant = value.get("runtimeValue", {}).get("constant", "")
            whole = re.fullmatch(r"\{\{\$\.inputs\.parameters\['[\w-]+'\]\}\}", str(constant))
            assert whole or "{{$" not in str(constant), f"{name}: {key}"


def test_loops_run_no_more_tasks_at_once_than_the_environment_says(
    told: dict[str, Compiled],
) -> None:
    policies = [loop["iteratorPolicy"] for loop in told["customize"].loops]
    assert policies == [{"parallelismLimit": 1}] * 4


def test_an_image_of_a_closed_registry_can_be_pulled(told: dict[str, Compiled]) -> None:
    for task in told["customize"].tasks.values():
        assert task["platform"]["imagePullPolicy"] == "Always"
        assert task["platform"]["imagePullSecret"][0]["secretName"] == "registry"


def test_every_task_gets_settings_and_secrets_and_none_is_written_down(
    compiled: Compiled, repo_root: Path
) -> None:
    settings = yaml.safe_load(
        (repo_root / "infra/kustomize/base/kustomization.yaml").read_text(encoding="utf-8")
    )["configMapGenerator"][0]
    defined = {literal.partition("=")[0] for literal in settings["literals"]}
    for task in compiled.tasks.values():
        given = task["platform"]
        assert given["configMapAsEnv"][0]["configMapName"] == settings["name"]
        assert given["secretAsEnv"][0]["secretName"] == "b4m-secrets"
        assert given["pvcMount"][0]["mountPath"] == "/store"
        assert {e["configMapKey"] for e in given["configMapAsEnv"][0]["keyToEnv"]} == defined


def test_no_variable_of_mlflow_is_set_which_the_platform_may_set(compiled: Compiled) -> None:
    """Kubeflow's MLflow plugin sets them; a pod with two entries of one name is refused."""
    for task in compiled.tasks.values():
        given = task["platform"]
        entries = [e for part in ("configMapAsEnv", "secretAsEnv") for e in given[part]]
        names = [pair["envVar"] for entry in entries for pair in entry["keyToEnv"]]
        names += [each["name"] for each in given["fieldPathAsEnv"]]
        names += [each["name"] for each in task["container"]["env"]]
        assert len(names) == len(set(names))
        assert not [name for name in names if name.startswith("MLFLOW_")]
        assert "B4M_MLFLOW_TRACKING_URI" in names


def test_inputs_are_explained_to_the_reader_of_the_ui(compiled: Compiled) -> None:
    spec = compiled.spec
    lacking = [
        f"{name}.{key}"
        for name, component in {**spec["components"], "root": spec["root"]}.items()
        if name == "root" or "executorLabel" in component
        for section in component["inputDefinitions"].values()
        for key, definition in section.items()
        if not definition.get("description")
    ]
    assert not lacking
