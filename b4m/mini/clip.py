"""Train mini-CLIP: open_clip's model classes and loss, own configuration, on the whole grid.

It judges what mini-SDXL draws, so it knows more than that model: all contents and all styles,
except the cells that its own test needs. It shares the tokenizer with mini-SDXL, and no weight.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch.nn import functional
from torch.nn.functional import cross_entropy

from b4m.mini import captions, tokenizer
from b4m.mini.base import learn_tokenizer
from b4m.mini.grid import Cell
from b4m.mini.looks import repaint
from b4m.mini.recipe import ClipRecipe, Recipe
from b4m.mini.run import Run, pick_device
from b4m.mini.styles import Style
from b4m.mini.tiles import Tiles

LOOK = "a picture in {} style"
NEVER = -1e4  # the logit of an answer that is not allowed
MEAN, DEVIATION = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def model_config(recipe: ClipRecipe, vocabulary: int, max_tokens: int) -> dict[str, Any]:
    """open_clip's model configuration."""
    return {
        "embed_dim": recipe.embed_dim,
        "vision_cfg": {
            "image_size": recipe.pixels,
            "layers": list(recipe.vision_layers),  # a list means open_clip's ModifiedResNet
            "width": recipe.vision_width,
        },
        "text_cfg": {
            "context_length": max_tokens,
            "vocab_size": vocabulary,
            "hf_tokenizer_name": "mini-clip",
            "width": recipe.text_width,
            "heads": 4,
            "layers": recipe.text_layers,
        },
    }


def seen(cell: Cell, recipe: ClipRecipe) -> bool:
    """Whether the evaluator trains on this cell."""
    return not (cell.content.held_out and cell.style.id in recipe.unseen_styles)


