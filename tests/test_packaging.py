"""The wheel is whole, works without what is optional, and everything agrees on the version."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import torch

import b4m

SHIPPED = ("b4m", "components", "pipelines")
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
MERGE = """
import b4m, b4m.adapters
content, style = b4m.read_adapter("a.safetensors"), b4m.read_adapter("b.safetensors")
for method in ("direct", "svd", "ties", "dare", "nplora"):
    b4m.write_adapter(f"{method}.safetensors", b4m.merge(content, style, method=method, rank=3))
"""


@pytest.fixture(scope="module")
def project(repo_root: Path) -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=repo_root, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files and nothing of the checkout, two adapters, half a base."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        up, down = (torch.randn(shape, generator=generator) for shape in ((64, 4), (4, 48)))
        b4m.write_adapter(
            folder / f"{name}.safetensors", b4m.Adapter({LAYER: b4m.LowRank(up, down)})
        )
    (folder / "base").mkdir()
    index = '{"_class_name": "StableDiffusionXLPipeline"}'
    (folder / "base/model_index.json").write_text(index)
    return folder


def _without(packages: set[str], code: str, installed: Path) -> subprocess.CompletedProcess[str]:
    """Run Python on the wheel's files, as if these packages were not installed."""
    environment = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    hide = f"import sys; sys.modules.update(dict.fromkeys({sorted(packages)!r}))\n"
    return subprocess.run(
        [sys.executable, "-c", hide + code],
        cwd=installed,
        env={**environment, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def _commands(*lines: str) -> str:
    """Code that carries them out one after the other and prints status and output of each."""
    return f"""
import contextlib, io, json
from b4m.cli import main
for line in {lines!r}:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        status = main(line.split())
    print(json.dumps([status, output.getvalue()]))
"""


def _answers(done: subprocess.CompletedProcess[str]) -> list[tuple[int, str]]:
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def _optional(project: dict[str, Any], *wanted: str) -> set[str]:
    """Import names of what the extras bring."""
    extras = project["project"]["optional-dependencies"]
    every = {_name(line) for extra in wanted or extras for line in extras[extra]}
    core = {_name(line) for line in project["project"]["dependencies"]}
    homes = packages_distributions()
    return {
        module
        for module, distributions in homes.items()
        if {_name(each) for each in distributions} & (every - core - {"b4m"})
    }


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found.group()).lower()


def test_the_wheel_holds_every_shipped_file_and_nothing_else(wheel: Path, repo_root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *SHIPPED]
    tracked = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True)
    assert packed == {name for name in tracked.stdout.splitlines() if (repo_root / name).is_file()}
    assert wheel.name.startswith(f"b4m-{b4m.__version__}-")


def test_adapters_are_merged_without_any_extra(project: dict[str, Any], installed: Path) -> None:
    hidden = _optional(project)
    assert {"kfp", "mlflow", "diffusers", "transformers", "open_clip", "pandas"} <= hidden
    done = _without(hidden, MERGE, installed)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    merged = b4m.read_adapter(installed / "svd.safetensors")
    assert merged.layers[LAYER].rank == 3


def test_commands_on_adapters_need_no_extra(project: dict[str, Any], installed: Path) -> None:
    lines = (
        "--help",
        "merge --method duolora --help",
        "merge a.safetensors b.safetensors --out c.safetensors",
        "inspect a.safetensors",
        "convert a.safetensors --form kohya --out k.safetensors",
    )
    done = _without(_optional(project), _commands(*lines), installed)
    assert (done.returncode, done.stderr) == (0, "")
    assert [(status, bool(output)) for status, output in _answers(done)] == [(0, True)] * 5


@pytest.mark.parametrize(
    ("extra", "lines"),
    [
        ("train", ["sample --prompt x --base base --out o"]),
        ("evaluate", ["evaluate s --data d --out o", "report s --scores c --data d --out o"]),
        ("pipelines", ["pipeline compile customize"]),
    ],
)
def test_a_missing_extra_costs_one_sentence_that_names_it(
    project: dict[str, Any], installed: Path, extra: str, lines: list[str]
) -> None:
    done = _without(_optional(project, extra), _commands(*lines), installed)
    assert _answers(done) == [(2, "")] * len(lines), done.stderr
    sentences = done.stderr.splitlines()
    assert len(sentences) == len(lines)
    assert all(f"pip install 'b4m[{extra}]'" in sentence for sentence in sentences)


def test_a_pipeline_is_compiled_without_torch(
    project: dict[str, Any], installed: Path, tmp_path: Path
) -> None:
    hidden = {"torch", "numpy", "safetensors"} | _optional(project, "train", "evaluate", "tracking")
    out = tmp_path / "customize.yaml"
    code = _commands(f"pipeline compile customize --out {out}")
    done = _without(hidden - {"jinja2", "yaml"}, code, installed)  # kfp asks for these itself
    assert [status for status, _ in _answers(done)] == [0], done.stderr
    assert "components:" in out.read_text(encoding="utf-8")


def test_every_extra_that_a_sentence_names_exists(project: dict[str, Any], repo_root: Path) -> None:
    named = set()
    for file in (repo_root / "b4m").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "needs":
                assert isinstance(node.args[0], ast.Constant), file
                named.add(node.args[0].value)
    assert {"train", "evaluate", "pipelines"} <= named
    assert named <= set(project["project"]["optional-dependencies"])


def test_every_requirement_is_pinned(project: dict[str, Any], repo_root: Path) -> None:
    extras = project["project"]["optional-dependencies"].values()
    required = {
        _name(line) for part in (project["project"]["dependencies"], *extras) for line in part
    }
    pins = (repo_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert required - {"b4m"} <= {_name(line) for line in pins if "==" in line}


def test_one_version_everywhere(project: dict[str, Any], repo_root: Path) -> None:
    assert project["project"]["dynamic"] == ["version"]
    files = [
        repo_root / "components/image.py",
        repo_root / "infra/Containerfile",
        repo_root / "infra/README.md",
        *(repo_root / "infra/kustomize").rglob("kustomization.yaml"),
    ]
    tags: dict[str, str] = {}
    for file in files:
        text = file.read_text(encoding="utf-8")
        for tag in re.findall(r"(?:b4m-python:|newTag: *)['\"]?([\w.]+)", text):
            tags[f"{file.relative_to(repo_root)}: {tag}"] = tag
    assert len(tags) >= 4
    assert set(tags.values()) == {b4m.__version__}, tags
