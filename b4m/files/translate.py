"""Names of layers between tools, for families that are known by their names alone.

One linear of a base's original code may be several of diffusers'. Splitting one gives each part its
rows of up and the same down. Joining parts puts their ups one below the other; rows of down that
are equal are kept once, so a layer that was split is joined to what it was, and other parts to a
pair whose rank is the sum of theirs. Both are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from b4m.adapters.adapter import Adapter
from b4m.adapters.lazy import made
from b4m.adapters.lowrank import LowRank
from b4m.bases.clip import clip_module
from b4m.bases.named import BEGINNINGS, NamedFamily, Whole, split, text_beginning
from b4m.errors import B4MError
from b4m.files.read import few, read_file

Layers = Mapping[str, LowRank]
Recipe = Callable[[], LowRank]
_TEXT = {  # beginnings of the text encoders' names, the first of a network and form is written
    ("text_encoder", "kohya"): ("lora_te1_", "lora_te_"),
    ("text_encoder_2", "kohya"): ("lora_te2_",),
    ("text_encoder", "diffusers"): ("text_encoder.",),
    ("text_encoder_2", "diffusers"): ("text_encoder_2.",),
    ("text_encoder", "comfyui"): ("text_encoders.clip_l.transformer.",),
    ("text_encoder_2", "comfyui"): ("text_encoders.clip_g.transformer.",),
}


def read_together(paths: Sequence[str | Path]) -> list[Adapter]:
    """Read adapters that are to be merged: of one base, with one name for each layer.

    Layers keep their names where all files name them alike; otherwise all get diffusers' names.
    Those of large files are lazy.

    Raises:
        B4MError: for a file that cannot be read, files of different bases, or two ways of naming
            the layers of a base whose names are not known.
    """
    files = [read_file(Path(path)) for path in paths]
    first, fitting = files[0], files[0].families
    for other in files[1:]:
        common = {family.name for family in other.families}
        if not any(family.name in common for family in fitting):
            raise B4MError(
                f"{first.path} is for {first.family.title}, {other.path} for {other.family.title}; "
                "adapters fit only the base that they were trained on"
            )
        fitting = [family for family in fitting if family.name in common]
    family = fitting[0]
    for file in files:
        file.choose(family)
    adapters = [file.adapter() for file in files]
    if not isinstance(family, NamedFamily):
        return adapters
    ways = [_ways(adapter, family) for adapter in adapters]
    if len(set().union(*ways)) <= max(map(len, ways)):
        return adapters
    if not family.wholes:
        raise B4MError(
            f"{first.path} and the others name their layers in different ways, and those of "
            f"{family.title} are not known, so they cannot be brought together"
        )
    return [renamed(adapter, family, "diffusers") for adapter in adapters]


def renamed(adapter: Adapter, family: NamedFamily, form: str) -> Adapter:
    """The adapter with the names of another tool.

    Args:
        adapter: of this family.
        family: known by its names.
        form: "diffusers", "peft" (the denoiser alone), "kohya" or "comfyui".

    Raises:
        B4MError: for a layer whose name is not known.
    """
    recipes = _in_parts(adapter.layers, family)
    if form == "comfyui" or (form == "kohya" and family.kohya_original):
        recipes = _joined(recipes, family)
    beginnings = {"peft": "base_model.model.", "comfyui": "diffusion_model."}
    if form == "kohya":
        recipes = {f"lora_unet_{name.replace('.', '_')}": how for name, how in recipes.items()}
    else:
        beginning = beginnings.get(form, f"{family.root}.")
        recipes = {beginning + name: how for name, how in recipes.items()}
    source = adapter.text_layers
    text = {f"text.{_text_name(name, family, form)}": name for name in source}
    return replace(
        adapter,
        layers=made(recipes, lambda name: recipes[name](), [adapter.layers]),
        text_layers=made(text, lambda name: source[text[name]], [source]),
    )


def _ways(adapter: Adapter, family: NamedFamily) -> set[tuple[str, str]]:
    """The ways in which an adapter names its layers: a beginning, and whose names follow."""
    found = {("text", text_beginning(n.partition(".")[2])) for n in adapter.text_layers}
    for name in adapter.layers:
        beginning, path = split(name)
        whole = family.wholes.get(path)
        if whole is None or whole.parts == (whole.original,):
            found.add((beginning, ""))
        else:
            found.add((beginning, "diffusers" if whole.part(path) else "original"))
    return found


def _in_parts(layers: Layers, family: NamedFamily) -> dict[str, Recipe]:
    """How to make pairs by diffusers' module paths, with the kernels of convolutions."""
    found: dict[str, Recipe] = {}
    unknown = []
    for name in layers:
        path, at, kernel = split(name)[1], *name.partition("@")[1:]
        whole = family.wholes.get(path)
        if whole is None:
            unknown.append(name)
        elif (part := whole.part(path)) is not None:
            found[part + at + kernel] = partial(layers.__getitem__, name)
        else:
            for place, part in enumerate(whole.parts):
                found[part + at + kernel] = partial(_rows_of, layers, name, whole, place)
    if unknown:
        raise B4MError(
            f"{len(unknown)} layers have names that are not known of {family.title}, so they "
            f"cannot be written for another tool: {few(unknown)}"
        )
    return found