def train(tiles: Tiles, work: Path, world: Recipe) -> None:
    """Train and save an open_clip folder into `work/mini-clip` (fp16).

    Args:
        tiles: the training grid, all splits.
        work: folder of checkpoint and result.
        world: choices.
    """
    device, recipe = pick_device(), world.clip
    vocabulary = learn_tokenizer(tiles, world, work)
    torch.manual_seed(recipe.schedule.seed)
    config = model_config(recipe, len(vocabulary), world.architecture.max_tokens)
    model = CLIP(**config).to(device)
    run = Run("clip", {"clip": model}, recipe.schedule, work)
    positions = [i for i, cell in enumerate(tiles.cells) if seen(cell, recipe)]
    cells = [tiles.cells[position] for position in positions]
    views = _Views(tiles.tensor(positions, device, recipe.pixels), cells, recipe)
    wordings = _Wordings(cells, vocabulary, device)
    loss_function = open_clip.ClipLoss()

    def loss_of_step(step: int) -> torch.Tensor:
        generator = random.Random(recipe.schedule.seed * 7919 + step)
        batch = views.draw(generator)
        contents = batch.index[: len(batch.index) // 2]
        tokens = torch.cat([wordings.draw(batch.index, contents, generator), wordings.looks])
        with run.arithmetic():
            images, texts, scale = run.working["clip"](batch.pictures.to(run.dtype), tokens)
        full, names, looks = texts.float().split(
            [len(batch.index), len(contents), len(wordings.looks)]
        )
        return _loss(loss_function, batch, images.float(), full, names, looks, scale.float())

    run.fit(loss_of_step)
    _settle(run.averaged["clip"], views, recipe)
    folder = work / "mini-clip"
    _save(run.averaged["clip"], config, vocabulary, folder)
    (folder / "names.json").write_text(json.dumps(_names(tiles), indent=1) + "\n")


@dataclass(frozen=True)
class _Batch:
    """Pictures of one step: C contents, each in two styles, once more repainted; M mosaics.

    Attributes:
        index: positions of the 2 C plain pictures, the second half showing the first one's things.
        pictures: N = 3 C + M: plain ones, C repainted ones of the first half, mosaics.
        things: N, which thing a picture shows; every mosaic is a thing of its own.
        styles: N; a repainted picture has a made-up one, counted behind the S real ones, that it
            shares with its neighbour.
        excluded: N x S, true where the evaluator must not learn that a picture has NOT this style,
            because it never sees this thing in it.
    """

    index: list[int]
    pictures: torch.Tensor
    things: torch.Tensor
    styles: torch.Tensor
    excluded: torch.Tensor


def _loss(
    loss_function: open_clip.ClipLoss,
    batch: _Batch,
    images_ND: torch.Tensor,
    full_BD: torch.Tensor,
    names_CD: torch.Tensor,
    looks_SD: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """CLIP's loss, and the questions that the evaluator will be asked.

    Which caption goes with which picture (CLIP's own, both ways); which thing is it, whatever its
    colours; which style is it, whatever the thing; which picture shows the same thing in another
    style; and which pictures show other things in the same style.
    """
    count = len(names_CD)
    which = torch.arange(count, device=images_ND.device)
    first, second, repainted = images_ND[: 3 * count].split(count)
    thing = cross_entropy(scale * images_ND[: 3 * count] @ names_CD.T, which.repeat(3))
    real = batch.styles < len(looks_SD)
    guesses = (scale * images_ND[real] @ looks_SD.T).masked_fill(batch.excluded[real], NEVER)
    style = cross_entropy(guesses, batch.styles[real])

    def same(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        likeness = scale * one @ other.T
        return 0.5 * (cross_entropy(likeness, which) + cross_entropy(likeness.T, which))

    alike = same(first, second) + same(repainted, second)
    hand = _same_style(scale * images_ND @ images_ND.T, batch)
    return loss_function(images_ND[: 2 * count], full_BD, scale) + thing + style + alike + hand


def _same_style(likeness_NN: torch.Tensor, batch: _Batch) -> torch.Tensor:
    """How unlikely a picture finds one of its style among all that show other things."""
    made_up = int(batch.styles.max()) + 1
    unknown = functional.pad(batch.excluded, (0, made_up))[:, batch.styles]
    shut = unknown | unknown.T | (batch.things[:, None] == batch.things)
    wanted = ~shut & (batch.styles[:, None] == batch.styles)
    every = likeness_NN.masked_fill(shut, NEVER).logsumexp(1)
    right = likeness_NN.masked_fill(~wanted, NEVER).logsumexp(1)
    return (every - right)[wanted.any(1)].mean()


class _Views:
    """What a step shows: every content twice, in two styles, and pieces of several in one style.

    Args:
        pictures: N x 3 x H x W uint8.
        cells: the N cells that they show.
        recipe: sizes, and the styles that held-out contents are not seen in.
    """

    def __init__(self, pictures: torch.Tensor, cells: list[Cell], recipe: ClipRecipe) -> None:
        styles = {style.id: place for place, style in enumerate(_styles(cells))}
        device = pictures.device
        self._pictures, self._recipe = pictures, recipe
        self._style_of = torch.tensor([styles[cell.style.id] for cell in cells], device=device)
        held = torch.tensor([cell.content.held_out for cell in cells], device=device)
        unseen = torch.tensor([name in recipe.unseen_styles for name in styles], device=device)
        self._excluded = held[:, None] & unseen
        groups: dict[str, list[int]] = {}
        self._by_style: list[list[int]] = [[] for _ in styles]
        for index, cell in enumerate(cells):
            groups.setdefault(cell.content.id, []).append(index)
            self._by_style[styles[cell.style.id]].append(index)
        self._groups = [group for group in groups.values() if len(group) > 1]
        # contents that exist in many styles come more often, but not in proportion
        self._weights = [len(group) ** 0.5 for group in self._groups]

    def draw(self, generator: random.Random) -> _Batch:
        """The pictures of one step."""
        count, mosaics = self._recipe.schedule.batch // 2, self._recipe.mosaics
        keys = [generator.random() ** (1.0 / weight) for weight in self._weights]
        order = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)[:count]
        pairs = [generator.sample(self._groups[place], 2) for place in order]
        index = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
        looks = [generator.randrange(len(self._by_style)) for _ in range(mosaics)]
        pieces = [place for look in looks for place in generator.choices(self._by_style[look], k=4)]
        device, pixels = self._pictures.device, self._recipe.pixels
        chance = torch.Generator(device).manual_seed(generator.getrandbits(62))
        chosen = torch.tensor(index, device=device)
        plain = self._pictures[chosen]
        other = repaint(plain[: len(pairs)].float() / 127.5 - 1.0, chance, each=2)
        parts = self._pictures[torch.tensor(pieces, device=device)]
        every = torch.cat([plain, ((other + 1.0) * 127.5).round().byte(), parts])
        whole, parts = augment(every, chance, pixels).split([len(every) - len(parts), len(parts)])
        things = torch.arange(len(pairs), device=device)
        alone = torch.arange(len(pairs), len(pairs) + mosaics, device=device)
        made_up = len(self._by_style) + things // 2
        real = torch.tensor(looks, device=device)
        shut = self._excluded[chosen]
        return _Batch(
            index,
            torch.cat([whole, _mosaic(parts, generator)]),
            torch.cat([things.repeat(3), alone]),
            torch.cat([self._style_of[chosen], made_up, real]),
            functional.pad(shut, (0, 0, 0, len(pairs) + mosaics)),
        )


def _mosaic(parts_BCHW: torch.Tensor, generator: random.Random) -> torch.Tensor:
    """Four pieces of four pictures each, from about the middle: a look without a thing."""
    half = parts_BCHW.shape[-1] // 2
    down, right = (generator.randint(half // 3, half - half // 3) for _ in "yx")
    pieces = parts_BCHW[:, :, down : down + half, right : right + half]
    quarters = pieces.unflatten(0, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5)
    return quarters.flatten(2, 3).flatten(3, 4)


def _styles(cells: list[Cell]) -> list[Style]:
    return list(dict.fromkeys(cell.style for cell in cells))


class _Wordings:
    """Captions of all cells, tokenized once: content and style, content alone, style alone."""

    def __init__(self, cells: list[Cell], vocabulary: Any, device: torch.device) -> None:
        def ids(texts: list[str]) -> torch.Tensor:
            tokens = vocabulary(
                texts, padding="max_length", truncation=True, max_length=vocabulary.model_max_length
            )
            return torch.tensor(tokens["input_ids"], device=device)

        rolls = (0.0, 0.7, 0.9)
        things = [captions.article(cell.content.name) for cell in cells]
        self._full = [
            ids(
                [
                    captions.phrase(thing, cell.style.words, roll)
                    for thing, cell in zip(things, cells, strict=True)
                ]
            )
            for roll in rolls
        ]
        self._plain = [
            ids([captions.phrase(thing, "", roll) for thing in things]) for roll in (0.0, 0.9)
        ]
        self.looks = ids([LOOK.format(style.words) for style in _styles(cells)])

    def draw(self, index: list[int], contents: list[int], generator: random.Random) -> torch.Tensor:
        """Token ids: captions of the cells `index`, then the bare names of the cells `contents`."""
        full, plain = generator.choice(self._full), generator.choice(self._plain)
        device = self.looks.device
        return torch.cat(
            [full[torch.tensor(index, device=device)], plain[torch.tensor(contents, device=device)]]
        )


def augment(tiles_BCHW: torch.Tensor, generator: torch.Generator, pixels: int) -> torch.Tensor:
    """Pictures of `pixels` side in [-1, 1], moved, turned, mirrored, tinted, blurred, noisy.

    Args:
        tiles_BCHW: uint8.
        generator: on the pictures' device.
        pixels: side of the result.
    """
    device, count = tiles_BCHW.device, len(tiles_BCHW)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand((count, *shape), generator=generator, device=device)

    x = 1.0 - tiles_BCHW.float().div_(255.0)  # white is 0, so that what moves in is white
    angle, zoom = uniform(-0.25, 0.25), uniform(0.85, 1.35)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [
        torch.stack([cos * mirror, -sin, uniform(-0.12, 0.12)], 1),
        torch.stack([sin * mirror, cos, uniform(-0.12, 0.12)], 1),
    ]
    field = functional.affine_grid(
        torch.stack(rows, 1), [count, 3, pixels, pixels], align_corners=False
    )
    x = 1.0 - functional.grid_sample(x, field, align_corners=False)
    # a palette is half of what tells two artists apart: tint little
    x = x * uniform(0.9, 1.06, 1, 1, 1) * uniform(0.97, 1.03, 3, 1, 1)
    x = x + uniform(-0.03, 0.03, 1, 1, 1)
    blurred = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, uniform(-1.0, 1.0, 1, 1, 1).clamp_min(0.0))
    noise = torch.randn(x.shape, generator=generator, device=device)
    x = x + noise * uniform(-0.05, 0.05, 1, 1, 1).clamp_min(0.0)
    return x.clamp(0, 1).mul(2.0).sub(1.0)


@torch.no_grad()
def _settle(model: torch.nn.Module, views: _Views, recipe: ClipRecipe) -> None:
    """Count batch statistics anew: averaged weights have other ones than the last weights."""
    assert isinstance(model, CLIP)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # a plain mean over the batches below
    model.train()
    generator = random.Random(recipe.schedule.seed)
    for _ in range(24):
        model.encode_image(views.draw(generator).pictures)
    model.eval()


def _save(model: torch.nn.Module, config: dict[str, Any], vocabulary: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        key: value.detach().cpu().half().contiguous() for key, value in model.state_dict().items()
    }
    save_file(weights, folder / "open_clip_model.safetensors")
    preprocess = {
        "mean": list(MEAN),
        "std": list(DEVIATION),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2) + "\n"
    )
    tokenizer.save(vocabulary, folder)


def _names(tiles: Tiles) -> dict[str, Any]:
    """What this evaluator calls every content and style, in the wordings that it was trained on."""
    contents = {cell.content.id: captions.article(cell.content.name) for cell in tiles.cells}
    styles = {cell.style.id: cell.style.words for cell in tiles.cells}
    return {
        "content": {"template": "{}", "words": contents},
        "style": {"template": LOOK, "words": styles},
    }
