"""A family of base models: what adapters of it look like, known without loading a model.

Pure tables and rules: names of layers, their groups and roles. Loading is `Base`'s matter.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import ClassVar

from b4m.errors import B4MError


class Family(ABC):
    """Names and roles of the layers of one architecture.

    Attributes:
        name: short name, e.g. "sdxl".
        title: the name in sentences.
        pipelines: names of the diffusers pipelines whose folders are of this family.
        networks: names of the networks in adapter files; the first one is the denoiser, the others
            are text encoders.
        beginnings: beginnings of tensor names by tool, see `b4m.files.keys`.
        block_groups: named groups of layers that methods may ask for, e.g. B-LoRA's, by prefix;
            {} where no method has found any.
        file_header: entries that tools expect in the header of an adapter file of this family.
        kohya_header: further ones that sd-scripts writes.
        widths: inputs that layers of the models that people use have, by a pattern of their names.
        words: what headers call it, lower case.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    networks: ClassVar[tuple[str, ...]]
    beginnings: ClassVar[Mapping[str, tuple[str, str]]]
    block_groups: ClassVar[Mapping[str, str]] = {}
    file_header: ClassVar[Mapping[str, str]] = {}
    kohya_header: ClassVar[Mapping[str, str]] = {}
    widths: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    words: ClassVar[tuple[str, ...]] = ()

    @property
    def denoiser(self) -> str:
        """Name of the denoising network in adapter files."""
        return self.networks[0]

    @abstractmethod
    def module(self, network: str, path: str) -> str | None:
        """The module path that a tool's dotted or underscored path means; None if unknown."""

    @abstractmethod
    def kohya_stem(self, network: str, module: str) -> str:
        """The underscored name of a module in sd-scripts' files."""

    @abstractmethod
    def group_of(self, module: str) -> str:
        """The group of layers that a linear of the denoiser belongs to.

        Raises:
            B4MError: for a module in none of them.
        """

    def role_of(self, module: str) -> str:
        """Whether a linear of the denoiser draws "content" or "style" (DuoLoRA's prior).

        "" where no prior is known, which is the default.
        """
        return ""

    def address(self, stem: str) -> tuple[str, str, str] | None:
        """Network, module path and tool's style of a layer by its name in a file; None if unknown.

        Args:
            stem: the name of a tensor without its ending, see `b4m.files.keys`.
        """
        for beginning, (network, style) in self.beginnings.items():
            if stem.startswith(beginning):
                module = self.module(network, stem[len(beginning) :])
                return (network, module, style) if module else None
        return None

    def knows(self, stem: str) -> bool:
        """Whether this is the name of a layer, in any tool's file."""
        return self.address(stem) is not None

    def evidence(self, shapes: Mapping[str, tuple[int, int]]) -> int | None:
        """How many layers have a size that tells this family; None if a size rules it out.

        Args:
            shapes: outputs and inputs by stem.
        """
        return sum(
            columns in allowed
            for stem, (_, columns) in shapes.items()
            for pattern, allowed in self.widths.items()
            if re.search(pattern, stem)
        )

    def comfyui_stem(self, network: str, module: str) -> str:
        """The dotted name of a module in ComfyUI's files."""
        return f"diffusion_model.{module}" if network == self.denoiser else f"{network}.{module}"

    def kernel(self, network: str, module: str) -> tuple[int, ...]:
        """Kernel of a convolution; () for a linear."""
        return ()

    def known(self, network: str, module: str) -> bool:
        """Whether this is the name of a linear that adapters may address."""
        return self.module(network, module) == module

    def select(self, names: Iterable[str], blocks: str) -> list[str]:
        """The names that a block filter keeps, in their order.

        Args:
            names: module paths of linears.
            blocks: comma-separated terms, of which one must hold: "all" or empty, a role
                ("content", "style"), one of `block_groups`, or a part of the path, of whole
                elements, such as "up_blocks.0.attentions.1" or "attn2".

        Raises:
            B4MError: when a term keeps nothing.
        """
        every = list(names)
        terms = [term.strip() for term in blocks.split(",") if term.strip()]
        if not terms:
            return every
        kept: set[str] = set()
        for term in terms:
            matching = {name for name in every if self._matches(name, term)}
            if not matching:
                roles = sorted({self.role_of(name) for name in every} - {""})
                groups = ", ".join(["all", *roles, *self.block_groups])
                raise B4MError(
                    f"block filter {term!r} keeps none of {len(every)} layers; give {groups} or a "
                    "part of a layer's path"
                )
            kept |= matching
        return [name for name in every if name in kept]

    @property
    def parts(self) -> tuple[str, ...]:
        """What users call the networks, the denoiser first."""
        return self.networks

    def part(self, network: str, module: str) -> str:
        """Which of `parts` a layer is in; "" for none that has a name."""
        return network or self.denoiser

    def holds(self, network: str, module: str, term: str) -> bool:
        """Whether a part of an adapter, as in `b4m.weights`, holds this layer.

        Args:
            network: of the layer, as in adapter files; "" is the denoiser.
            module: its module path.
            term: one of `parts`, what `select` takes, or a pattern of names with * and ?.
        """
        own = self.part(network, module)
        if set("*?") & set(term):
            return any(fnmatchcase(name, term) for name in (module, f"{own}.{module}"))
        if term in self.parts:
            return term == own
        if own == self.parts[0]:
            return self._matches(module, term)
        return self._inside(f"{own}.{module}", term)

    def _matches(self, name: str, term: str) -> bool:
        if term == "all":
            return True
        if term in ("content", "style"):
            return self.role_of(name) == term
        if term in self.block_groups:
            return name.startswith(f"{self.block_groups[term]}.")
        return self._inside(name, term)

    def _inside(self, name: str, term: str) -> bool:
        """Whether whole elements of a path, one behind the other, are this term."""
        return f".{term}." in f".{name}."
