"""Kubernetes takes the manifests and checkov lets them pass; `make manifests` has the tools."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

OVERLAYS = ("overlays/local", "overlays/team", "overlays/gpu", "copy")
VERSIONS = ("1.30.0", "1.33.0", "1.37.0")


def _tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture(scope="module")
def rendered(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each overlay as one file of YAML, with the example's empty secrets."""
    kubectl = _tool("kubectl")
    folder = tmp_path_factory.mktemp("manifests")
    shutil.copytree(repo_root / "infra/kustomize", folder / "kustomize")
    team = folder / "kustomize/overlays/team"
    shutil.copyfile(team / "secret.example.env", team / "secret.env")
    files = {}
    for overlay in OVERLAYS:
        files[overlay] = folder / f"{Path(overlay).name}.yaml"
        command = [kubectl, "kustomize", str(folder / "kustomize" / overlay)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        files[overlay].write_text(done.stdout, encoding="utf-8")
    return files


def _objects(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


def _pods(file: Path) -> dict[str, dict[str, Any]]:
    """Specifications of pods by the name of what makes them."""
    found = {}
    for each in _objects(file):
        if each["kind"] in ("Deployment", "Job"):
            found[each["metadata"]["name"]] = each["spec"]["template"]
        elif each["kind"] == "Pod":
            found[each["metadata"]["name"]] = each
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_gets_a_token_a_sidecar_or_a_writable_root(
    rendered: dict[str, Path], overlay: str
) -> None:
    pods = _pods(rendered[overlay])
    assert pods
    for pod in pods.values():
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert container["image"].partition(":")[0] != "b4m"  # an overlay named it


@pytest.mark.parametrize("overlay", ["overlays/team", "overlays/gpu"])
def test_the_servers_pod_gets_the_keys_that_it_needs_and_no_volume(
    rendered: dict[str, Path], overlay: str
) -> None:
    pod = _pods(rendered[overlay])["b4m-mlflow"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["tmp"]
    environment = pod["containers"][0]["env"]
    assert {each["name"] for each in environment} >= {"MLFLOW_BACKEND_STORE_URI"}
    assert "HF_TOKEN" not in {each["name"] for each in environment}
    for each in environment:
        assert each["valueFrom"]["secretKeyRef"]["key"] == each["name"]
    assert "b4m-mlflow" not in [
        each["metadata"]["name"]
        for each in _objects(rendered[overlay])
        if each["kind"] == "PersistentVolumeClaim"
    ]


def test_secrets_are_read_from_a_file_that_git_ignores(repo_root: Path) -> None:
    file = "infra/kustomize/overlays/team/secret.env"
    command = ["git", "check-ignore", "-q", file]
    assert subprocess.run(command, cwd=repo_root, check=False).returncode == 0
    example = (repo_root / file).with_name("secret.example.env").read_text(encoding="utf-8")
    keys = re.findall(r"^(?:AWS_\w+|HF_TOKEN|\w+PASSWORD)=(.*)$", example, re.M)
    assert len(keys) >= 4
    assert not any(keys)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_schemas_of_kubernetes_since_1_30_take_it(
    rendered: dict[str, Path], overlay: str
) -> None:
    validate = _tool("kubernetes-validate")
    for version in VERSIONS:
        command = [validate, "--strict", "-k", version, str(rendered[overlay])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{version}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_checkov_passes_it_and_every_exception_has_a_reason(
    rendered: dict[str, Path], overlay: str
) -> None:
    command = [_tool("checkov"), "--framework", "kubernetes", "--skip-download", "-o", "json"]
    done = subprocess.run(
        [*command, "-f", str(rendered[overlay])], capture_output=True, text=True, check=False
    )
    results = json.loads(done.stdout)["results"]
    failed = [f"{each['check_id']} {each['resource']}" for each in results["failed_checks"]]
    assert failed == []
    assert len(results["passed_checks"]) > 50
    for each in results["skipped_checks"]:
        assert len(each["check_result"]["suppress_comment"].split()) > 4


def test_hadolint_passes_the_image(repo_root: Path) -> None:
    command = [_tool("hadolint"), str(repo_root / "infra/Containerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