def _rows_of(layers: Layers, name: str, whole: Whole, place: int) -> LowRank:
    """One part of a whole, which has some of its rows."""
    pair = _swapped(layers[name], whole)
    if len(whole.parts) == 1:
        return pair
    unit = pair.out_features // sum(whole.heights)
    up = pair.up.split([unit * height for height in whole.heights])[place]
    used = up.any(dim=0)  # parts that were joined have columns of zeros for one another
    used = used if bool(used.any()) else torch.ones_like(used)
    return LowRank(up[:, used], pair.down[used])


def _joined(parts: Mapping[str, Recipe], family: NamedFamily) -> dict[str, Recipe]:
    """How to make pairs by the original code's module paths, with the kernels of convolutions."""
    groups: dict[str, dict[str, Recipe]] = {}
    wholes: dict[str, Whole] = {}
    for name, recipe in parts.items():
        path, at, kernel = name.partition("@")
        whole = family.wholes[path]
        key = whole.original + at + kernel
        wholes[key] = whole
        groups.setdefault(key, {})[path] = recipe

    def joined(key: str) -> LowRank:
        return _stacked({path: how() for path, how in groups[key].items()}, wholes[key])

    return {key: partial(joined, key) for key in groups}


def _stacked(group: Layers, whole: Whole) -> LowRank:
    """One pair of its parts; a part that is missing is zero."""
    if len(whole.parts) == 1:
        return _swapped(group[whole.parts[0]], whole)
    heights = dict(zip(whole.parts, whole.heights, strict=True))
    known, some = next(iter(group.items()))
    unit = some.out_features // heights[known]
    rows: dict[bytes, int] = {}
    places = {
        part: [rows.setdefault(row.numpy().tobytes(), len(rows)) for row in pair.down.cpu()]
        for part, pair in group.items()
    }
    up_OR = some.up.new_zeros(unit * sum(heights.values()), len(rows))
    down_RI = some.down.new_zeros(len(rows), some.in_features)
    start = 0
    for part, height in heights.items():
        if part in group:
            place = torch.tensor(places[part])
            up_OR[start : start + unit * height].index_add_(1, place, group[part].up)
            down_RI[place] = group[part].down
        start += unit * height
    return LowRank(up_OR, down_RI)


def _swapped(pair: LowRank, whole: Whole) -> LowRank:
    """Scale and shift in the other order, where the original code and diffusers differ in it."""
    if not whole.swapped or pair.out_features != 2 * pair.in_features:
        return pair
    return LowRank(torch.cat(pair.up.chunk(2)[::-1]), pair.down)


def _text_name(name: str, family: NamedFamily, form: str) -> str:
    """The name of a text encoder's layer in another tool's files."""
    stem = name.partition(".")[2]
    for (network, _), beginnings in _TEXT.items():
        for beginning in beginnings:
            module = clip_module(stem[len(beginning) :]) if stem.startswith(beginning) else None
            if module and form != "peft":
                if form == "kohya" and family.root == "unet" and network == "text_encoder":
                    return f"lora_te_{module.replace('.', '_')}"
                new = _TEXT[network, form][0]
                return new + (module.replace(".", "_") if form == "kohya" else module)
    raise B4MError(f"{stem} has no name in files of the form {form}; leave it out with --drop")


def flat(stem: str) -> bool:
    """Whether a name has underscores for dots, as kohya's have, which come with an alpha."""
    return stem.startswith("lora_te") or BEGINNINGS[split(stem)[0]] in ("kohya", "lycoris")
