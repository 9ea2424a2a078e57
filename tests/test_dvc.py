"""The data travels: from the remote in the repository, and on to a team's own remote."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


def _dvc(clone: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "DVC_NO_ANALYTICS": "1",
        # DVC's own bookkeeping of what it has seen must not leak between clones
        "DVC_SITE_CACHE_DIR": str(clone / ".dvc/tmp/site"),
        "DVC_GLOBAL_CONFIG_DIR": str(clone / ".dvc/tmp/global"),
        "DVC_SYSTEM_CONFIG_DIR": str(clone / ".dvc/tmp/system"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _fresh_clone(repo_root: Path, folder: Path) -> Path:
    """What a clone holds for DVC: its configuration, data.dvc and the remote, but no data."""
    folder.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "data.dvc"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(repo_root / name, folder / name)
    (folder / "infra").mkdir()
    (folder / "infra/starter-remote").symlink_to(repo_root / "infra/starter-remote")
    return folder


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def pulled(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    clone = _fresh_clone(repo_root, tmp_path_factory.mktemp("dvc") / "clone")
    _dvc(clone, "pull", "-q")
    return clone


def test_status_is_clean_after_a_pull_from_the_remote_in_the_repository(pulled: Path) -> None:
    assert (pulled / "data/emojigrid/manifest.csv").is_file()
    assert "up to date" in _dvc(pulled, "status")


def test_a_push_to_a_fresh_remote_serves_another_clone(
    pulled: Path, repo_root: Path, tmp_path: Path
) -> None:
    remote = tmp_path / "team-remote"
    _dvc(pulled, "remote", "add", "team", str(remote))
    _dvc(pulled, "push", "-q", "-r", "team")
    other = _fresh_clone(repo_root, tmp_path / "other")
    _dvc(other, "remote", "add", "-d", "-f", "team", str(remote))
    _dvc(other, "pull", "-q")
    assert _contents(other / "data") == _contents(pulled / "data")


def test_data_is_versioned_by_dvc_alone(repo_root: Path) -> None:
    pointer = yaml.safe_load((repo_root / "data.dvc").read_text(encoding="utf-8"))
    assert [out["path"] for out in pointer["outs"]] == ["data"]
    ignored = ["git", "check-ignore", "-q", "data/anything"]
    assert subprocess.run(ignored, cwd=repo_root, check=False).returncode == 0
    tracked = subprocess.run(
        ["git", "ls-files", "data"], cwd=repo_root, capture_output=True, text=True, check=True
    )
    assert tracked.stdout == ""


def test_the_default_remote_is_a_relative_path_in_the_repository(repo_root: Path) -> None:
    config = (repo_root / ".dvc/config").read_text(encoding="utf-8")
    assert "url = ../infra/starter-remote" in config
    assert str(repo_root) not in config
