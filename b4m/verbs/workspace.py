"""Where verbs find and put things: the working folder, the base, whole copies."""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from b4m.bases.sdxl.load import Base

Settings = Mapping[str, object] | None


def work_folder() -> Path:
    """Caches, checkpoints and finished adapters; shared by all runs of a checkout or a volume."""
    return Path(os.environ.get("B4M_WORK", "runs/work"))


def loaded(base: str, given: Mapping[str, object]) -> "Base":
    """The base, in the precision that the settings ask for; loaded once per process."""
    from b4m.bases.sdxl.load import shared_base

    return shared_base(base, str(given.get("precision", "auto")))


def parameters_of(base: str) -> int:
    """Size of the base's UNet from its weights' size on disk; 0, which means SDXL, if not there."""
    files = list((Path(base) / "unet").glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) // 2


def copy_whole(file: Path, out: Path) -> None:
    """Copy a file so that `out` is whole or not there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.copyfile(file, partial)
    os.replace(partial, out)


def sha256_of(file: Path) -> str:
    """Hash of a file, in hexadecimal."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
