"""Checkpoints: everything that decides the rest of a run, in one file that is whole or absent.

That is the learnable parameters and their averages, the optimizers' states, the loss scale of
float16 and the number of finished steps. Order and noise derive from the seed and the step
(`b4m.train.randomness`), the learning rate from the step (`b4m.train.schedule`), so neither
generators nor schedulers need storing. A checkpoint is resumed by the code that wrote it alone: an
adapter half trained by one version and half by another would be of neither.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from b4m.errors import B4MError

_FORMAT = 2
_NO_MATTER = {"cli.py", "evaluate", "report", "tracking.py"}  # come after training, or beside it


@lru_cache(maxsize=1)
def code_hash() -> str:
    """SHA-256 over the library's source, as far as it can decide a result, and torch's version."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256(torch.__version__.encode())
    for file in sorted(root.rglob("*.py")):
        name = file.relative_to(root)
        if name.parts[0] not in _NO_MATTER:
            digest.update(f"{name.as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def checkpoint_path(workdir: Path, fingerprint: str) -> Path:
    """Where a run that is told apart by `fingerprint` keeps its checkpoint."""
    return workdir / f"checkpoint-{fingerprint[:16]}.pt"


def write_checkpoint(
    path: Path,
    fingerprint: str,
    step: int,
    parameters: Mapping[str, Tensor],
    optimizers: list[dict[str, Any]],
    scaler: dict[str, Any],
    averages: Mapping[str, Tensor],
) -> None:
    """Replace the checkpoint atomically: a kill at any moment leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    content = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "code": code_hash(),
        "step": step,
        "parameters": {name: value.detach().cpu() for name, value in parameters.items()},
        "averages": {name: value.detach().cpu() for name, value in averages.items()},
        "optimizers": optimizers,
        "scaler": scaler,
    }
    with partial.open("wb") as stream:
        torch.save(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def read_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The checkpoint of this very run and code, or None if there is none.

    Raises:
        B4MError: if the file is there but cannot be read.
    """
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise B4MError(f"checkpoint {path} cannot be read; delete it to start anew") from error
    if content.get("fingerprint") != fingerprint:
        return None
    if content.get("format") != _FORMAT or content.get("code") != code_hash():
        logging.getLogger(__name__).warning(
            "checkpoint %s is of another version of b4m or torch: training starts anew", path
        )
        return None
    return content


def remove_checkpoint(path: Path) -> None:
    """Remove a finished run's checkpoint and what killed writers left of it."""
    path.unlink(missing_ok=True)
    for partial in path.parent.glob(f"{path.stem}.*.partial"):
        partial.unlink(missing_ok=True)
