"""The weights of a base model by the layers of an adapter, read one at a time.

What the file of a base calls a layer may differ from what an adapter calls it: one linear of the
original code may be several of diffusers'. Both are looked up under either name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from b4m.bases.family import Family
from b4m.bases.named import NamedFamily, Whole, split
from b4m.bases.recognition import recognise
from b4m.errors import B4MError
from b4m.files.tensors import Contents

_DENOISER = "model.diffusion_model."  # in a checkpoint of all networks
_FOLDERS = ("unet", "transformer")


@dataclass(frozen=True)
class Weight:
    """A matrix or convolution of a checkpoint.

    Attributes:
        stem: its name without ".weight".
        shape: as stored; outputs, inputs, kernel.
        contents: the file that holds it.
    """

    stem: str
    shape: tuple[int, ...]
    contents: Contents

    @property
    def kernel(self) -> tuple[int, ...]:
        """Of a convolution; () of a linear."""
        return self.shape[2:]

    def tensor(self) -> Tensor:
        """The matrix, outputs x inputs * kernel, in float32."""
        return self.contents.tensor(f"{self.stem}.weight").float().flatten(1)


class Checkpoint:
    """The denoiser's weights of a base: a file of any naming, or a diffusers folder.

    Attributes:
        path: as given.
        weights: every matrix and convolution by its name.
        others: digest of every other tensor of the denoiser.
        family: of the names.

    Raises:
        B4MError: if there is no such base, or no matrix in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights: dict[str, Weight] = {}
        self.others: dict[str, bytes] = {}
        files = [Contents(file) for file in _files(path)]
        whole = any(name.startswith(_DENOISER) for file in files for name in file.tensors)
        for contents in files:
            for name, (shape, _) in contents.tensors.items():
                if whole and not name.startswith(_DENOISER):
                    continue
                stem = name.removesuffix(".weight")
                if name.endswith(".weight") and len(shape) >= 2:
                    self.weights[stem] = Weight(stem, shape, contents)
                else:
                    self.others[name] = contents.digest(name)
        if not self.weights:
            raise B4MError(f"{path} holds no weights of linear layers")
        sizes = {s: (w.shape[0], math.prod(w.shape[1:])) for s, w in self.weights.items()}
        self.family = recognise(sizes)[0]
        self._places = dict(self._named(self.family))

    def matrix(self, address: tuple[str, str], family: Family) -> Tensor | None:
        """The weights of an adapter's layer, outputs x inputs * kernel; None if it is not there.

        Args:
            address: network and module path in the family.
            family: of the adapter.
        """
        if not isinstance(family, NamedFamily):
            found = self._places.get(".".join(address))
            return found.tensor() if found else None
        path = split(address[1])[1]
        if path in self._places:
            return self._places[path].tensor()
        whole = family.wholes.get(path)
        if whole is None:
            return None
        part = whole.part(path)
        return self._joined(whole) if part is None else self._rows(whole, part)

    def _joined(self, whole: Whole) -> Tensor | None:
        """A linear of the original code, of diffusers' parts."""
        if not all(part in self._places for part in whole.parts):
            return None
        rows = torch.cat([self._places[part].tensor() for part in whole.parts])
        return _swapped(rows, whole)

    def _rows(self, whole: Whole, part: str) -> Tensor | None:
        """A linear of diffusers', of the original code's."""
        if whole.original not in self._places:
            return None
        matrix = _swapped(self._places[whole.original].tensor(), whole)
        if len(whole.parts) == 1:
            return matrix
        unit = len(matrix) // sum(whole.heights)
        pieces = matrix.split([unit * height for height in whole.heights])
        return pieces[whole.parts.index(part)]

    def _named(self, family: Family) -> Iterator[tuple[str, Weight]]:
        for stem, weight in self.weights.items():
            address = family.address(stem)
            if isinstance(family, NamedFamily):
                path = split(stem)[1]
                yield path, weight
                yield path.replace(".", "_"), weight
            elif address is not None:
                yield f"{address[0]}.{address[1]}", weight


def _swapped(matrix: Tensor, whole: Whole) -> Tensor:
    """Scale and shift in the other order, where the original code and diffusers differ in it."""
    if not whole.swapped or len(matrix) != 2 * matrix.shape[1]:
        return matrix
    return torch.cat(matrix.chunk(2)[::-1])


def _files(path: Path) -> list[Path]:
    """The safetensors files of a base's denoiser."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise B4MError(f"{path} is not a .safetensors file; convert it, pickles can run code")
        return [path]
    folder = next((path / name for name in _FOLDERS if (path / name).is_dir()), path)
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise B4MError(f"{path} holds no .safetensors weights; give a checkpoint or its folder")
    return found
