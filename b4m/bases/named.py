"""Families of which only the names of layers are known: their files are read, merged and written.

Nothing can be loaded, trained or drawn with them, and a closed-form merge needs none of that. An
adapter of such a family keeps the names that its file has, beginning included (kohya's
"lora_unet_double_blocks_0_img_attn_qkv"), so that what is written back is read by the same tools.
A convolution's name ends with its kernel, "...conv_in@3x3": its pair is a pair of matrices.

A table translates between the names of a base's original code and diffusers', where one linear of
the original ("whole") may be several of diffusers':

    [double_blocks.{19} transformer_blocks.{}]           a block, how many there are at most
    img_attn.qkv  attn.to_q attn.to_k attn.to_v          one whole, three parts of equal height
    linear1       attn.to_q attn.to_k attn.to_v 4*proj_mlp       heights in units of the inputs
    img_mod.lin   ~norm1.linear                          two halves (scale, shift) change places
    proj_out                                             the same name in both
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from b4m.bases.family import Family

# Beginnings of names of the denoiser by tool, the longer first where one begins with another.
BEGINNINGS = {
    "base_model.model.diffusion_model.": "peft",
    "base_model.model.": "peft",
    "model.diffusion_model.": "comfyui",
    "diffusion_model.": "comfyui",
    "lora_unet_": "kohya",
    "lora_transformer_": "kohya",
    "lycoris_": "lycoris",
    "transformer.": "diffusers",
    "unet.": "diffusers",
    "": "bare",
}
_TEXT = re.compile(r"lora_te\d?_|text_encoders?(_\d)?\.")
_ENCODERS = {
    r"lora_te1?_|text_encoder\.|text_encoders\.clip_l\.": 1,
    r"lora_te2_|text_encoder_2\.|text_encoders\.clip_g\.": 2,
    r"lora_te3_|text_encoder_3\.": 3,
}
TEXT = "text"  # the network of every text encoder's layers; their names say which


@dataclass(frozen=True)
class Whole:
    """A linear of the original code, and the linears of diffusers that make it up, top down.

    Attributes:
        original: module path in the original code.
        parts: module paths in diffusers.
        heights: rows of each part, in units of the linear's inputs where there are several parts
            or the unit is known; 0 if unknown.
        swapped: whether the two halves of the rows change places if there are twice as many rows
            as inputs (scale and shift of a last norm).
    """

    original: str
    parts: tuple[str, ...]
    heights: tuple[int, ...]
    swapped: bool = False

    def part(self, path: str) -> str | None:
        """The part that a dotted or underscored path names; None if it names the original."""
        return next((part for part in self.parts if path in (part, part.replace(".", "_"))), None)


class NamedFamily(Family):
    """A family by the names and sizes of its layers alone.

    Attributes:
        table: names in the original code and in diffusers, see the module.
        widths: inputs that layers must have, by a pattern of their diffusers names.
        marks: pattern of names that belong to this family although no table has them.
        words: what a header calls it, lower case.
        root: the denoiser's name in diffusers' files.
        kohya_original: whether kohya's names are the original code's (or diffusers').
    """

    table: ClassVar[str] = ""
    widths: ClassVar[Mapping[str, tuple[int, ...]]] = {}
    marks: ClassVar[str] = ""
    words: ClassVar[tuple[str, ...]] = ()
    root: ClassVar[str] = "transformer"
    kohya_original: ClassVar[bool] = True
    pipelines = ()
    networks = ("", TEXT)
    beginnings: ClassVar[Mapping[str, tuple[str, str]]] = {}
    block_groups: ClassVar[Mapping[str, str]] = {}
    file_header: ClassVar[Mapping[str, str]] = {}
    kohya_header: ClassVar[Mapping[str, str]] = {}

    @cached_property
    def wholes(self) -> dict[str, Whole]:
        """Wholes by every name: the original's and the parts', dotted and underscored."""
        found: dict[str, Whole] = {}
        for whole in self.entries():
            for name in (whole.original, *whole.parts):
                found.setdefault(name, whole)
                found.setdefault(name.replace(".", "_"), whole)
        return found

    def entries(self) -> Iterator[Whole]:
        """Every linear that the table knows."""
        blocks, count = ("", ""), 1
        for line in filter(None, self.table.splitlines()):
            if line.startswith("["):
                names = line.strip("[]").split() or [""]
                count = int((re.search(r"\{(\d+)\}", names[0]) or ["", "1"])[1])
                blocks = re.sub(r"\{\d+\}", "{}", names[0]), names[-1].replace(f"{{{count}}}", "{}")
                continue
            original, *parts = line.split()
            for k in range(count):
                ours, theirs = (f"{block}.".format(k) if block else "" for block in blocks)
                yield _whole(ours, theirs, original, parts)

    def knows(self, stem: str) -> bool:
        """Whether this is a name of the denoiser that the family has, or a text encoder's."""
        if _TEXT.match(stem):
            return True
        path = split(stem)[1]
        return path in self.wholes or bool(self.marks and re.search(self.marks, path))

    def evidence(self, shapes: Mapping[str, tuple[int, int]]) -> int | None:
        """How many layers have a size that tells this family; None if one has another's size.

        Args:
            shapes: outputs and inputs by stem.
        """
        told = 0
        for stem, (rows, columns) in shapes.items():
            path = split(stem)[1]
            whole = self.wholes.get(path)
            if whole:
                part, height = whole.part(path), sum(whole.heights)
                if height and part is None and rows != height * columns:
                    return None
                path = part or whole.parts[0]
            for pattern, allowed in self.widths.items():
                if re.search(pattern, path):
                    if columns not in allowed:
                        return None
                    told += 1
        return told

    def address(self, stem: str) -> tuple[str, str, str] | None:
        """The stem as it is, in the network that it is of, and the tool's style."""
        if _TEXT.match(stem):
            style = "kohya" if stem.startswith("lora_") else "diffusers"
            return TEXT, stem, "comfyui" if stem.startswith("text_encoders.") else style
        return "", stem, BEGINNINGS[split(stem)[0]]

    def module(self, network: str, path: str) -> str | None:
        """The path as it is: names are the file's own."""
        return path

    def kohya_stem(self, network: str, module: str) -> str:
        """The name as it is, without the kernel."""
        return module.partition("@")[0]

    def kernel(self, network: str, module: str) -> tuple[int, ...]:
        """Kernel of a convolution, which its name ends with; () for a linear.

        A name without kernel is one of a file that does not tell (a LoHa's or LoKr's flat factors).
        """
        sizes = module.partition("@")[2]
        return tuple(int(size) for size in sizes.split("x")) if sizes else ()

    def group_of(self, module: str) -> str:
        """The block: what stands before and at the first number of the name."""
        path = split(module)[1]
        match = re.match(r".*?\d+", path)
        return match.group(0) if match else path

    def role_of(self, module: str) -> str:
        """No prior is known."""
        return ""

    @property
    def parts(self) -> tuple[str, ...]:
        """The denoiser and up to three text encoders."""
        return self.root, "text_encoder", "text_encoder_2", "text_encoder_3"

    def part(self, network: str, module: str) -> str:
        """Which of `parts` a layer is in by its name in the file."""
        if network != TEXT:
            return network or self.root
        number = next((n for mark, n in _ENCODERS.items() if re.match(mark, module)), 0)
        return self.parts[number] if number else ""

    def _inside(self, name: str, term: str) -> bool:
        # kohya's names have underscores for dots
        flat, path = (text.partition("@")[0].replace(".", "_") for text in (term, name))
        return f"_{flat}_" in f"_{path}_"


def split(stem: str) -> tuple[str, str]:
    """A name's beginning and the path behind it, without the kernel."""
    stem = stem.partition("@")[0]
    beginning = next(b for b in BEGINNINGS if stem.startswith(b))
    return beginning, stem[len(beginning) :]


def text_beginning(stem: str) -> str:
    """The beginning of the name of a text encoder's layer; "" for the denoiser's."""
    match = _TEXT.match(stem)
    return match.group(0) if match else ""


def _whole(block: str, theirs: str, original: str, parts: list[str]) -> Whole:
    names, heights = [], []
    for part in parts or [original]:
        height, star, name = part.rpartition("*")
        names.append(theirs + name.lstrip("~"))
        heights.append(int(height) if star else int(len(parts) > 1))
    swapped = any(part.startswith("~") for part in parts)
    return Whole(block + original, tuple(names), tuple(heights), swapped)


class UnknownFamily(NamedFamily):
    """Whatever has low-rank pairs."""

    name = "unknown"
    title = "an unknown base"
    marks = "."


UNKNOWN = UnknownFamily()
