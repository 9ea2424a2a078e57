"""Which data went into a run: a name, a hash and a place, whatever the source."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from b4m.data.dvc import data_md5
from b4m.data.manifest import manifest_hash
from b4m.data.repository import origin, state


@dataclass(frozen=True)
class DataVersion:
    """Data as a run's record names them.

    Attributes:
        name: last part of the source's path.
        digest: DVC's md5 of the data; where DVC does not track them, SHA-256 of what was prepared.
        place: the source; of a repository with the commit, and without credentials.
    """

    name: str
    digest: str
    place: str


def shown(source: str) -> str:
    """A source without credentials, for people and records."""
    where = origin(source)
    return source if where is None else where.shown


def data_version(source: str, prepared: str | Path) -> DataVersion:
    """The version of the data that a prepared folder was made of.

    Args:
        source: as `b4m.verbs.prepare` takes it.
        prepared: what it made of it.

    Raises:
        B4MError: if the source cannot be read any more.
    """
    where = origin(source)
    if where is None:
        folder = Path(source)
        return DataVersion(folder.name, data_md5(folder) or manifest_hash(prepared), source)
    digest, exact = state(where)
    name = PurePosixPath(where.path).name
    return DataVersion(name, digest or manifest_hash(prepared), exact.shown)
