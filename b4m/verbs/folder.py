"""A comparison's folder: what it compares, and where things lie in it."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from b4m.errors import B4MError
from b4m.io import read_json
from b4m.plan import Comparison, plan

LOCK = "comparison.json"


@dataclass(frozen=True)
class Folder:
    """A comparison that was begun.

    Attributes:
        path: its folder.
        spec: all that decides it, as JSON values.
    """

    path: Path
    spec: dict[str, Any]

    @property
    def comparison(self) -> Comparison:
        """What is compared."""
        values = self.spec["comparison"]
        lists: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return Comparison(**lists)

    @property
    def samples(self) -> list[Path]:
        """The folders of images of all complete pairs, in the plan's order.

        Raises:
            B4MError: if no pair is complete.
        """
        jobs = plan(self.comparison).samples
        folders = {job: self.path / "samples" / job.key for job in jobs}
        missing = {(job.content, job.style) for job in jobs if not folders[job].exists()}
        there = [folders[job] for job in jobs if (job.content, job.style) not in missing]
        if not there:
            raise B4MError(f"{self.path} has no pair with all its images; run b4m compare further")
        return there

    @property
    def numbers(self) -> dict[str, int]:
        """How many numbers the adapter files of each row hold, of its first pair that has them."""
        found: dict[str, int] = {}
        for job in plan(self.comparison).samples:
            files = [self.path / "adapters" / f"{key}.safetensors" for key in job.adapters]
            if files and job.label not in found and all(file.is_file() for file in files):
                found[job.label] = sum(map(_numbers_in, files))
        return found


def _numbers_in(file: Path) -> int:
    """Numbers in the tensors of a safetensors file, from its header alone."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return sum(prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")


def open_folder(path: Path) -> Folder:
    """The comparison of a folder.

    Raises:
        B4MError: if it is no comparison's.
    """
    file = path / LOCK
    if not file.is_file():
        raise B4MError(
            f"{path} is no folder of b4m compare; for images alone give --scores, --data and --out"
        )
    return Folder(path, read_json(file, "give the folder of a comparison"))
