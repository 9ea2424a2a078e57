"""Train mini-SDXL: UNet and both text encoders, on cached latents of the base cells.

tiles -> autoencoder (frozen) -> latent means and deviations, kept in memory
captions -> many wordings per cell, tokenized once
other things: the drawn cells of all other base contents, some called by their class
made-up looks: cells of all base contents, repainted, a word for each look
step: cells drawn by weight, a wording each, noise, v-prediction, mean squared error
"""

import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTokenizer

from b4m.mini import captions, sdxl, tokenizer
from b4m.mini.grid import Cell
from b4m.mini.looks import repaint
from b4m.mini.recipe import BaseRecipe, Recipe
from b4m.mini.run import Run, pick_device
from b4m.mini.styles import DRAWN, PAINTED, STYLES
from b4m.mini.tiles import Tiles, core, named


def learn_tokenizer(tiles: Tiles, world: Recipe, work: Path) -> CLIPTokenizer:
    """The vocabulary of both models: names, tags, classes of the recipe's contents, style words.

    Any other name is spelled in smaller pieces. It is learned once and kept in `work/tokenizer`:
    the learner breaks ties by chance, and a resumed training must meet the same rows again.
    """
    folder = work / "tokenizer"
    if folder.exists():
        return CLIPTokenizer.from_pretrained(folder)
    wanted = set(named(tiles.cells, world.contents))
    contents = dict.fromkeys(c.content for c in tiles.cells if c.content.id in wanted)
    texts = []
    for content in contents:
        tags = ", ".join(content.tags)
        for style in STYLES[:2]:
            texts.append(f"{captions.full(content, style)} {content.class_word} {tags}")
    texts += [f"a picture in {style.words} style: {style.description}" for style in STYLES] * 30
    texts += ["a picture of a in style"] * 200
    learned = tokenizer.learn(texts, world.vocabulary, world.architecture.max_tokens)
    tokenizer.save(learned, folder)
    return learned


LOOKS = 256  # made-up looks at the most, each with a word of its own
DRAWINGS = 32  # kept in memory of each made-up look
UNNAMED = 0.3  # share of other things, and of things in a made-up look, that have no name


class TextConditioned(nn.Module):
    """The UNet with its two text encoders, as one thing to train."""

    def __init__(self, unet: nn.Module, first: nn.Module, second: nn.Module, pixels: int) -> None:
        super().__init__()
        self.unet, self.first, self.second, self.pixels = unet, first, second, pixels

    def forward(
        self, x_BCHW: torch.Tensor, t_B: torch.Tensor, tokens_BT: torch.Tensor, keep_B: torch.Tensor
    ) -> torch.Tensor:
        """Predict v.

        Args:
            x_BCHW: noisy latents.
            t_B: time steps.
            tokens_BT: token ids.
            keep_B: 0 where the caption is dropped (its embeddings are zeros), else 1.
        """
        one = self.first(tokens_BT, output_hidden_states=True)
        two = self.second(tokens_BT, output_hidden_states=True)
        hidden = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
        side = float(self.pixels)
        size = x_BCHW.new_tensor([side, side, 0.0, 0.0, side, side]).expand(len(x_BCHW), 6)
        added = {"text_embeds": two.text_embeds * keep_B[:, None], "time_ids": size}
        return self.unet(
            x_BCHW, t_B, hidden * keep_B[:, None, None], added_cond_kwargs=added, return_dict=False
        )[0]


def train(tiles: Tiles, work: Path, world: Recipe, speed: str = "eager") -> None:
    """Train and save a diffusers folder into `work/mini-sdxl` (fp16).

    Args:
        tiles: the training grid; only cells of the base split are used.
        work: folder of checkpoint and result; `work/vae` holds the trained autoencoder.
        world: choices.
        speed: `eager`, or `compiled` for torch.compile (worth its minute on a GPU).
    """
    device, recipe = pick_device(), world.base
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device).eval()
    vocabulary = learn_tokenizer(tiles, world, work)
    torch.manual_seed(recipe.schedule.seed)
    pipeline = sdxl.build_pipeline(world.architecture, vocabulary, recipe.schedule.seed)
    pipeline.vae = vae
    unet = pipeline.unet.to(device)
    if device.type == "cpu":  # plain attention: three times faster here than the fused kernel
        unet.set_attn_processor(AttnProcessor())
        for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
            encoder.set_attn_implementation("eager")
    model = TextConditioned(
        unet, pipeline.text_encoder, pipeline.text_encoder_2, world.architecture.pixels
    ).to(device)
    run = Run("base", {"model": model}, recipe.schedule, work)
    shown = _gather(tiles, vae, vocabulary, recipe, device)
    alphas = pipeline.scheduler.alphas_cumprod.to(device).float()
    alphas[-1] = 0.0  # the scheduler keeps 2 ** -24 there, for sampling
    if speed == "compiled":
        unet.compile()

    def loss_of_step(step: int) -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(recipe.schedule.seed * 7919 + step)
        size = recipe.schedule.batch
        index = torch.multinomial(shown.weights, size, replacement=True, generator=generator)
        wording = torch.randint(recipe.variants, (size,), generator=generator, device=device)
        t = torch.randint(1000, (size,), generator=generator, device=device)
        shape = (size, *shown.mean.shape[1:])
        draw, noise = torch.randn((2, *shape), generator=generator, device=device)
        x0 = shown.mean[index].float() + shown.deviation[index].float() * draw
        signal = alphas[t].sqrt()[:, None, None, None]
        sigma = (1.0 - alphas[t]).sqrt()[:, None, None, None]
        keep = torch.rand(size, generator=generator, device=device) >= recipe.unconditional
        noisy = (signal * x0 + sigma * noise).to(run.dtype)
        with run.arithmetic():
            words = shown.tokens[index, wording].long()
            v = run.working["model"](noisy, t, words, keep.to(run.dtype))
        return (v.float() - (signal * noise - sigma * x0)).square().mean()

    run.fit(loss_of_step)
    if run.rank == 0:
        save(run, pipeline, work / "mini-sdxl")


