"""Train mini-CLIP: open_clip's model classes and loss, own configuration, on the whole grid.

It judges what mini-SDXL draws, so it knows more than that model: all contents and all styles,
except the cells that its own test needs. It shares the tokenizer with mini-SDXL, and no weight.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy
from transformers import CLIPTokenizer

from b4m.bases.base import pick_device
from b4m.data.captions import with_article
from b4m.training.loop import Batch
from b4m_mini import captions, trainer
from b4m_mini.grid import Cell
from b4m_mini.recipe import ClipRecipe
from b4m_mini.tiles import Tiles, restyled

STYLE_TEMPLATE = "a picture in {} style"
_NEVER = -1e4  # the logit of an answer that is not allowed


def seen(cell: Cell, recipe: ClipRecipe) -> bool:
    """Whether the evaluator trains on this cell."""
    return not (cell.content.held_out and cell.style.id in recipe.unseen_styles)


def train(tiles: Tiles) -> None:
    """Train on all splits; save an open_clip folder in fp16 into `tiles.work/mini-clip`."""
    device, recipe, tokenizer = pick_device("auto"), tiles.recipe.clip, tiles.tokenizer()
    torch.manual_seed(recipe.loop.seed)
    config = _config(recipe.pixels, len(tokenizer), tiles.recipe.architecture.max_tokens)
    clip = CLIP(**config).to(device)
    positions = [i for i, cell in enumerate(tiles.cells) if seen(cell, recipe)]
    cells = [tiles.cells[position] for position in positions]
    views = _Views(tiles.tensor(positions, device, recipe.pixels), cells, recipe)
    fulls, plains, styles_ST = (each.to(device) for each in _tokens(cells, tokenizer))
    clip_loss = open_clip.ClipLoss()

    def loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Mapping[str, Tensor]:
        chance = random.Random(generator.initial_seed())
        shown = views.draw(chance)
        contents = shown.index[: len(shown.index) // 2]
        full_NT, plain_NT = fulls[chance.randrange(3)], plains[chance.randrange(2)]
        tokens = torch.cat([full_NT[shown.index], plain_NT[contents], styles_ST])
        features, texts, scale = model(shown.images, tokens)
        parts = texts.float().split([len(shown.index), len(contents), len(styles_ST)])
        return _losses(clip_loss, shown, features.float(), parts, scale.float())

    trainer.train("clip", clip, loss, views.images, recipe, tiles)
    _count_statistics(clip, views, recipe)
    if trainer.is_main_process():
        _save(clip, config, tiles, tiles.work / "mini-clip")


def _config(pixels: int, vocabulary: int, max_tokens: int) -> dict[str, Any]:
    """open_clip's model configuration."""
    # a list of layers means open_clip's ModifiedResNet
    vision = {"image_size": pixels, "layers": [1, 1, 2, 1], "width": 24}
    text = {"context_length": max_tokens, "vocab_size": vocabulary, "width": 128, "heads": 4}
    named = {"layers": 3, "hf_tokenizer_name": "mini-clip"}
    return {"embed_dim": 128, "vision_cfg": vision, "text_cfg": {**text, **named}}


@dataclass(frozen=True)
class _Shown:
    """Images of one step: C contents, each in two styles, once more restyled; M mosaics.

    Attributes:
        index: positions of the 2 C plain images, the second half showing the first one's contents.
        images: N = 3 C + M: plain ones, C restyled ones of the first half, mosaics.
        contents: N, which content an image shows; every mosaic is a content of its own.
        styles: N; a restyled image has a synthetic one, counted behind the S real ones, that it
            shares with its neighbour.
        excluded: N x S, true where the evaluator must not learn that an image has NOT this style,
            because it never sees this content in it.
    """

    index: list[int]
    images: Tensor
    contents: Tensor
    styles: Tensor
    excluded: Tensor


