"""What a review once found wrong; each of these tests failed on the code of that day.

D1, D3 and D8 are in `test_defects_settings`, D5 is tested with the evaluation, D9 with the training
loop, D11 with the pipelines.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from b4m import verbs
from b4m.adapters.adapter import Adapter
from b4m.adapters.metadata import Metadata
from b4m.bases.base import Base
from b4m.errors import B4MError
from b4m.files import read_adapter, write_adapter
from b4m.methods import METHODS
from b4m.plan import PLAIN, Comparison, plan
from b4m.training.checkpoint import checkpoint_path
from b4m.verbs.compare import job_settings
from tests import runs
from tests.methods.draws import draw_adapter, draw_pair, shapes_of

FAST = {"rank": 2, "steps": 2, "batch_size": 1, "accumulation": 1}


@pytest.fixture(autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("B4M_WORK", str(tmp_path_factory.mktemp("work")))
    monkeypatch.setenv("B4M_TRACKING", "off")
    monkeypatch.delenv("B4M_GIT_COMMIT", raising=False)


@pytest.fixture(scope="module")
def pair(base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A content and a style adapter with layers of both text encoders."""
    return _files(base, tmp_path_factory.mktemp("pair"), base.hash)


def _files(base: Base, folder: Path, style_hash: str) -> list[Path]:
    text = {name: (m.out_features, m.in_features) for name, m in base.text_linears().items()}
    paths = []
    for number, (kind, digest) in enumerate((("content", base.hash), ("style", style_hash))):
        metadata = Metadata(stage=kind, base_id="tiny", base_hash=digest, **{kind: kind})
        layers = draw_adapter(shapes_of(base), 3, number, size=0.3).layers
        words = {n: draw_pair(*shape, 2, 50 + number, 0.5) for n, shape in text.items()}
        adapter = Adapter(layers, metadata, words)
        paths.append(write_adapter(folder / f"{kind}.safetensors", adapter))
    return paths


def image_of(folder: Path) -> np.ndarray:
    (file,) = (folder / "images").glob("*.png")
    return np.asarray(Image.open(file), dtype=int)


# D2


def test_d2_two_adapters_together_keep_and_scale_their_text_encoder_layers(
    base: Base, pair: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    call = {"prompt": ["a red car"], "base": str(tiny_base)}
    settings = {"steps": 2, "guidance": 3.0}
    merged = tmp_path / "merged.safetensors"
    verbs.merge(pair, merged, "direct", settings={"weights": "0.5, 0.5"})
    assert len(read_adapter(merged).text_layers) == len(base.text_linears())
    one = verbs.sample(tmp_path / "one", [merged], settings=settings, **call)
    two = verbs.sample(tmp_path / "two", pair, settings={**settings, "scale": 0.5}, **call)
    assert np.abs(image_of(one) - image_of(two)).max() <= 1
    plain = [
        write_adapter(tmp_path / file.name, Adapter(read_adapter(file).layers)) for file in pair
    ]
    unet = verbs.sample(tmp_path / "unet", plain, settings={**settings, "scale": 0.5}, **call)
    assert np.abs(image_of(one) - image_of(unet)).max() > 3, "the text encoders' layers are seen"


def test_d2_the_scale_reaches_the_layers_of_the_text_encoders(
    base: Base, pair: list[Path], tiny_base: Path, tmp_path: Path
) -> None:
    call = {"prompt": ["a red car"], "base": str(tiny_base)}
    fast = {"steps": 2, "guidance": 3.0}
    text = read_adapter(pair[0]).text_layers
    words = write_adapter(tmp_path / "words.safetensors", Adapter({}, text_layers=text))
    images = {
        scale: image_of(
            verbs.sample(tmp_path / scale, [words], settings=fast | {"scale": scale}, **call)
        )
        for scale in ("0", "0.5", "1")
    }
    plain = image_of(verbs.sample(tmp_path / "base", settings=fast, **call))
    assert np.array_equal(images["0"], plain)
    distances = [np.abs(images[scale] - plain).max() for scale in ("0.5", "1")]
    assert min(distances) > 3
    assert np.abs(images["0.5"] - images["1"]).max() > 3


def test_d2_the_base_of_each_of_several_adapters_is_checked(
    base: Base, tiny_base: Path, tmp_path: Path
) -> None:
    files = _files(base, tmp_path, "f" * 64)
    for order in (files, files[::-1]):
        with pytest.raises(B4MError, match=r"trained on base tiny \(ffffffffffff\)"):
            verbs.sample(tmp_path / "out", order, prompt=["a car"], base=str(tiny_base))
    assert not (tmp_path / "out").exists()


# D4


def test_d4_an_adapter_made_in_an_image_carries_its_commit(
    pair: list[Path],
    prepared: Path,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("B4M_GIT_COMMIT", commit)
    merged = verbs.merge(pair, tmp_path / "m.safetensors", "direct")
    trained = verbs.train(
        "content",
        prepared,
        "teapot",
        tmp_path / "t.safetensors",
        base=str(tiny_base),
        settings=FAST,
    )
    for file in (merged, trained):
        assert read_adapter(file).metadata.code_version.endswith(f"+{commit[:12]}")


def test_d4_the_image_states_its_commit_under_the_name_that_is_read(repo_root: Path) -> None:
    image = (repo_root / "infra" / "Containerfile").read_text(encoding="utf-8")
    assert re.search(r"^ENV .*\bB4M_GIT_COMMIT=", image, re.M | re.S)


# D6, D7


@pytest.mark.parametrize("method", METHODS)
def test_d6_content_only_is_a_plain_adapter_whatever_the_methods(method: str) -> None:
    jobs = plan(Comparison(("cat",), ("ink",), (method,)))
    by_label = {job.label: job for job in jobs.samples}
    assert by_label["content only"].adapters == (f"content-cat-{PLAIN}",)
    assert by_label["style only"].adapters == (f"style-ink-{PLAIN}",)


@pytest.mark.parametrize("method", METHODS)
def test_d7_every_method_is_planned_and_its_settings_are_found(method: str) -> None:
    jobs = plan(Comparison(("cat",), ("ink",), (method,)))
    assert method in [job.label for job in jobs.samples]
    settings = job_settings(jobs, {}, {}, {})
    assert settings.train.keys() == {job.training for job in jobs.trainings}
    assert settings.merge.keys() == {job.method for job in jobs.merges}


# D10


KEY = "from b4m.training.key import key; print(key('a run'))"
KEY_OF_PLUGGED = f"import b4m.bases; b4m.bases.FAMILIES['mine'] = 'mine'; {KEY}"


def _key(*paths: Path, code: str = KEY) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=paths[0],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_d10_the_key_of_a_run_knows_the_code_and_the_libraries(
    repo_root: Path, tmp_path: Path
) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repo_root / "b4m", tmp_path / "b4m", ignore=ignored)
    before = _key(tmp_path)
    assert _key(repo_root) == before, "the place does not matter"
    with (tmp_path / "b4m" / "report" / "__init__.py").open("a") as stream:
        stream.write("# what comes after a training does not decide it\n")
    assert _key(tmp_path) == before
    with (tmp_path / "b4m" / "training" / "loop.py").open("a") as stream:
        stream.write("# another version\n")
    changed = _key(tmp_path)
    assert changed != before
    other = tmp_path / "libraries" / "torch-99.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.0\n")
    assert _key(tmp_path, tmp_path / "libraries") != changed


