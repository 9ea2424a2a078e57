"""Data of a repository at a revision, as DVC keeps them."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from b4m import verbs
from b4m.data.repository import Origin, fetch, origin, state
from b4m.data.versions import data_version, shown
from b4m.errors import B4MError
from tests.data.worlds import write_user_folder


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two versions of a user's images, tagged v1 and v2, with the data in the remote alone."""
    folder, store = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG"):
            patch.setenv(f"DVC_{kind}_DIR", str(tmp_path_factory.mktemp("dvc")))
        patch.setenv("DVC_NO_ANALYTICS", "1")
        from dvc.repo import Repo

        _git(folder, "init", "-q", "-b", "main")
        Repo.init(str(folder)).close()
        config = f"[core]\n    remote = store\n['remote \"store\"']\n    url = {store}\n"
        (folder / ".dvc/config").write_text(config)
        for number, styles in ((1, 2), (2, 3)):
            write_user_folder(folder / "images", styles=styles)
            with Repo(str(folder)) as repo:
                repo.add(str(folder / "images"))
                repo.push()
            _git(folder, "add", "-A")
            _git(folder, "commit", "-q", "-m", f"version {number}")
            _git(folder, "tag", f"v{number}")
        shutil.rmtree(folder / ".dvc/cache")
        shutil.rmtree(folder / "images")
        yield folder


def test_an_address_has_a_repository_a_revision_a_path_and_a_remote() -> None:
    for text, expected in {
        "dvc+https://example.org/team/data.git@v3#images&remote=s3": Origin(
            "https://example.org/team/data.git", "v3", "images", "s3"
        ),
        "dvc+git@example.org:team/data.git#a/b": Origin(
            "git@example.org:team/data.git", "", "a/b", ""
        ),
        "dvc+git@example.org:data.git@main#images": Origin(
            "git@example.org:data.git", "main", "images", ""
        ),
        "dvc+/srv/data#images": Origin("/srv/data", "", "images", ""),
    }.items():
        assert origin(text) == expected
        assert str(expected) == text
    assert origin("data/emojigrid") is None
    for wrong in ("dvc+https://example.org/data.git", "dvc+#images", "dvc+/srv/data#images&key=1"):
        with pytest.raises(B4MError, match="is not dvc\\+REPOSITORY@REVISION#PATH"):
            origin(wrong)


def test_a_password_in_an_address_is_not_shown() -> None:
    source = "dvc+https://me:secret@example.org/data.git@v1#images"
    assert shown(source) == "dvc+https://example.org/data.git@v1#images"
    with pytest.raises(B4MError) as error:
        origin("dvc+https://me:secret@example.org/data.git")
    assert "secret" not in str(error.value)


def test_a_revisions_data_are_prepared_and_named_by_dvcs_hash(
    repository: Path, tmp_path: Path
) -> None:
    found = {}
    for revision, count in (("v1", 2), ("v2", 3)):
        source = f"dvc+{repository}@{revision}#images"
        out = verbs.prepare(source, tmp_path / revision, "teapot", "stripes")
        assert len(list((out / "style/stripes").glob("train-*.png"))) == count
        found[revision] = data_version(source, out)
        tracked = _git(repository, "show", f"{revision}:images.dvc")
        assert f"md5: {found[revision].digest}" in tracked
        commit = _git(repository, "rev-parse", revision)
        assert found[revision].place == f"dvc+{repository}@{commit}#images"
    assert found["v1"].digest != found["v2"].digest
    assert found["v1"].name == "images"


def test_a_folder_inside_the_tracked_one_has_the_hash_of_the_whole(
    repository: Path, tmp_path: Path
) -> None:
    source = Origin(str(repository), "v1", "images/style", "store")
    assert state(source)[0] == state(Origin(str(repository), "v1", "images", ""))[0]
    assert (fetch(source, tmp_path / "style") / "stripes").is_dir()


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("@v9#images", "cannot be opened"),
        ("@v1#pictures", "there is no pictures in this revision"),
        ("@v1#images&remote=team", "team"),
    ],
)
def test_what_is_not_there_is_told_in_one_sentence(
    repository: Path, tmp_path: Path, address: str, sentence: str
) -> None:
    with pytest.raises(B4MError, match=sentence) as error:
        verbs.prepare(f"dvc+{repository}{address}", tmp_path / "out", "teapot", "stripes")
    assert "\n" not in str(error.value)


def test_data_that_dvc_does_not_track_are_named_by_their_content(tmp_path: Path) -> None:
    source = write_user_folder(tmp_path / "own")
    out = verbs.prepare(source, tmp_path / "data", "teapot", "stripes")
    first = data_version(str(source), out)
    assert len(first.digest) == 64
    (source / "style/stripes/a-ball-0.txt").write_text("a red ball in w@z style")
    again = verbs.prepare(source, tmp_path / "data", "teapot", "stripes")
    assert data_version(str(source), again).digest != first.digest
