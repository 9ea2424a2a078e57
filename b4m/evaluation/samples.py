"""The format of generated images on disk: folders with samples.csv and images/."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from b4m.data.manifest import read_table
from b4m.errors import B4MError
from b4m.io import check_output, replacing_folder, write_whole

COLUMNS = (
    "file",
    "label",
    "method",
    "content",
    "style",
    "prompt",
    "seed",
    "steps",
    "guidance",
    "base_id",
    "base_hash",
    "adapter_hash",
)


@dataclass(frozen=True)
class Sample:
    """One row of samples.csv."""

    folder: Path
    file: str
    label: str
    """Row name in the report: "base", "content only", "direct", "b4m", ..."""
    method: str
    content: str
    style: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    base_id: str
    base_hash: str
    adapter_hash: str

    @property
    def path(self) -> Path:
        """Where the image is."""
        return self.folder / self.file

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What identifies an image: label, content, style, prompt, seed."""
        return self.label, self.content, self.style, self.prompt, self.seed


def read_samples(folders: Sequence[Path]) -> list[Sample]:
    """All samples of the folders, in their order.

    Raises:
        B4MError: for a missing or malformed samples.csv, a missing image, or two images with
            the same label, pair, prompt and seed, which would count one of them twice.
    """
    if not folders:
        raise B4MError("no samples folder was given")
    samples = [sample for folder in folders for sample in _read_folder(Path(folder))]
    seen: dict[tuple[str, str, str, str, int], Path] = {}
    for sample in samples:
        if sample.key in seen:
            raise B4MError(
                f"{sample.path} and {seen[sample.key]} have the same label {sample.label!r}, "
                f"pair, prompt and seed {sample.seed}; give one of them another --label"
            )
        seen[sample.key] = sample.path
    return samples


def _read_folder(folder: Path) -> list[Sample]:
    table = folder / "samples.csv"
    if not table.is_file():
        raise B4MError(f"{folder} has no samples.csv; is it an output of b4m sample?")
    lines = read_table(table, COLUMNS, "generate the samples again")
    samples = [_parse(folder, number, row) for number, row in lines]
    if not samples:
        raise B4MError(f"{table} lists no image")
    return samples


def _parse(folder: Path, number: int, row: dict[str, str]) -> Sample:
    where = f"{folder / 'samples.csv'} line {number}"
    texts = {name: row[name] or "" for name in COLUMNS}
    try:
        seed, steps = int(texts.pop("seed")), int(texts.pop("steps"))
        guidance = float(texts.pop("guidance"))
    except ValueError as error:
        raise B4MError(f"{where}: seed, steps and guidance must be numbers: {error}") from None
    texts["label"] = texts["label"] or texts["method"]
    if not texts["label"]:
        raise B4MError(f"{where}: neither label nor method says what this image is")
    if not os.path.isfile(folder / texts["file"]):
        raise B4MError(f"{where}: the image {texts['file']!r} is missing")
    return Sample(folder=folder, seed=seed, steps=steps, guidance=guidance, **texts)


def check_samples_place(out: Path) -> None:
    """Refuse a place where no samples can be written, before they are generated.

    Raises:
        B4MError: if `out` cannot be written, or holds something else.
    """
    check_output(out, folder=True)
    if out.exists() and not (out / "samples.csv").exists() and any(out.iterdir()):
        raise B4MError(f"{out} exists and holds no samples; give another folder")


def write_samples(
    out: Path,
    rows: Sequence[Mapping[str, object]],
    images: Sequence[Any],
    adapters: Mapping[str, object],
) -> Path:
    """Write a samples folder whole or not at all; an earlier one at `out` is replaced.

    Args:
        out: folder to write.
        rows: values of `COLUMNS` without the file, one per image.
        images: PIL images.
        adapters: metadata of the adapters, by `adapter_hash`.

    Raises:
        B4MError: if `out` holds something else.
    """
    check_samples_place(out)
    with replacing_folder(out) as partial:
        (partial / "images").mkdir()
        with (partial / "samples.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for number, (row, image) in enumerate(zip(rows, images, strict=True)):
                file = f"images/{number:03d}-s{row['seed']}.png"
                image.save(partial / file)
                writer.writerow({"file": file, **row})
        write_whole(partial / "adapters.json", json.dumps(adapters, indent=1) + "\n")
    return out