def _losses(
    clip_loss: open_clip.ClipLoss,
    shown: _Shown,
    images_ND: Tensor,
    texts: Sequence[Tensor],
    scale: Tensor,
) -> dict[str, Tensor]:
    """CLIP's loss, and the questions that the evaluator will be asked; "loss" is their sum.

    Which caption goes with which image (CLIP's own, both ways); which content is it, whatever its
    colours; which style is it, whatever the content; which image shows the same content in another
    style; and which images show other contents in the same style.
    """
    full_BD, names_CD, styles_SD = texts
    count = len(names_CD)
    which = torch.arange(count, device=images_ND.device)
    first, second, restyled = images_ND[: 3 * count].split(count)
    real = shown.styles < len(styles_SD)
    guesses = (scale * images_ND[real] @ styles_SD.T).masked_fill(shown.excluded[real], _NEVER)

    def same(one: Tensor, other: Tensor) -> Tensor:
        similarity = scale * one @ other.T
        return 0.5 * (cross_entropy(similarity, which) + cross_entropy(similarity.T, which))

    losses = {
        "clip": clip_loss(images_ND[: 2 * count], full_BD, scale),
        "content": cross_entropy(scale * images_ND[: 3 * count] @ names_CD.T, which.repeat(3)),
        "style": cross_entropy(guesses, shown.styles[real]),
        "same_content": same(first, second) + same(restyled, second),
        "same_style": _same_style(scale * images_ND @ images_ND.T, shown),
    }
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def _same_style(similarity_NN: Tensor, shown: _Shown) -> Tensor:
    """How unlikely an image finds one of its style among all that show other contents."""
    synthetic = int(shown.styles.max()) + 1
    unknown = functional.pad(shown.excluded, (0, synthetic))[:, shown.styles]
    ignored = unknown | unknown.T | (shown.contents[:, None] == shown.contents)
    right = ~ignored & (shown.styles[:, None] == shown.styles)
    every = similarity_NN.masked_fill(ignored, _NEVER).logsumexp(1)
    found = similarity_NN.masked_fill(~right, _NEVER).logsumexp(1)
    return (every - found)[right.any(1)].mean()