def test_d10_the_key_of_a_run_knows_families_of_bases_outside_the_library(
    repo_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    keys = []
    for code in ("FAMILY = 1", "FAMILY = 2"):
        (tmp_path / "mine" / "family.py").write_text(code)
        keys.append(_key(repo_root, tmp_path, code=KEY_OF_PLUGGED))
    assert len({*keys, _key(repo_root)}) == 3


class Stop(Exception):
    """Ends a run where a test wants it."""


class StopAtReport:
    """A tracker that ends the run at its first report, after 10 steps."""

    def metrics(self, values: object, step: int) -> None:
        raise Stop

    def image(self, name: str, image: object, step: int) -> None:
        raise Stop


@pytest.mark.parametrize("way", ["lora", "b4m"])
def test_d10_a_checkpoint_lies_under_the_key_of_the_finished_adapter(
    base: Base, prepared: Path, tmp_path: Path, way: str
) -> None:
    settings = {**FAST, "steps": 20, "checkpoint_every": 5}
    call = (way, "content", prepared, "teapot", base, tmp_path)
    with pytest.raises(Stop):
        runs.train(*call, StopAtReport(), **settings)
    run = runs.open_run(*call, **settings)
    assert list(tmp_path.glob("checkpoint-*")) == [checkpoint_path(tmp_path, run.key)]


# D12


def test_d12_every_variable_that_is_read_is_told_to_those_who_may_set_it(repo_root: Path) -> None:
    def text(*patterns: str) -> str:
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
        listed = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True)
        files = [repo_root / name for name in listed.stdout.splitlines()]
        return "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())

    code = text("b4m/*.py", "components/*.py", "pipelines/*.py")
    prose = text("*.md", "infra/Containerfile", "infra/kustomize/*.yaml")
    read = set(re.findall(r"[\"'](B4M_[A-Z_]+)[\"']", code))
    assert read
    assert {name for name in read if name not in prose} == set()


# D13


@pytest.mark.parametrize("package", ["pandas", "peft"])
def test_d13_what_is_required_is_used(repo_root: Path, package: str) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parts = [project["dependencies"], *project["optional-dependencies"].values()]
    assert any(line.startswith(package) for part in parts for line in part)
    imported = set()
    for file in (repo_root / "b4m").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    assert package in imported


# D14


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_d14_the_dtype_reaches_the_file_through_every_verb_that_writes_one(
    pair: list[Path], prepared: Path, tiny_base: Path, tmp_path: Path, dtype: str
) -> None:
    trained = verbs.train(
        "content",
        prepared,
        "teapot",
        tmp_path / "t.safetensors",
        base=str(tiny_base),
        dtype=dtype,
        settings=FAST,
    )
    merged = verbs.merge(pair, tmp_path / "m.safetensors", "direct", dtype=dtype)
    converted = verbs.convert(pair[0], tmp_path / "c.safetensors", "kohya", dtype)
    for file in (trained, merged, converted):
        kinds = {tensor.dtype for tensor in load_file(file).values() if tensor.ndim}
        assert kinds == {getattr(torch, dtype)}


def test_d14_an_unknown_dtype_is_told_before_the_work() -> None:
    for call in (
        lambda: verbs.train("content", "nowhere", "cat", "x.safetensors", dtype="float8"),
        lambda: verbs.merge(["a", "b"], "c.safetensors", "direct", dtype="float8"),
    ):
        with pytest.raises(B4MError, match="dtype 'float8' is unknown; choose one of float32"):
            call()
