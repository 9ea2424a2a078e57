"""Where verbs find and put things: the working folder, the base, the form of a written file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from b4m.errors import B4MError
from b4m.settings import Dtype, Settings

if TYPE_CHECKING:
    from b4m.bases.base import Base

Values = Mapping[str, object] | None
"""Settings by name; text, as a command line gives it, is converted."""


def work_folder() -> Path:
    """Caches, checkpoints and finished adapters; shared by all runs of a checkout or a volume."""
    return Path(os.environ.get("B4M_WORK", "runs/work"))


def load(base: str, settings: Settings) -> "Base":
    """The base, in the precision that the settings ask for; loaded once per process."""
    from b4m.bases import shared_base

    return shared_base(base, getattr(settings, "precision", "auto"))


def check_dtype(dtype: str) -> None:
    """Refuse an unknown dtype before the work whose result would be written in it."""
    if dtype not in get_args(Dtype):
        raise B4MError(f"dtype {dtype!r} is unknown; choose one of {', '.join(get_args(Dtype))}")


def check_share(name: str, value: float) -> None:
    """Refuse what is no share above 0.

    Raises:
        B4MError: naming it.
    """
    if not 0 < value <= 1:
        raise B4MError(f"{name} {value} must be above 0 and at most 1")


def copy_as(finished: Path, out: Path, dtype: str) -> Path:
    """Copy an adapter of the working folder to `out`, with weights of this dtype."""
    from b4m.files import read_adapter, write_adapter
    from b4m.io import copy_whole

    if dtype == "float32":
        return copy_whole(finished, out)
    return write_adapter(out, read_adapter(finished), dtype=dtype)