class _Views:
    """What a step shows: every content twice, in two styles, and pieces of several in one style.

    Args:
        images: N x 3 x H x W uint8.
        cells: the N cells that they show.
        recipe: sizes, and the styles that held-out contents are not seen in.
    """

    def __init__(self, images: Tensor, cells: list[Cell], recipe: ClipRecipe) -> None:
        self.images, self._recipe, styles = images, recipe, list(_style_words(cells))
        style_of = [styles.index(cell.style.id) for cell in cells]
        self._style_of = torch.tensor(style_of, device=images.device)
        held = torch.tensor([cell.content.held_out for cell in cells], device=images.device)
        unseen = [name in recipe.unseen_styles for name in styles]
        self._excluded = held[:, None] & torch.tensor(unseen, device=images.device)
        groups: dict[str, list[int]] = {}
        self._by_style: list[list[int]] = [[] for _ in styles]
        for index, cell in enumerate(cells):
            groups.setdefault(cell.content.id, []).append(index)
            self._by_style[style_of[index]].append(index)
        self._groups = [group for group in groups.values() if len(group) > 1]
        # contents that exist in many styles come more often, but not in proportion
        self._weights = torch.tensor([len(group) ** 0.5 for group in self._groups])

    def draw(self, chance: random.Random) -> _Shown:
        """The images of one step."""
        device, mosaics = self.images.device, self._recipe.mosaics
        count = min(self._recipe.loop.batch_size // 2, len(self._groups))
        generator = torch.Generator().manual_seed(chance.getrandbits(62))
        groups = torch.multinomial(self._weights, count, generator=generator).tolist()
        pairs = [chance.sample(self._groups[group], 2) for group in groups]
        index = [first for first, _ in pairs] + [second for _, second in pairs]
        styles = chance.choices(range(len(self._by_style)), k=mosaics)
        pieces = [piece for each in styles for piece in chance.choices(self._by_style[each], k=4)]
        generator = torch.Generator(device).manual_seed(chance.getrandbits(62))
        looks = [chance.getrandbits(30) for _ in range(count)]
        seeds = [looks[place // 2] for place in range(count)]
        copies, _ = restyled(self.images[index[:count]], seeds)
        every = torch.cat([self.images[index], copies, self.images[pieces]])
        moved = _augment(every, generator, self._recipe.pixels)
        contents = torch.arange(count + mosaics, device=device)
        synthetic = len(self._by_style) + contents[:count] // 2
        return _Shown(
            index,
            torch.cat([moved[: 3 * count], _mosaic(moved[3 * count :], chance)]),
            torch.cat([contents[:count].repeat(3), contents[count:]]),
            torch.cat([self._style_of[index], synthetic, torch.tensor(styles, device=device)]),
            functional.pad(self._excluded[index], (0, 0, 0, count + mosaics)),
        )


def _augment(tiles_BCHW: Tensor, generator: torch.Generator, pixels: int) -> Tensor:
    """Images of `pixels` side in [-1, 1], moved, turned, mirrored, tinted, blurred, noisy."""
    device, count = tiles_BCHW.device, len(tiles_BCHW)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
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


def _mosaic(parts_BCHW: Tensor, generator: random.Random) -> Tensor:
    """Four pieces of four images each, from about the middle: a style without a content."""
    half = parts_BCHW.shape[-1] // 2
    down, right = (generator.randint(half // 3, half - half // 3) for _ in "yx")
    pieces = parts_BCHW[:, :, down : down + half, right : right + half]
    quarters = pieces.unflatten(0, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5)
    return quarters.flatten(2, 3).flatten(3, 4)


def _style_words(cells: list[Cell]) -> dict[str, str]:
    """Words of each style by its name, in the cells' order."""
    return {cell.style.id: cell.style.words for cell in cells}


def _tokens(cells: list[Cell], tokenizer: CLIPTokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids: three wordings of content and style, two of the content, one of each style."""
    words = [(with_article(cell.content.name), cell.style.words) for cell in cells]

    def ids(roll: float, styled: bool) -> Tensor:
        texts = [captions.phrase(thing, style if styled else "", roll) for thing, style in words]
        return captions.tokenize(tokenizer, texts)

    styles = [STYLE_TEMPLATE.format(words) for words in _style_words(cells).values()]
    fulls = torch.stack([ids(roll, True) for roll in (0.0, 0.7, 0.9)])
    plains = torch.stack([ids(roll, False) for roll in (0.0, 0.9)])
    return fulls, plains, captions.tokenize(tokenizer, styles)


@torch.no_grad()
def _count_statistics(model: CLIP, views: _Views, recipe: ClipRecipe) -> None:
    """Count batch statistics anew: averaged weights have other ones than the last weights."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # a plain mean over the batches below
    model.train()
    generator = random.Random(recipe.loop.seed)
    for _ in range(24):
        model.encode_image(views.draw(generator).images)
    model.eval()


def _save(model: CLIP, config: dict[str, Any], tiles: Tiles, folder: Path) -> None:
    """Write the files that open_clip reads, and names.json: what it calls contents and styles."""
    tiles.tokenizer().save_pretrained(folder)
    weights = {key: value.cpu().half().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    preprocess: dict[str, object] = {"interpolation": "bicubic", "resize_mode": "squash"}
    preprocess |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    contents = {cell.content.id: with_article(cell.content.name) for cell in tiles.cells}
    names = {
        "content": {"template": "{}", "words": contents},
        "style": {"template": STYLE_TEMPLATE, "words": _style_words(tiles.cells)},
    }
    files = {"open_clip_config": {"model_cfg": config, "preprocess_cfg": preprocess}}
    for name, content in (files | {"names": names}).items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
