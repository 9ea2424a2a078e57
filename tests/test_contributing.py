"""CONTRIBUTING's example is a whole commit: applied to a copy of the library, it works."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import b4m

NAME = "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
METHOD = "b4m/methods/balanced.py"
TEST = "tests/methods/test_balanced.py"
REGISTRY = "b4m/methods/__init__.py"


@pytest.fixture(scope="module")
def blocks(repo_root: Path) -> dict[str, str]:
    """The example's code blocks, by the file that the text before each names."""
    text = (repo_root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text.split("## Add a merge method in one file")[1], flags=re.M)[0]
    found = {}
    position = 0
    for block in re.finditer(r"^```python\n(.*?)^```", section, re.M | re.S):
        named = re.findall(r"`([\w/]+\.py)`", section[position : block.start()])
        found[named[-1]] = block[1]
        position = block.end()
    assert set(found) == {METHOD, REGISTRY, TEST}
    return found


@pytest.fixture(scope="module")
def copy(repo_root: Path, blocks: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository's code with the example applied: one file, one row, one test."""
    folder = tmp_path_factory.mktemp("contributed")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repo_root / "b4m", folder / "b4m", ignore=ignored)
    (folder / METHOD).write_text(blocks[METHOD], encoding="utf-8")
    registry = folder / REGISTRY
    table = re.compile(r"^(METHODS: .*?)^\}", re.M | re.S)
    text, replaced = table.subn(
        lambda match: f"{match[1]}{blocks[REGISTRY]}}}", registry.read_text(encoding="utf-8")
    )
    assert replaced == 1
    registry.write_text(text, encoding="utf-8")
    (folder / TEST).parent.mkdir(parents=True)
    (folder / TEST).write_text(blocks[TEST], encoding="utf-8")
    return folder


def _python(copy: Path, *arguments: object) -> str:
    """The output of a Python process that imports the copy."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "B4M_TRACKING": "off"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_is_small_and_passes_its_own_test(copy: Path, blocks: dict[str, str]) -> None:
    assert len(blocks[METHOD].splitlines()) <= 40
    assert len(blocks[REGISTRY].splitlines()) == 1
    assert "1 passed" in _python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEST)


def test_the_example_passes_the_checks_of_the_repository(copy: Path, repo_root: Path) -> None:
    for check in (["check"], ["format", "--check"]):
        config = ["--config", str(repo_root / "pyproject.toml"), "--no-cache"]
        _python(copy, "-m", "ruff", *check, *config, METHOD, TEST, REGISTRY)


def test_the_command_line_merges_by_it_and_says_so(copy: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for name in ("content", "style"):
        pair = b4m.LowRank(torch.randn(64, 4), torch.randn(4, 64))
        b4m.write_adapter(tmp_path / f"{name}.safetensors", b4m.Adapter({NAME: pair}))
    files = [tmp_path / f"{name}.safetensors" for name in ("content", "style", "merged")]
    content, style, merged = map(str, files)
    merge = ["merge", content, style, "--method", "balanced", "--power", "0.5", "--out", merged]
    code = (
        "from b4m.cli import main\n"
        f"assert main({merge!r}) == 0\n"
        "print()\n"
        f"assert main({['inspect', merged]!r}) == 0"
    )
    facts = json.loads("{" + _python(copy, "-c", code).partition("\n{")[2])
    assert facts["metadata"]["b4m.method"] == "balanced"
    assert json.loads(facts["metadata"]["b4m.config"])["settings"]["power"] == 0.5
    assert facts["ranks"] == {"8": 1}


def test_help_planner_report_and_documentation_know_it(copy: Path, repo_root: Path) -> None:
    shown = _python(copy, "-m", "b4m.cli", "merge", "--method", "balanced", "--help")
    assert "--power" in shown
    assert "--density" not in shown
    # what `b4m compare` does, the row's name in the report, and the site's table of settings
    code = (
        "from b4m.plan import Comparison, plan\n"
        "from b4m.report.names import name_of\n"
        "jobs = plan(Comparison(contents=('mug',), styles=('ink',), methods=('balanced',)))\n"
        "print(*[job.key for job in jobs.merges])\n"
        "print(name_of('balanced')[0])\n"
        "import hooks\n"
        "print(*hooks.settings_page(), sep='\\n')\n"
    )
    shutil.copyfile(repo_root / "docs/hooks.py", copy / "hooks.py")
    said = _python(copy, "-c", code)
    assert "balanced" in said.splitlines()[0]
    assert said.splitlines()[1] == "Balanced merge"
    assert "`b4m merge --method balanced`" in said
    assert "| `power` | 1.0 |" in said
