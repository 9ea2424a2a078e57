"""Train mini-CLIP: open_clip's model classes and loss, own configuration, on the whole grid.

It judges what mini-SDXL draws, so it knows more than that model: all contents and all styles,
except the cells that its own test needs. It shares the tokenizer with mini-SDXL, and no weight.
"""

import json
import random
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch.nn import functional

from b4m.mini import captions, tokenizer
from b4m.mini.base import learn_tokenizer
from b4m.mini.grid import Cell
from b4m.mini.recipe import ClipRecipe, Recipe
from b4m.mini.run import Run, pick_device
from b4m.mini.tiles import Tiles

LOOK = "a picture in {} style"
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
    vocabulary = learn_tokenizer(tiles, world)
    torch.manual_seed(recipe.schedule.seed)
    config = model_config(recipe, len(vocabulary), world.architecture.max_tokens)
    model = CLIP(**config).to(device)
    run = Run("clip", {"clip": model}, recipe.schedule, work)
    positions = [i for i, cell in enumerate(tiles.cells) if seen(cell, recipe)]
    pictures = tiles.tensor(positions, device, recipe.pixels)
    cells = [tiles.cells[position] for position in positions]
    by_content: dict[str, list[int]] = {}
    by_style: dict[str, list[int]] = {}
    for index, cell in enumerate(cells):
        by_content.setdefault(cell.content.id, []).append(index)
        by_style.setdefault(cell.style.id, []).append(index)
    wordings = _Wordings(cells, vocabulary, device)
    loss_function = open_clip.ClipLoss()

    def loss_of_step(step: int) -> torch.Tensor:
        generator = random.Random(recipe.schedule.seed * 7919 + step)
        shares = (recipe.full_batches, 1.0 - recipe.full_batches - recipe.looks, recipe.looks)
        kind = generator.choices(("contents", "styles", "looks"), shares)[0]
        groups = by_style if kind == "looks" else by_content
        index = _batch(groups, kind, recipe, generator)
        tokens = wordings.draw(index, kind, generator)
        seed = torch.Generator(device).manual_seed(recipe.schedule.seed * 7919 + step)
        x_BCHW = augment(pictures[torch.tensor(index, device=device)], seed, recipe.pixels)
        with run.arithmetic():
            images, texts, scale = run.working["clip"](x_BCHW.to(run.dtype), tokens)
        return loss_function(images.float(), texts.float(), scale.float())

    run.fit(loss_of_step)
    _settle(run.averaged["clip"], pictures, recipe)
    folder = work / "mini-clip"
    _save(run.averaged["clip"], config, vocabulary, folder)
    (folder / "names.json").write_text(json.dumps(_names(tiles), indent=1) + "\n")


def _batch(
    groups: dict[str, list[int]], kind: str, recipe: ClipRecipe, generator: random.Random
) -> list[int]:
    """Positions of one batch: each content (or style) once, or few contents in many styles."""
    if kind != "styles":
        members = list(groups.values())
        chosen_members = generator.sample(members, min(len(members), recipe.schedule.batch))
        return [generator.choice(group) for group in chosen_members]
    chosen = generator.sample(sorted(groups), recipe.few_contents)
    each = recipe.schedule.batch // recipe.few_contents
    return [
        index
        for content in chosen
        for index in generator.sample(groups[content], min(each, len(groups[content])))
    ]


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
        self._looks = ids([LOOK.format(cell.style.words) for cell in cells])

    def draw(self, index: list[int], kind: str, generator: random.Random) -> torch.Tensor:
        """Token ids for these cells; wordings say only what is distinct in the batch, or all."""
        plain = kind == "contents" and generator.random() < 0.5
        table = generator.choice(self._plain if plain else self._full)
        if kind == "looks":
            table = self._looks
        return table[torch.tensor(index, device=table.device)]


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
    x = x * uniform(0.85, 1.1, 1, 1, 1) * uniform(0.93, 1.05, 3, 1, 1)
    x = x + uniform(-0.05, 0.05, 1, 1, 1)
    blurred = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, (uniform(-0.5, 1.0, 1, 1, 1)).clamp_min(0.0))
    noise = torch.randn(x.shape, generator=generator, device=device)
    x = x + noise * uniform(-0.05, 0.05, 1, 1, 1).clamp_min(0.0)
    return x.clamp(0, 1).mul(2.0).sub(1.0)


@torch.no_grad()
def _settle(model: torch.nn.Module, pictures: torch.Tensor, recipe: ClipRecipe) -> None:
    """Count batch statistics anew: averaged weights have other ones than the last weights."""
    assert isinstance(model, CLIP)
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # a plain mean over the batches below
    model.train()
    generator = torch.Generator(pictures.device).manual_seed(recipe.schedule.seed)
    for _ in range(24):
        index = torch.randint(len(pictures), (128,), generator=generator, device=pictures.device)
        model.encode_image(augment(pictures[index], generator, recipe.pixels))
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
