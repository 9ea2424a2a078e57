"""safetensors files, tensor by tensor: read without mapping them into memory, written as they come.

The library's own reader maps a file, so that another program that shortens it ends this one, and
all that was read counts as memory in use; its writer needs all tensors at once. A file is eight
bytes of length, a table in JSON, and the tensors' bytes without gaps.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from b4m.errors import B4MError
from b4m.io import replacing

_log = logging.getLogger(__name__)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_SLOW = 1 << 28  # bytes from which on a bar shows how far the writing is


class Contents:
    """A safetensors file: its header and the shapes of its tensors, whose numbers are read later.

    The file stays open: what another program puts in its place is not mixed with what was read.

    Attributes:
        path: the file.
        header: as it stands in the file.
        tensors: shape and number format ("F32") by name.

    Raises:
        B4MError: if it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
            with safe_open(path, framework="pt") as checked:  # all that the format demands
                names = set(checked.keys())
            self._start = 8 + int.from_bytes(os.pread(self._file, 8, 0), "little")
            table: dict[str, Any] = json.loads(os.pread(self._file, self._start - 8, 8))
            self.header: dict[str, str] = dict(table.pop("__metadata__", None) or {})
            self.tensors = {n: (tuple(e["shape"]), str(e["dtype"])) for n, e in table.items()}
            self._places = {name: entry["data_offsets"] for name, entry in table.items()}
            if names != table.keys():
                raise ValueError("its table cannot be told for sure")
        except (SafetensorError, OSError, ValueError) as error:
            raise B4MError(f"{path} is damaged or not a safetensors file ({error})") from None

    def tensor(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            B4MError: for a number format that is not known, or a file that was cut since.
        """
        shape, form = self.tensors[name]
        if form not in _DTYPES:
            raise B4MError(f"{self.path}: {name} is stored as {form}, which is not read")
        return self._bytes(name).view(_DTYPES[form]).reshape(shape)

    def digest(self, name: str) -> bytes:
        """A hash of a tensor's bytes."""
        return hashlib.sha256(_buffer(self._bytes(name))).digest()

    def _bytes(self, name: str) -> Tensor:
        start, stop = self._places[name]
        data, done = torch.empty(stop - start, dtype=torch.uint8), 0
        while done < len(data):  # one call reads 2 GiB at most
            got = os.preadv(self._file, [_buffer(data[done:])], self._start + start + done)
            if not got:
                raise B4MError(f"{self.path} was cut while it was read; make or copy it again")
            done += got
        return data


def _buffer(tensor: Tensor) -> Any:
    """A tensor's memory."""
    return tensor.numpy()


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite; one sum tells it of almost all tensors."""
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


@dataclass(frozen=True)
class Entry:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(
    path: Path, header: Mapping[str, str], entries: Sequence[Entry], tensors: Iterable[Tensor]
) -> Path:
    """Write tensors as they come; a kill at any moment leaves the old file or the new one.

    The bytes depend on the contents alone.

    Args:
        path: file to write.
        header: its metadata.
        entries: what will come, in this order; wider number formats before narrower ones.
        tensors: what comes.

    Raises:
        B4MError: if the file cannot be written, or the disk has no room for it.
    """
    table: dict[str, Any] = {"__metadata__": dict(sorted(header.items()))}
    place = 0
    for entry in entries:
        offsets = [place, place + entry.bytes]
        place = offsets[1]
        form = _NAMES[entry.dtype]
        table[entry.name] = {"dtype": form, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensor data starts at a multiple of eight
    with replacing(path) as partial, partial.open("wb") as stream:
        free = shutil.disk_usage(partial).free
        if free < len(text) + place:
            raise B4MError(
                f"{path} needs {place / 1e6:.0f} MB and its disk has {free / 1e6:.0f} MB left; "
                "make room"
            )
        stream.write(len(text).to_bytes(8, "little") + text)
        bar = tqdm(tensors, path.name, len(entries), unit="tensor", disable=place < _SLOW)
        for entry, tensor in zip(entries, bar, strict=True):
            if (tuple(tensor.shape), tensor.dtype) != (entry.shape, entry.dtype):
                raise AssertionError(f"{entry} comes as {tuple(tensor.shape)} {tensor.dtype}")
            stream.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    _log.info("wrote %s", path)
    return path
