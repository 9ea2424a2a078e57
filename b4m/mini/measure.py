"""Measure the offline world as its model cards state it, and draw their contact sheets.

base:       does mini-SDXL draw the content and the style that the prompt names?
evaluator:  does mini-CLIP know cells that it never saw?
vae:        how well do latents reconstruct, on seen and on unseen styles?
"""

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from b4m.bases.sdxl.load import Base, load_base
from b4m.bases.sdxl.sample import sample
from b4m.evaluate.encoders import ClipEncoder, open_encoder
from b4m.mini import captions, clip, vae
from b4m.mini.grid import Cell
from b4m.mini.recipe import Recipe
from b4m.mini.styles import DRAWN, STYLES
from b4m.mini.tiles import Tiles, core, named

GUIDANCES = (2.0, 3.5, 5.0)
SHEET_CONTENTS = (
    "cat",
    "lion",
    "koala",
    "rooster",
    "shark",
    "tulip",
    "banana",
    "pizza",
    "house",
    "bus",
    "guitar",
    "mobile-phone",
)


@dataclass(frozen=True)
class Judge:
    """mini-CLIP with the names of the grid: which content, which style is in a picture."""

    encoder: ClipEncoder
    contents: list[str]
    styles: list[str]

    def content_scores(self, features: np.ndarray) -> np.ndarray:
        """Cosines with every content's name, N x contents."""
        return features @ self._texts("content", self.contents).T

    def style_scores(self, features: np.ndarray) -> np.ndarray:
        """Cosines with every style's words, N x styles."""
        return features @ self._texts("style", self.styles).T

    def _texts(self, kind: str, ids: Sequence[str]) -> np.ndarray:
        names = self.encoder.names[kind]
        return self.encoder.encode_texts([names.template.format(names.words[i]) for i in ids])


def measure(tiles: Tiles, models: Path, recipe: Recipe, out: Path, prompts: int = 200) -> None:
    """Write `out/measures.json`, `out/base.png` and `out/vae.png`.

    Args:
        tiles: the grid that the models were trained on.
        models: folder with mini-sdxl and mini-clip.
        recipe: what they were trained by.
        out: folder to write.
        prompts: held-in cells that are drawn.
    """
    out.mkdir(parents=True, exist_ok=True)
    base = load_base(str(models / "mini-sdxl"))
    encoder = open_encoder(str(models / "mini-clip"))
    assert isinstance(encoder, ClipEncoder)
    contents = named(tiles.cells, recipe.contents)
    styles = list(dict.fromkeys(cell.style.id for cell in tiles.cells))
    judge = Judge(encoder, contents, styles)
    found: dict[str, Any] = {
        "vae": _vae(base, tiles, out / "vae.png"),
        "evaluator": _evaluator(judge, tiles, recipe),
        "base": _base(judge, base, tiles, recipe, prompts),
    }
    (out / "measures.json").write_text(json.dumps(found, indent=1) + "\n")
    sheet(base, tiles, styles).save(out / "base.png", optimize=True)


def _pictures(tiles: Tiles, positions: Sequence[int]) -> list[Image.Image]:
    return [Image.fromarray(tiles.pictures[position]) for position in positions]


