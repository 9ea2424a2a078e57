"""Checkpoints: everything that decides the rest of a run, in one file that is whole or absent.

That is the learnable parameters and their averages, the optimizers' states, the loss scale of
float16, the best weights of a judged training and the number of finished steps. Order and noise
derive from the seed and the step (`b4m.training.randomness`), the learning rate from the step
(`b4m.training.schedule`), so neither generators nor schedulers need storing. The fingerprint that
tells runs apart holds the code too (`b4m.training.key`): an adapter half trained by one version and
half by another would be of neither.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from b4m.errors import B4MError
from b4m.io import replacing

_FORMAT = 3


def checkpoint_path(workdir: Path, fingerprint: str) -> Path:
    """Where a run that is told apart by `fingerprint` keeps its checkpoint."""
    return workdir / f"checkpoint-{fingerprint[:16]}.pt"


def write_checkpoint(path: Path, fingerprint: str, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint atomically: a kill at any moment leaves the old or the new one.

    Args:
        path: the file.
        fingerprint: of the run.
        state: "step" and whatever else a resumed run needs; tensors on the CPU, plain numbers.

    Raises:
        B4MError: if the disk does not take it.
    """
    content = {"format": _FORMAT, "fingerprint": fingerprint, **state}
    with replacing(path) as partial:
        try:
            torch.save(content, partial)
        except RuntimeError as error:  # what torch makes of any failure of the disk
            raise B4MError(f"{path} cannot be written; is the disk full?") from error


def read_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The checkpoint of this very run, or None if there is none.

    Raises:
        B4MError: if the file is there but cannot be read.
    """
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise B4MError(f"checkpoint {path} cannot be read; delete it to start anew") from error
    if content.get("format") != _FORMAT or content.get("fingerprint") != fingerprint:
        return None
    return content


def remove_checkpoint(path: Path) -> None:
    """Remove a finished run's checkpoint and what killed writers left of it."""
    path.unlink(missing_ok=True)
    for partial in path.parent.glob(f".{path.name}.*.partial"):
        partial.unlink(missing_ok=True)
