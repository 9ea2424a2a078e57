"""Keys: a hash of everything that decides a result, its code included.

Finished adapters and unfinished checkpoints share them, so what was trained once is not trained
again, and what another version of the code began is not gone on with.
"""

import hashlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from b4m.bases import FAMILIES
from b4m.errors import B4MError
from b4m.io import sha256
from b4m.settings import Settings

_ROOMS = ("adapters", "bases", "data", "files", "merging", "methods", "training")
_PACKAGES = ("torch", "diffusers", "transformers")


def key(*parts: object) -> str:
    """SHA-256 over the parts, the library's code and the versions of what it computes with.

    Args:
        parts: texts, numbers, settings, and lists or dictionaries of them.
    """
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode())
    digest.update(_code(*FAMILIES.values()).encode())
    return digest.hexdigest()


def cache_path(work: Path, digest: str) -> Path:
    """Where the adapter with this key lies, or will lie."""
    return work / "adapters" / f"{digest[:24]}.safetensors"


@cache
def _code(*families: str) -> str:
    """Hash of the library's rooms, of families of bases that live outside it, and of packages."""
    root = Path(__file__).parent.parent
    folders = [root / room for room in _ROOMS]
    folders += [place for name in families if root not in (place := _folder(name)).parents]
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            digest.update(sha256(file).encode())
    for package in _PACKAGES:
        digest.update(f"{package}{_version(package)}".encode())
    return digest.hexdigest()


def _folder(package: str) -> Path:
    spec = find_spec(package)
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise B4MError(f"family of bases {package}: no such package; install it")
    return Path(places[0])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _plain(value: object) -> object:
    return value.model_dump() if isinstance(value, Settings) else str(value)
