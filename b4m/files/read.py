"""Read the adapter files of every tool, of every base, strictly.

An adapter is one safetensors file that stands alone: pairs by layer, alpha folded into up
(up <- alpha / rank up), and a header that says what it is. Reading refuses what it does not fully
understand and names it: other tools load such files with parts missing, silently
(huggingface/diffusers#9291, #11790). Tensors are read as float32 at least, one layer at a time.
What is too large to be merged in memory is read when it is asked for.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from b4m.adapters.adapter import Adapter
from b4m.adapters.lazy import LazyLayers, Size
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.adapters.truncation import pair_of
from b4m.bases.family import Family
from b4m.bases.named import NamedFamily, split
from b4m.bases.recognition import recognise
from b4m.errors import B4MError
from b4m.files import keys, kinds
from b4m.files.checkpoint import Checkpoint
from b4m.files.scales import Scales
from b4m.files.tensors import Contents, is_finite

Address = tuple[str, str]  # network and module path
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
IN_MEMORY = 1 << 27  # numbers; a file that holds more is read layer by layer
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layer:
    """One layer of a file.

    Attributes:
        stem: its name in the file.
        kind: "LoRA", "LoHa" or "LoKr".
        parts: names of its tensors by part.
        shapes: their shapes.
        style: the style of names that their endings tell, or "".
    """

    stem: str
    kind: str
    parts: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    style: str

    @property
    def size(self) -> Size:
        """Outputs, rank and inputs times kernel of a LoRA."""
        rows, columns = kinds.size(self.kind, self.shapes)
        return rows, self.shapes["up"][1], columns


class AdapterFile:
    """What a file holds; pairs are read when they are asked for.

    Attributes:
        path: the file.
        header: as it stands in the file.
        families: families of base models that its names and sizes fit, the best one first.
        style: the tool's style of names, see `b4m.files.keys`.
        layers: by network and module path, sorted.
        lost: share of the energy that was cut from a layer when it was read, where any was.

    Args:
        contents: the file.
        drop: names of layers to leave out, see `read_adapter`.
        rank: largest rank of a layer, 0 for any; see `read_adapter`.
        base: weights of the base, which a DoRA needs.
    """

    def __init__(
        self,
        contents: Contents,
        drop: Sequence[str] = (),
        rank: int = 0,
        base: Checkpoint | None = None,
    ) -> None:
        self.path, self.header = contents.path, contents.header
        self.rank, self.base = rank, base
        self.style = ""
        self.lost: dict[Address, float] = {}
        self._contents = contents
        self._found = self._layers(_without(self.path, list(contents.tensors), drop))
        sizes = {layer.stem: kinds.size(layer.kind, layer.shapes) for layer in self._found}
        declared = Metadata.from_header(self.header).family
        words = f"{self.header.get('ss_base_model_version', '')} "
        words += self.header.get("modelspec.architecture", "")
        self.families = recognise(sizes, declared, words.lower())
        self.layers = self._addressed(self.family)

    @property
    def family(self) -> Family:
        """The family of base models that fits best."""
        return self.families[0]

    def pair(self, address: Address) -> LowRank:
        """One layer in float32 or better, with alpha / rank in up.

        Raises:
            B4MError: for a number format that is not read, a pair that is none, or numbers that are
                not finite.
        """
        layer, where = self.layers[address], f"{self.path}, {'.'.join(filter(None, address))}"
        parts = {part: self._contents.tensor(name) for part, name in layer.parts.items()}
        alpha, magnitude = parts.pop("alpha", None), parts.pop("dora", None)
        dtypes = {tensor.dtype for tensor in parts.values()}
        if not dtypes <= {torch.float64, *DTYPES.values()}:
            raise B4MError(
                f"{where} is stored as {', '.join(map(str, dtypes))}; convert it to float16"
            )
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        try:
            factors = {name: tensor.to(dtype) for name, tensor in parts.items()}
            pair, lost = kinds.pair(layer.kind, factors, self.rank)
        except (B4MError, RuntimeError) as error:
            raise B4MError(f"{where}: {str(error).splitlines()[0]}") from None
        if lost:
            self.lost[address] = lost
        if pair.rank == 0:
            raise B4MError(f"{where} has rank 0")
        inner = kinds.inner_size(layer.kind, layer.shapes)
        pair = pair.scale(self._scale(address, inner, alpha, where))
        if magnitude is not None:
            pair, self.lost[address] = self._with_magnitude(address, pair, magnitude)
        for part, tensor in (("up", pair.up), ("down", pair.down)):
            if not is_finite(tensor.float()):
                name = ".".join(filter(None, address))
                raise B4MError(f"{self.path}: {part} of {name} has NaN or infinite numbers")
        return pair

    def pairs(self) -> Iterator[tuple[Address, LowRank]]:
        """Every layer, one at a time."""
        return ((address, self.pair(address)) for address in self.layers)

    def choose(self, family: Family) -> None:
        """Take the file as one of this family, which is one of those that it fits."""
        if family.name != self.family.name:
            self.families = [family]
            self.layers = self._addressed(family)

    def adapter(self) -> Adapter:
        """The adapter; layers of a large file are read when they are asked for."""
        metadata = Metadata.from_header(self.header)
        if isinstance(self.family, NamedFamily):
            metadata = replace(metadata, family=metadata.family or self.family.name)
        layers: dict[str, Address] = {}
        text: dict[str, Address] = {}
        for network, module in self.layers:
            if network == self.family.denoiser:
                layers[module] = network, module
            else:
                text[f"{network}.{module}"] = network, module
        shapes = (shape for layer in self.layers.values() for shape in layer.shapes.values())
        adapter = Adapter(self._lazy(layers), metadata, self._lazy(text))
        if sum(math.prod(shape) for shape in shapes) > IN_MEMORY:
            return adapter
        adapter = adapter.loaded()
        if self.lost:
            warnings.warn(
                f"{self.path}: {len(self.lost)} layers are cut to rank {self.rank}, "
                f"which loses up to {max(self.lost.values()):.2%} of their energy",
                stacklevel=3,
            )
        return adapter

    def _lazy(self, addresses: Mapping[str, Address]) -> LazyLayers:
        found = {name: self.layers[address] for name, address in addresses.items()}
        known = {n: layer for n, layer in found.items() if layer.kind == "LoRA"}
        sizes = {n: layer.size for n, layer in known.items() if "dora" not in layer.parts}
        return LazyLayers(addresses, lambda name: self.pair(addresses[name]), sizes.get)

    def _layers(self, names: Sequence[str]) -> list[Layer]:
        """Layers by their names in the file, complete."""
        file = self.path
        for pattern, what in keys.FOREIGN.items():
            marked = [name for name in names if re.search(pattern, name)]
            if marked:
                raise B4MError(
                    f"{file} is {what}, not plain low-rank pairs, in {len(marked)} tensors: "
                    f"{few(marked)}; they can be left out with --drop"
                )
        if not names:
            raise B4MError(f"{file} holds no tensors")
        parsed = {name: keys.parse(name) for name in names}
        unknown = [name for name, key in parsed.items() if key is None]
        if unknown:
            raise B4MError(
                f"{file} has {len(unknown)} names (of {len(names)}) that are not parts of low-rank "
                f"pairs: {few(unknown)}; they can be left out with --drop"
            )
        slots: dict[str, dict[str, str]] = {}
        styles: dict[str, str] = {}
        for name, key in parsed.items():
            assert key is not None
            styles[key.stem] = styles.get(key.stem, "") or key.style
            slot = slots.setdefault(key.stem, {})
            if key.part in slot:
                raise B4MError(f"{file} holds {key.part} of {key.stem} twice, also as {name}")
            slot[key.part] = name
        halves = [stem for stem, slot in slots.items() if keys.kind_of(slot) is None]
        if halves:
            raise B4MError(
                f"{file} has up without down, or down without up, or another part of a layer (such "
                f"as the magnitude of a DoRA) without the rest, for {few(halves)}"
            )
        shapes = {name: self._contents.tensors[name][0] for name in names}
        flat = [
            name
            for name, key in parsed.items()
            if key and key.part not in ("alpha", "dora") and len(shapes[name]) < 2
        ]
        if flat:
            raise B4MError(f"{file} has factors that are not matrices: {few(flat)}")
        return [
            Layer(
                stem,
                str(keys.kind_of(slot)),
                slot,
                {part: shapes[name] for part, name in slot.items()},
                styles[stem],
            )
            for stem, slot in slots.items()
        ]

    def _addressed(self, family: Family) -> dict[Address, Layer]:
        """Layers by address in this family, and what follows from the style of their names."""
        layers = self._found
        found: dict[Address, Layer] = {}
        unknown = []
        styles: Counter[str] = Counter()
        for layer in layers:
            address = family.address(layer.stem)
            if address is None:
                unknown.append(layer.stem)
                continue
            network, module, style = address
            styles[style or layer.style] += 1
            kernel = kinds.kernel(layer.kind, layer.shapes)
            known = family.kernel(network, module)
            if isinstance(family, NamedFamily):
                kernel = known if kernel is None else kernel
                module += "@" + "x".join(map(str, kernel)) if kernel else ""
            elif kernel is not None and math.prod(kernel) != math.prod(known):
                raise B4MError(
                    f"{self.path}, {module}: the kernel is {kernel or 'none'} and not "
                    f"{known or 'none'} as in {family.title}"
                )
            if (network, module) in found:
                other = found[network, module].stem
                raise B4MError(f"{self.path} holds {module} twice, as {other} and as {layer.stem}")
            found[network, module] = layer
        if unknown:
            raise B4MError(
                f"{self.path} has {len(unknown)} layers (of {len(layers)}) that are not layers of "
                f"{family.title}: {few(unknown)}; they can be left out with --drop"
            )
        self.style = styles.most_common(1)[0][0]
        root = family.root if isinstance(family, NamedFamily) else family.denoiser
        self._scales = Scales(self.path, self.style, self.header, root)
        dora = [layer.stem for layer in layers if "dora" in layer.parts]
        if (dora or self._scales.dora) and (self.base is None or self.rank < 1):
            raise B4MError(
                f"{self.path} is a DoRA (pairs with magnitudes), no low-rank pairs: give its base "
                "with --base and a rank to cut it to with --rank"
            )
        if self._scales.dora and not dora:
            raise B4MError(f"{self.path} says that it is a DoRA and has no magnitudes")
        return dict(sorted(found.items()))

    def _with_magnitude(
        self, address: Address, pair: LowRank, magnitude: torch.Tensor
    ) -> tuple[LowRank, float]:
        """A DoRA's layer, m V / |V| - W with V = W + up down, at the best of the rank asked for.

        |V| is of each output (arXiv 2402.09353, PEFT) or of each input (LyCORIS' default).
        """
        assert self.base is not None
        where = f"{self.path}, {'.'.join(filter(None, address))}"
        base_OI = self.base.matrix(address, self.family)
        if base_OI is None or tuple(base_OI.shape) != pair.shape:
            shape = "not there" if base_OI is None else f"{base_OI.shape[0]} x {base_OI.shape[1]}"
            raise B4MError(f"{where} is {pair.size} and in {self.base.path} {shape}")
        rows, columns = pair.shape
        whole = base_OI.double() + pair.to(dtype=torch.float64).dense()
        by_row = magnitude.numel() == rows and magnitude.shape[0] == rows
        if not by_row and (not magnitude.numel() or columns % magnitude.numel()):
            raise B4MError(f"{where}: a magnitude of {tuple(magnitude.shape)} does not fit it")
        groups = whole[:, None] if by_row else whole.unflatten(1, (magnitude.numel(), -1))
        norm = groups.square().sum((1, 2) if by_row else (0, 2), keepdim=True).sqrt()
        size = magnitude.double().flatten()
        factor = (size[:, None, None] if by_row else size[None, :, None]) / norm
        return pair_of((groups * factor).flatten(1).float() - base_OI, self.rank)

    def _scale(self, address: Address, inner: int | None, alpha: Any, where: str) -> float:
        if alpha is not None:
            if inner is None:
                return 1.0
            if alpha.numel() != 1 or alpha.dtype == torch.bool:
                raise B4MError(f"{where}: alpha is {tuple(alpha.shape)} and not one number")
            return float(alpha) / inner
        network, module = address
        if isinstance(self.family, NamedFamily):
            module = module.partition("@")[0]
            if network:  # a text encoder's: its name begins with the network's
                network, _, module = module.partition(".")
            else:
                network, module = self.family.root, split(module)[1]
        return self._scales.scale(network, module, inner)


def read_adapter(
    path: str | Path, drop: Sequence[str] = (), rank: int = 0, base: str | Path = ""
) -> Adapter:
    """Read an adapter in the names of diffusers, PEFT, kohya (sd-scripts) or ComfyUI, of any base.

    Layers may be plain pairs (of convolutions too: LoCon), LoHa or LoKr, which are low-rank pairs
    as well, see `b4m.files.kinds`.

    Args:
        path: a safetensors file, or a folder with exactly one (PEFT's, diffusers').
        drop: tensors to leave out: parts of their names, or patterns with * and ?.
        rank: largest rank of a layer that cannot be read as a small pair (a LoKr of two whole
            matrices), which is cut to it; 0 refuses such layers. What is lost is warned of.
        base: checkpoint or diffusers folder, which a DoRA needs beside a rank.

    Raises:
        B4MError: when the file is missing, truncated or pickled; holds no pairs, half a pair, names
            that its base does not have, DoRA, full differences; or numbers that are not finite.
    """
    return read_file(Path(path), drop, rank, base).adapter().loaded()


def read_file(
    path: Path, drop: Sequence[str] = (), rank: int = 0, base: str | Path = ""
) -> AdapterFile:
    """What an adapter file holds, its numbers unread; see `read_adapter`."""
    weights = Checkpoint(Path(base)) if str(base) else None
    file = AdapterFile(Contents(locate(path)), drop, rank, weights)
    _log.debug("read the names of %s", path)
    return file


def locate(path: Path) -> Path:
    """The one safetensors file that a path means."""
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise B4MError(f"{path} holds {len(found)} safetensors files; name the one to read")
        return found[0]
    if not path.is_file():
        raise B4MError(f"there is no adapter file {path}")
    if path.suffix != ".safetensors":
        raise B4MError(f"{path} is not a .safetensors file; convert it, pickled files can run code")
    return path


def few(names: Iterable[str]) -> str:
    """The first three names, and how many more."""
    every = list(names)
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return ", ".join(name[:200] for name in every[:3]) + more


def _without(file: Path, names: list[str], drop: Sequence[str]) -> list[str]:
    """The names that no pattern drops."""
    for pattern in drop:
        kept = [n for n in names if pattern not in n and not fnmatchcase(n, pattern)]
        if len(kept) == len(names):
            raise B4MError(f"{file} has no name with {pattern!r} to drop")
        names = kept
    return names