@torch.no_grad()
def _vae(base: Base, tiles: Tiles, picture: Path) -> dict[str, float]:
    """PSNR in dB by split, mean over cells."""
    model: Any = base.vae
    generator = random.Random(0)
    found, rows = {}, []
    for split in ("base", "content", "style", "both"):
        every = tiles.positions(split)
        chosen = generator.sample(every, min(120, len(every)))
        tensor = tiles.tensor(chosen, torch.device("cpu"), base.pixels)
        found[split] = float(vae.psnr(model, tensor).mean())
        x = tensor[:14].float() / 127.5 - 1.0
        decoded = model.decode(model.encode(x).latent_dist.mean).sample
        rows += [x, decoded]
    for kind in sorted({cell.style.id for cell in tiles.cells if cell.style.held_out}):
        positions = [i for i, cell in enumerate(tiles.cells) if cell.style.id == kind][::6]
        tensor = tiles.tensor(positions, torch.device("cpu"), base.pixels)
        found[kind] = float(vae.psnr(model, tensor).mean())
    strips = [torch.cat(list(row), dim=2) for row in rows]
    grid = ((torch.cat(strips, dim=1).clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0)
    Image.fromarray(grid.numpy()).save(picture, optimize=True)
    return found


def _evaluator(judge: Judge, tiles: Tiles, recipe: Recipe) -> dict[str, Any]:
    """mini-CLIP on cells of held-out contents in the styles that it never saw them in."""
    unseen = recipe.clip.unseen_styles
    cells = [
        i for i, cell in enumerate(tiles.cells) if cell.content.held_out and cell.style.id in unseen
    ]
    held = list(dict.fromkeys(tiles.cells[i].content.id for i in cells))
    features = judge.encoder.encode_images(_pictures(tiles, cells))
    truth = np.array([held.index(tiles.cells[i].content.id) for i in cells])
    named = judge.content_scores(features)[:, [judge.contents.index(name) for name in held]]
    styles = np.array([judge.styles.index(tiles.cells[i].style.id) for i in cells])
    order = {
        style: [i for i, c in enumerate(cells) if tiles.cells[c].style.id == style]
        for style in unseen
    }
    hits = []
    for first in unseen:
        for second in unseen:
            if first != second:
                likeness = features[order[first]] @ features[order[second]].T
                hits.append(float((likeness.argmax(1) == np.arange(len(held))).mean()))
    independent = open_encoder("efficientnet-lite0").encode_images(_pictures(tiles, cells))
    pairs = np.triu_indices(len(cells), 1)
    moved, of_moved = _moved(judge, tiles, recipe)
    correlation = np.corrcoef((features @ features.T)[pairs], (independent @ independent.T)[pairs])
    return {
        "names": len(held),
        "text_to_picture_r1": _recall(named, truth),
        "picture_to_name_top1": float((named.argmax(1) == truth).mean()),
        "style_accuracy": float((judge.style_scores(features).argmax(1) == styles).mean()),
        "style_accuracy_by_style": {
            style: float((judge.style_scores(features[rows]).argmax(1) == styles[rows]).mean())
            for style, rows in order.items()
        },
        "style_accuracy_by_pictures": float(
            (_likeness(judge, tiles, features).argmax(1) == styles).mean()
        ),
        "style_accuracy_on_new_augmentations": float(
            (judge.style_scores(moved).argmax(1) == of_moved).mean()
        ),
        "same_content_first": float(np.mean(hits)),
        "correlation_with_efficientnet": float(correlation[0, 1]),
    } | drawn_styles(judge, tiles, unseen)


def _likeness(judge: Judge, tiles: Tiles, features: np.ndarray, count: int = 8) -> np.ndarray:
    """Mean cosines with `count` pictures of every style, of base contents, N x styles."""
    found = []
    for style in judge.styles:
        shown = [
            position
            for position, cell in enumerate(tiles.cells)
            if cell.style.id == style and not cell.content.held_out
        ]
        chosen = random.Random(3).sample(shown, min(count, len(shown)))
        found.append(features @ judge.encoder.encode_images(_pictures(tiles, chosen)).mean(0))
    return np.stack(found, 1)


def drawn_styles(judge: Judge, tiles: Tiles, unseen: Sequence[str]) -> dict[str, float]:
    """Is the style of an unseen cell hard to see? Both encoders among the drawn styles alone.

    EfficientNet-Lite0 gets a linear layer trained on the base contents' cells (multinomial logistic
    regression with a quadratic penalty, 150 steps of L-BFGS), mini-CLIP its words.

    Args:
        judge: mini-CLIP.
        tiles: the grid.
        unseen: styles in which cells of held-out contents are named.
    """
    drawn = [i for i, cell in enumerate(tiles.cells) if cell.style.kind == DRAWN]
    cells = [tiles.cells[i] for i in drawn]
    names = list(dict.fromkeys(cell.style.id for cell in cells))
    truth = torch.tensor([names.index(cell.style.id) for cell in cells])
    known = torch.tensor([not cell.content.held_out for cell in cells])
    asked = torch.tensor([c.content.held_out and c.style.id in unseen for c in cells])
    features = torch.from_numpy(
        open_encoder("efficientnet-lite0").encode_images(_pictures(tiles, drawn))
    )
    features = (features - features[known].mean(0)) / features[known].std(0).clamp_min(1e-6)
    layer = torch.nn.Linear(features.shape[1], len(names))
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        fit = torch.nn.functional.cross_entropy(layer(features[known]), truth[known])
        total: torch.Tensor = fit + 0.01 * layer.weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    of_asked = [drawn[int(i)] for i in asked.nonzero()]
    own = judge.style_scores(judge.encoder.encode_images(_pictures(tiles, of_asked)))
    own = own[:, [judge.styles.index(name) for name in names]]
    with torch.no_grad():
        guessed = layer(features[asked]).argmax(1)
    return {
        "drawn_style_accuracy": float((own.argmax(1) == truth[asked].numpy()).mean()),
        "drawn_style_accuracy_of_efficientnet": float((guessed == truth[asked]).float().mean()),
    }


def _moved(judge: Judge, tiles: Tiles, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Features and styles of known cells, moved and turned as in no training step."""
    cells = random.Random(2).sample(range(len(tiles.cells)), min(600, len(tiles.cells)))
    pixels = recipe.clip.pixels
    seed = torch.Generator().manual_seed(987_654_321)
    moved = clip.augment(tiles.tensor(cells, torch.device("cpu"), pixels), seed, pixels)
    bytes_ = ((moved + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    features = judge.encoder.encode_images([Image.fromarray(one) for one in bytes_])
    return features, np.array([judge.styles.index(tiles.cells[i].style.id) for i in cells])


def _recall(scores: np.ndarray, truth: np.ndarray) -> float:
    """Share of names whose best picture shows that name."""
    return float(np.mean([truth[scores[:, name].argmax()] == name for name in set(truth)]))


def _base(judge: Judge, base: Base, tiles: Tiles, recipe: Recipe, prompts: int) -> dict[str, Any]:
    """mini-SDXL on held-in cells, at several guidance scales; the best one in full."""
    generator = random.Random(1)
    known = core(tiles.cells, recipe.base.contents)
    held_in = [p for p in tiles.positions("base") if tiles.cells[p].content.id in known]
    positions = generator.sample(held_in, min(prompts, len(held_in)))
    cells = [tiles.cells[position] for position in positions]
    nearest = Nearest(tiles, judge.contents)
    real = _judged(judge, cells, _pictures(tiles, positions), nearest)
    found: dict[str, Any] = {"prompts": len(cells), "real": real}
    few = cells[: max(1, len(cells) // 5)]
    for guidance in GUIDANCES:
        scores = _judged(judge, few, _drawn(base, few, guidance), nearest)
        found[f"{len(few)} prompts at guidance {guidance}"] = scores
    best = max(GUIDANCES, key=lambda g: sum(found[f"{len(few)} prompts at guidance {g}"].values()))
    begun = time.perf_counter()
    drawn = _drawn(base, cells, best)
    found["guidance"] = best
    found["seconds_in_batches"] = (time.perf_counter() - begun) / len(cells)
    return found | _judged(judge, cells, drawn, nearest)


def _drawn(base: Base, cells: Sequence[Cell], guidance: float) -> list[Image.Image]:
    """One picture per cell, 25 steps, in batches of 8."""
    drawn: list[Image.Image] = []
    for start in range(0, len(cells), 8):
        prompts = [captions.full(c.content, c.style) for c in cells[start : start + 8]]
        drawn += sample(base, prompts, [start], steps=25, guidance=guidance, batch_size=8)
    return drawn


class Nearest:
    """The independent check: which real picture of a style is nearest, by EfficientNet-Lite0."""

    def __init__(self, tiles: Tiles, contents: Sequence[str]) -> None:
        self._tiles, self._contents = tiles, frozenset(contents)
        self._encoder = open_encoder("efficientnet-lite0")
        self._real: dict[str, tuple[list[int], np.ndarray]] = {}

    def right(self, cells: Sequence[Cell], pictures: Sequence[Image.Image]) -> float:
        """Share of pictures whose nearest real one of their style shows their content."""
        own = self._encoder.encode_images(pictures)
        found = []
        for cell, feature in zip(cells, own, strict=True):
            positions, real = self._of(cell.style.id)
            nearest = self._tiles.cells[positions[int((real @ feature).argmax())]]
            found.append(nearest.content.id == cell.content.id)
        return float(np.mean(found))

    def _of(self, style: str) -> tuple[list[int], np.ndarray]:
        if style not in self._real:
            positions = [
                i
                for i, cell in enumerate(self._tiles.cells)
                if cell.style.id == style and cell.content.id in self._contents
            ]
            real = self._encoder.encode_images(_pictures(self._tiles, positions))
            self._real[style] = positions, real
        return self._real[style]


def _judged(
    judge: Judge, cells: Sequence[Cell], drawn: Sequence[Image.Image], nearest: Nearest
) -> dict[str, float]:
    features = judge.encoder.encode_images(drawn)
    contents = np.array([judge.contents.index(cell.content.id) for cell in cells])
    styles = np.array([judge.styles.index(cell.style.id) for cell in cells])
    return {
        "content_top1": float((judge.content_scores(features).argmax(1) == contents).mean()),
        "style_top1": float((judge.style_scores(features).argmax(1) == styles).mean()),
        "efficientnet_nearest": nearest.right(cells, drawn),
    }


def sheet(base: Base, tiles: Tiles, styles: Sequence[str], guidance: float = 3.0) -> Image.Image:
    """Twelve contents in every style that the base saw: drawn above, real below."""
    seen = [style for style in STYLES if style.id in styles and not style.held_out]
    where = {(cell.content.id, cell.style.id): i for i, cell in enumerate(tiles.cells)}
    known = [name for name in SHEET_CONTENTS if (name, seen[0].id) in where]
    side, gap = base.pixels, 4
    picture = Image.new("RGB", (len(seen) * (side + gap), len(known) * 2 * (side + gap)), "white")
    for row, name in enumerate(known):
        cells = [tiles.cells[where[name, style.id]] for style in seen]
        drawn = sample(
            base,
            [captions.full(c.content, c.style) for c in cells],
            [row],
            steps=25,
            guidance=guidance,
            batch_size=12,
        )
        for column, cell in enumerate(cells):
            real = Image.fromarray(tiles.pictures[where[name, cell.style.id]])
            place = column * (side + gap), row * 2 * (side + gap)
            picture.paste(drawn[column], place)
            picture.paste(
                real.resize((side, side), Image.Resampling.BOX), (place[0], place[1] + side + gap)
            )
    return picture
