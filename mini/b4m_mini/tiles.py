"""The training grid as one array on disk, and the tokenizer: made once, read by every training."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import CLIPTokenizer

from b4m.data.restyle import restyle
from b4m.io import replacing
from b4m.testing import learn_tokenizer
from b4m_mini import captions, grid
from b4m_mini.archives import fetch
from b4m_mini.catalog import DRAWN, STYLE_CONTENTS, STYLES, Content
from b4m_mini.grid import Cell
from b4m_mini.recipe import Recipe


@dataclass(frozen=True)
class Tiles:
    """The training grid, and what is made of it.

    Attributes:
        cells: N cells, content by content.
        images: N x 128 x 128 x 3 uint8, memory-mapped.
        recipe: all choices.
        work: folder of the array, the tokenizer, checkpoints and trained models.
    """

    cells: list[Cell]
    images: np.ndarray
    recipe: Recipe
    work: Path

    def positions(self, *splits: str) -> list[int]:
        """Positions of the cells of these splits."""
        return [i for i, cell in enumerate(self.cells) if cell.split in splits]

    def tensor(self, positions: list[int], device: torch.device, pixels: int) -> torch.Tensor:
        """Images as N x 3 x `pixels` x `pixels` uint8 on `device`."""
        chunks = []
        for start in range(0, len(positions), 512):
            chunk = torch.from_numpy(self.images[positions[start : start + 512]]).to(device)
            chunk = functional.interpolate(chunk.permute(0, 3, 1, 2).float(), pixels, mode="area")
            chunks.append(chunk.round().to(torch.uint8))
        return torch.cat(chunks)

    def tokenizer(self) -> CLIPTokenizer:
        """Both models' own: learned once, because the learner breaks ties by chance."""
        return CLIPTokenizer.from_pretrained(self.work / "tokenizer")


def restyled(images_NCHW: torch.Tensor, styles: Sequence[int]) -> torch.Tensor:
    """Copies of uint8 images in synthetic styles, one for each number (`b4m.data.restyle`)."""
    arrays = images_NCHW.permute(0, 2, 3, 1).cpu().numpy()
    pairs = zip(arrays, styles, strict=True)
    copies = [np.asarray(restyle(Image.fromarray(array), style)[0]) for array, style in pairs]
    return torch.from_numpy(np.stack(copies)).permute(0, 3, 1, 2).to(images_NCHW.device)


def build(archive_folder: Path, work: Path, recipe: Recipe, workers: int | None = None) -> Tiles:
    """Render the recipe's grid into `work/tiles.npy`, or take what is there already.

    Painted cells are dear (a network draws them) and only the recipe's contents have them; drawn
    ones are cheap, and the evaluator needs many to tell one artist's hand from another's.

    Args:
        archive_folder: folder of the npm archives; missing ones are fetched.
        work: folder for the array, 49 kB per cell, and for the tokenizer.
        recipe: which contents.
        workers: processes; one per core if left out.
    """
    fetch(archive_folder)
    every = grid.Drawings(archive_folder).cells
    known = core_contents(every, recipe.contents)
    selected = [
        position
        for position, cell in enumerate(every)
        if cell.style.kind == DRAWN or cell.content.held_out or cell.content.id in known
    ]
    cells, path = [every[position] for position in selected], work / "tiles.npy"
    if not path.exists() or len(np.load(path, mmap_mode="r")) != len(cells):
        images = np.concatenate([*grid.render(archive_folder, selected, workers)])
        with replacing(path) as partial, partial.open("wb") as stream:
            np.save(stream, images)
    if not (work / "tokenizer").exists():
        _learn_tokenizer(cells, recipe).save_pretrained(work / "tokenizer")
    return Tiles(cells, np.load(path, mmap_mode="r"), recipe, work)


def _learn_tokenizer(cells: list[Cell], recipe: Recipe) -> CLIPTokenizer:
    """Names, tags and classes of the recipe's contents, style words; the rest is spelled."""
    styles = list(STYLES.values())
    texts = ["a picture of a in style"] * 200
    texts += [f"a picture in {style.words} style: {style.description}" for style in styles] * 30
    named = set(named_contents(cells, recipe.contents))
    for content in dict.fromkeys(cell.content for cell in cells if cell.content.id in named):
        words = f"{content.class_word} {', '.join(content.tags)}"
        texts += [f"{captions.full(content, style)} {words}" for style in styles[:2]]
    return learn_tokenizer(texts, recipe.vocabulary, recipe.architecture.max_tokens)


def named_contents(cells: list[Cell], count: int) -> list[str]:
    """Contents that models are named and judged with, in the cells' order: core and held out."""
    known = core_contents(cells, count)
    contents = dict.fromkeys(cell.content for cell in cells)
    return [content.id for content in contents if content.held_out or content.id in known]


def core_contents(cells: list[Cell], count: int) -> frozenset[str]:
    """Base contents for a small recipe: the ones that styles are learned on, then plain things.

    Args:
        cells: where they are chosen from.
        count: how many; 0 takes all.
    """
    vague = {"person", "hand", "sign", "heart", "weather", "map", "money"}

    def rank(content: Content) -> tuple[bool, bool, str]:
        digest = hashlib.sha256(content.id.encode()).hexdigest()
        return content.id not in STYLE_CONTENTS, content.class_word in vague, digest

    contents = dict.fromkeys(cell.content for cell in cells if not cell.content.held_out)
    ranked = sorted(contents, key=rank)
    return frozenset(content.id for content in ranked[: count or len(ranked)])
