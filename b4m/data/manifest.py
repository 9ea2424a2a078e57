"""The manifest of a prepared folder: one line per picture and use, in manifest.csv.

file        path below the folder
kind        content | style | truth
concept     name of the content or style; of a truth "content+style"
caption     what training or the prompt says, trigger included
trigger     the trigger word of the concept (of a truth both, separated by a space)
class_word  what the trigger stands for ("animal"; for a style its description)
role        train | reference (held back from training, to compare with) | partner (shown to the
other kind's training as multi-correspondence)
alignment   of a truth: exact (the same drawing, rendered so) | meaning (the same thing, drawn by
another hand); empty elsewhere
licence, source
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from b4m.data.captions import check_trigger
from b4m.data.names import canonical, check_name
from b4m.errors import B4MError
from b4m.io import read_text, sha256

MANIFEST = "manifest.csv"
KINDS = ("content", "style", "truth")
ROLES = ("train", "reference", "partner")
ALIGNMENTS = ("", "exact", "meaning")


@dataclass(frozen=True)
class ManifestRow:
    """One line of the manifest; see the module for the meanings."""

    file: str
    kind: str
    concept: str
    caption: str
    trigger: str
    class_word: str
    role: str
    licence: str
    source: str
    alignment: str = ""


COLUMNS = tuple(f.name for f in fields(ManifestRow))


def read_manifest(folder: Path) -> list[ManifestRow]:
    """All lines of a prepared folder's manifest, checked.

    Raises:
        B4MError: naming the line, for a missing manifest, column or file, an unknown kind or role,
            a caption without its trigger, or no line at all.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise B4MError(f"{folder} has no {MANIFEST}; make the folder with `b4m prepare`")
    rows = [
        _row(path, number, line)
        for number, line in read_table(path, COLUMNS[:-1], "prepare the data again")
    ]
    if not rows:
        raise B4MError(f"{path} lists no picture; prepare the data again")
    return rows


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a manifest as `write_manifest` writes it, and may be replaced."""
    file = folder / MANIFEST
    return file.is_file() and read_text(file).startswith(",".join(COLUMNS[:-1]))


def read_table(
    path: Path, columns: Iterable[str], advice: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and values of each line of a CSV file that people may have edited.

    Args:
        path: the file.
        columns: that it must have.
        advice: what to do if one is missing.

    Raises:
        B4MError: for a file that is no UTF-8 text or no CSV, or lacks one of the columns.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="", strict=True)
    try:
        missing = [name for name in columns if name not in (reader.fieldnames or [])]
        if missing:
            raise B4MError(f"{path} lacks the columns {', '.join(missing)}; {advice}")
        for line in reader:
            yield reader.line_num, line
    except csv.Error as error:
        raise B4MError(f"{path}, line {reader.line_num}: {error}; mend the line") from None


def write_manifest(folder: Path, rows: Iterable[ManifestRow]) -> Path:
    """Write the manifest of `folder` and return its path."""
    path = folder / MANIFEST
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return path


def training_rows(rows: Sequence[ManifestRow], kind: str, concept: str) -> list[ManifestRow]:
    """The pictures that the concept of this kind is trained on.

    Raises:
        B4MError: if there is no such concept, naming those there are.
    """
    wanted = (kind, "train", canonical(concept))
    selected = [row for row in rows if (row.kind, row.role, row.concept) == wanted]
    if not selected:
        names = sorted({r.concept for r in rows if r.kind == kind and r.role == "train"})
        known = ", ".join(names) or "none"
        raise B4MError(f"the data has no {kind} {concept!r} to train on; it has: {known}")
    return selected


def partner_rows(rows: Sequence[ManifestRow], kind: str) -> list[ManifestRow]:
    """The partners of a concept of this kind: pictures of the other kind held for that."""
    other = "style" if kind == "content" else "content"
    return [row for row in rows if row.kind == other and row.role == "partner"]


def manifest_hash(folder: str | Path) -> str:
    """Hash of all that a prepared folder holds: pictures, captions and their uses."""
    rows = read_manifest(Path(folder))
    uses = [(row.kind, row.concept, row.role) for row in rows]
    content = f"{data_hash(Path(folder), rows)} {uses}"
    return hashlib.sha256(content.encode()).hexdigest()


def data_hash(folder: Path, rows: Iterable[ManifestRow]) -> str:
    """SHA-256 over the pictures' bytes and captions, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(bytes.fromhex(sha256(folder / row.file)))
        digest.update(hashlib.sha256(row.caption.encode()).digest())
    return digest.hexdigest()


def _row(path: Path, number: int, line: dict[str, str]) -> ManifestRow:
    where = f"{path}, line {number}"
    values = {name: line.get(name, "").strip() for name in COLUMNS}
    row = ManifestRow(**{**values, "concept": canonical(values["concept"])})
    for name, value, allowed in (
        ("kind", row.kind, KINDS),
        ("role", row.role, ROLES),
        ("alignment", row.alignment, ALIGNMENTS),
    ):
        if value not in allowed:
            raise B4MError(
                f"{where}: {name} {value!r} is none of {', '.join(filter(None, allowed))}"
            )
    check_name(row.concept, f"{where}: concept", 255)
    file, folder = os.path.realpath(path.parent / row.file), os.path.realpath(path.parent)
    if not row.file or not file.startswith(f"{folder}/") or not os.path.isfile(file):
        raise B4MError(f"{where}: the picture {row.file!r} is not in the folder")
    check_trigger(row.caption, row.trigger, f"{where} ({row.file})")
    return row
