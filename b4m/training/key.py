"""Keys: a hash of everything that decides a result, its code included.

Finished adapters and unfinished checkpoints share them, so what was trained once is not trained
again, and what another version of the code began is not gone on with.
"""

import hashlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
    digest.update(_code().encode())
    return digest.hexdigest()


def cache_path(work: Path, digest: str) -> Path:
    """Where the adapter with this key lies, or will lie."""
    return work / "adapters" / f"{digest[:24]}.safetensors"


@cache
def _code() -> str:
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for room in _ROOMS:
        for file in sorted((root / room).rglob("*.py")):
            digest.update(sha256(file).encode())
    for package in _PACKAGES:
        digest.update(f"{package}{_version(package)}".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _plain(value: object) -> object:
    return value.model_dump() if isinstance(value, Settings) else str(value)
