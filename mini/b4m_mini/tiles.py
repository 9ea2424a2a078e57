"""The training grid as one array on disk, and the tokenizer: made once, read by every training."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

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
from b4m_mini.catalog import DRAWN, PAINTED, STYLE_CONTENTS, STYLES, Content
from b4m_mini.grid import Cell
from b4m_mini.recipe import Recipe


@dataclass(frozen=True)
class Tiles:
    """The training grid, and what is made of it.

    Attributes:
        cells: N cells, content by content.
        images: N x 128 x 128 x 3 uint8, memory-mapped.
        blends: M further cells in blends of two painted styles of the base, called by both names.
        blended: their images, like `images`.
        recipe: all choices.
        work: folder of the array, the tokenizer, checkpoints and trained models.
    """

    cells: list[Cell]
    images: np.ndarray
    blends: list[Cell]
    blended: np.ndarray
    recipe: Recipe
    work: Path

    def positions(self, *splits: str) -> list[int]:
        """Positions of the cells of these splits."""
        return [i for i, cell in enumerate(self.cells) if cell.split in splits]

    def tensor(self, positions: list[int], device: torch.device, pixels: int) -> torch.Tensor:
        """Images as N x 3 x `pixels` x `pixels` uint8 on `device`."""
        return shrunk(self.images, positions, device, pixels)

    def tokenizer(self) -> CLIPTokenizer:
        """Both models' own: learned once, because the learner breaks ties by chance."""
        return CLIPTokenizer.from_pretrained(self.work / "tokenizer")


def shrunk(
    images_NHWC: np.ndarray, positions: Sequence[int], device: torch.device, pixels: int
) -> torch.Tensor:
    """Some of the uint8 images as N x 3 x `pixels` x `pixels` uint8 on `device`."""
    chunks = [torch.empty((0, 3, pixels, pixels), dtype=torch.uint8, device=device)]
    for start in range(0, len(positions), 512):
        chunk = torch.from_numpy(images_NHWC[positions[start : start + 512]]).to(device)
        chunk = functional.interpolate(chunk.permute(0, 3, 1, 2).float(), pixels, mode="area")
        chunks.append(chunk.round().to(torch.uint8))
    return torch.cat(chunks)


def restyled(images_NCHW: torch.Tensor, seeds: Iterable[int]) -> tuple[torch.Tensor, list[str]]:
    """Copies of uint8 images in a synthetic style each, and words for it (`b4m.data.restyle`)."""
    arrays = images_NCHW.permute(0, 2, 3, 1).cpu().numpy()
    copies = [restyle(Image.fromarray(a), seed) for a, seed in zip(arrays, seeds, strict=True)]
    stacked = torch.from_numpy(np.stack([np.asarray(copy) for copy, _ in copies]))
    return stacked.permute(0, 3, 1, 2).to(images_NCHW.device), [words for _, words in copies]


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
    cells = [
        cell
        for cell in every
        if cell.style.kind == DRAWN or cell.content.held_out or cell.content.id in known
    ]
    mixed = blends(cells, known, recipe.base.blends, recipe.base.loop.seed)
    images = _rendered(work / "tiles.npy", archive_folder, cells, workers)
    blended = _rendered(work / "blends.npy", archive_folder, mixed, workers)
    if not (work / "tokenizer").exists():
        _learn_tokenizer(cells, recipe).save_pretrained(work / "tokenizer")
    return Tiles(cells, images, mixed, blended, recipe, work)


def _rendered(path: Path, archives: Path, cells: list[Cell], workers: int | None) -> np.ndarray:
    """Images of the cells, memory-mapped from `path`, where they are rendered once."""
    if not path.exists() or len(np.load(path, mmap_mode="r")) != len(cells):
        empty = np.empty((0, grid.PIXELS, grid.PIXELS, 3), np.uint8)
        images = np.concatenate([empty, *grid.render(archives, cells, workers)])
        with replacing(path) as partial, partial.open("wb") as stream:
            np.save(stream, images)
    return np.load(path, mmap_mode="r")


def blends(cells: Sequence[Cell], known: frozenset[str], count: int, seed: int) -> list[Cell]:
    """Known contents in blends of two painted base styles, the heavier one named first."""
    random = Random(seed)
    contents = dict.fromkeys(cell.content for cell in cells if cell.content.id in known)
    painted = [s for s in STYLES.values() if s.kind == PAINTED and not s.held_out]
    mixed = []
    for content in random.choices(sorted(contents, key=lambda each: each.id), k=count):
        share = random.uniform(0.5, 0.8)
        heavy, light = random.sample(painted, 2)
        painter = f"{heavy.painter}:{share:.3f},{light.painter}:{1 - share:.3f}"
        words = f"{heavy.words} and {light.words}"
        mixed.append(Cell(content, replace(heavy, id="blend", words=words, painter=painter)))
    return mixed


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
