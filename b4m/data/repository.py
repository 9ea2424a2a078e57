"""Data of a Git repository that DVC tracks, at a revision: how images reach a machine without them.

An address names repository, revision, path and, if it is not the default, the DVC remote:

    dvc+https://git.example.org/team/data.git@v3#images&remote=s3

Without a revision it is the default branch. Git and DVC find credentials where they always do.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl

from b4m.errors import B4MError
from b4m.extras import needs

_SCHEME = "dvc+"
_OURS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")
"""Of an S3 remote: B4M_NAME stands in where NAME is not set. A cluster's tasks get the former,
because Kubeflow's launcher in the same container reads the latter for its own store."""
_USER = re.compile(r"(?<=://)[^/@]+@")


@dataclass(frozen=True)
class Origin:
    """Where data are.

    Attributes:
        repository: address or path of a Git repository.
        revision: commit, tag or branch; "" for the default branch.
        path: of a file or folder in it.
        remote: DVC's remote; "" for the repository's default.
    """

    repository: str
    revision: str
    path: str
    remote: str

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        remote = f"&remote={self.remote}" if self.remote else ""
        return f"{_SCHEME}{self.repository}{revision}#{self.path}{remote}"

    @property
    def shown(self) -> str:
        """The address without a user's name and password."""
        return without_credentials(str(self))


def without_credentials(text: str) -> str:
    """A text whose addresses have lost user and password."""
    return _USER.sub("", text)


def origin(source: str) -> Origin | None:
    """The parts of an address; None for what is no address but a path.

    Raises:
        B4MError: for an address without a repository or a path.
    """
    if not source.startswith(_SCHEME):
        return None
    place, _, fragment = source.removeprefix(_SCHEME).partition("#")
    path, *options = fragment.split("&")
    known = dict(parse_qsl("&".join(options)))
    last = place.rsplit("/", 1)[-1]
    repository, at, revision = place.rpartition("@") if "@" in last else (place, "", "")
    if ":" in revision:  # git@host:repository.git
        repository, revision = place, ""
    if not repository or not path or set(known) - {"remote"}:
        raise B4MError(
            f"{without_credentials(source)} is not dvc+REPOSITORY@REVISION#PATH or "
            "dvc+REPOSITORY@REVISION#PATH&remote=NAME"
        )
    return Origin(repository, revision, path, known.get("remote", ""))


def fetch(source: Origin, out: Path) -> Path:
    """Download a file or folder.

    Args:
        source: where it is.
        out: place to write, which must not be there yet.

    Returns:
        `out`.

    Raises:
        B4MError: if repository, revision or path are not there, or the remote does not answer.
    """
    files = _files(source)
    try:
        files.get(source.path, str(out), recursive=True)
    except Exception as error:  # whatever DVC and its remotes raise
        raise B4MError(f"{source.shown} cannot be fetched: {_reason(error)}") from error
    return out


def state(source: Origin) -> tuple[str, Origin]:
    """DVC's md5 of the data, and their address with the commit in the revision's place.

    The md5 is that of the tracked folder around it if the path itself has none; "" for files that
    Git alone tracks.

    Raises:
        B4MError: as `fetch`.
    """
    files = _files(source)
    path = PurePosixPath(source.path)
    hashes = [_md5(files, str(one)) for one in (path, *path.parents[:-1])]
    commit = str(files.repo.get_rev() or source.revision)
    return next(filter(None, hashes), ""), Origin(
        source.repository, commit, source.path, source.remote
    )


def _files(source: Origin) -> Any:
    with needs("data", "data of a repository"):
        from dvc.api import DVCFileSystem

    for name in _OURS:
        if os.environ.get(f"B4M_{name}"):
            os.environ.setdefault(name, os.environ[f"B4M_{name}"])
    try:
        files = DVCFileSystem(
            url=source.repository, rev=source.revision or None, remote=source.remote or None
        )
        files.info(source.path)
    except FileNotFoundError:
        raise B4MError(f"{source.shown}: there is no {source.path} in this revision") from None
    except Exception as error:  # whatever DVC and Git raise
        raise B4MError(f"{source.shown} cannot be opened: {_reason(error)}") from error
    return files


def _md5(files: Any, path: str) -> str:
    return str(files.info(path).get("dvc_info", {}).get("md5") or "")


def _reason(error: Exception) -> str:
    """One line, without credentials."""
    first = str(error).strip().splitlines()[:1] or [type(error).__name__]
    return without_credentials(first[0])