def save(run: Run, pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
    """Write the averaged weights as an ordinary diffusers folder in fp16."""
    averaged = run.averaged["model"]
    assert isinstance(averaged, TextConditioned)
    result = StableDiffusionXLPipeline(
        vae=pipeline.vae,
        text_encoder=averaged.first,
        text_encoder_2=averaged.second,
        tokenizer=pipeline.tokenizer,
        tokenizer_2=pipeline.tokenizer,
        unet=averaged.unet,
        scheduler=pipeline.scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    assert isinstance(averaged.unet, UNet2DConditionModel)
    result.to(torch.float16).save_pretrained(folder)
    print(f"saved {folder}", file=sys.stderr)


@dataclass(frozen=True)
class _Shown:
    """What a training draws from, kept in memory: N pictures with V wordings each.

    Attributes:
        mean: N x C x h x w, of the autoencoder's posterior.
        deviation: of the same shape.
        tokens: N x V x T token ids.
        weights: N, how often each is drawn.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    tokens: torch.Tensor
    weights: torch.Tensor


def _gather(
    tiles: Tiles,
    vae: AutoencoderKL,
    vocabulary: CLIPTokenizer,
    recipe: BaseRecipe,
    device: torch.device,
) -> _Shown:
    """The base cells of the recipe's contents; of all others; and of all in made-up looks."""
    cells, base = tiles.cells, tiles.positions("base")
    known = core(cells, recipe.contents)
    named = [p for p in base if cells[p].content.id in known]
    drawn = [p for p in base if cells[p].style.kind == DRAWN]
    others = [p for p in drawn if cells[p].content.id not in known]
    taken = [f"{c.content.name} {c.content.class_word} {c.style.words}" for c in cells]
    words = captions.made_up(vocabulary, taken, LOOKS)
    strange = random.Random(recipe.schedule.seed).choices(drawn, k=len(words) * DRAWINGS)
    chance = torch.Generator(device).manual_seed(recipe.schedule.seed)
    side = int(vae.config["sample_size"])

    def pictures(positions: list[int], size: int = 128) -> Iterator[torch.Tensor]:
        for start in range(0, len(positions), size):
            yield tiles.tensor(positions[start : start + size], device, side).float() / 127.5 - 1.0

    repainted = (repaint(look, chance, each=DRAWINGS) for look in pictures(strange, DRAWINGS))
    mean, deviation = _latents(vae, chain(pictures(named), pictures(others), repainted))
    looks = [replace(cells[p].style, words=words[i // DRAWINGS]) for i, p in enumerate(strange)]
    vague = replace(recipe, nameless=UNNAMED)
    always = replace(vague, styleless=0.0, nonsense_style=0.0)
    called = [replace(cells[p], style=look) for p, look in zip(strange, looks, strict=True)]
    tokens = [
        _tokens([cells[p] for p in named], vocabulary, recipe),
        _tokens([cells[p] for p in others], vocabulary, vague),
        _tokens(called, vocabulary, always),
    ]
    share = recipe.others if others else 0.0
    weights = [
        _weights(tiles, named, recipe) * (1.0 - share - recipe.looks),
        torch.full((len(others),), share / max(1, len(others))),
        torch.full((len(strange),), recipe.looks / len(strange)),
    ]
    return _Shown(mean, deviation, torch.cat(tokens).to(device), torch.cat(weights).to(device))


@torch.no_grad()
def _latents(
    vae: AutoencoderKL, pictures: Iterable[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior means and deviations of chunks of pictures in [-1, 1], N x C x h x w."""
    means, deviations = [], []
    for chunk in pictures:
        posterior = vae.encode(chunk).latent_dist
        means.append(posterior.mean.bfloat16())
        deviations.append(posterior.std.bfloat16())
    return torch.cat(means), torch.cat(deviations)


def _tokens(cells: list[Cell], vocabulary: CLIPTokenizer, recipe: BaseRecipe) -> torch.Tensor:
    """Token ids of several wordings per cell, N x V x T."""
    generator = random.Random(recipe.schedule.seed)
    texts = [
        captions.caption(cell.content, cell.style, generator, recipe)
        for cell in cells
        for _ in range(recipe.variants)
    ]
    ids = vocabulary(
        texts, padding="max_length", truncation=True, max_length=vocabulary.model_max_length
    )["input_ids"]
    return torch.tensor(ids, dtype=torch.int16).reshape(len(cells), recipe.variants, -1)


def _weights(tiles: Tiles, positions: list[int], recipe: BaseRecipe) -> torch.Tensor:
    """How often each cell is drawn: painted cells together take their share."""
    painted = torch.tensor([tiles.cells[p].style.kind == PAINTED for p in positions])
    share = torch.where(painted, recipe.painted, 1.0 - recipe.painted)
    return share / torch.where(painted, painted.sum(), (~painted).sum()).clamp_min(1)
