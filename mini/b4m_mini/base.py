"""Train mini-SDXL: UNet and both text encoders, on cached latents of the base cells.

tiles -> autoencoder (frozen) -> latent means and deviations, kept in memory
captions -> many wordings per cell, tokenized once
other contents: the drawn cells of all other base contents, some called by their class
synthetic styles: base cells restyled at random, and blends of painted styles, both described
step: cells drawn by weight, a wording each, noise, v-prediction, mean squared error
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTokenizer

from b4m.bases.base import pick_device
from b4m.bases.noising import Diffusion
from b4m.testing import build_pipeline, write_recipe
from b4m.training.loop import Batch
from b4m_mini import captions, trainer
from b4m_mini.catalog import DRAWN, PAINTED
from b4m_mini.grid import Cell
from b4m_mini.recipe import BaseRecipe
from b4m_mini.tiles import Tiles, core_contents, restyled, shrunk

NAMED_BELOW = 0.4  # share of restyled drawings whose own style is named as well
UNNAMED = 0.3  # share of other contents, and of those in a synthetic style, that have no name


class _TextConditioned(nn.Module):
    """The UNet with its two text encoders, as one thing to train."""

    def __init__(self, unet: nn.Module, first: nn.Module, second: nn.Module, pixels: int) -> None:
        super().__init__()
        self.unet, self.first, self.second, self.pixels = unet, first, second, pixels
        # SDXL reads the layer before the last: what comes after it would never get a gradient
        text_model: Any = getattr(first, "text_model", first)
        text_model.encoder.layers[-1].requires_grad_(False)
        text_model.final_layer_norm.requires_grad_(False)

    def forward(self, x_BCHW: Tensor, t_B: Tensor, tokens_BT: Tensor, keep_B: Tensor) -> Tensor:
        """Predict v; where `keep_B` is 0 the caption is dropped: its embeddings are zeros."""
        one = self.first(tokens_BT, output_hidden_states=True)
        two = self.second(tokens_BT, output_hidden_states=True)
        hidden = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1)
        side = float(self.pixels)
        size = x_BCHW.new_tensor([side, side, 0.0, 0.0, side, side]).expand(len(x_BCHW), 6)
        added = {"text_embeds": two.text_embeds * keep_B[:, None], "time_ids": size}
        return self.unet(
            x_BCHW, t_B, hidden * keep_B[:, None, None], added_cond_kwargs=added, return_dict=False
        )[0]


def train(tiles: Tiles) -> None:
    """Train on cells of the base split; save a diffusers folder in fp16.

    The trained autoencoder lies in `tiles.work/vae`, the result in `tiles.work/mini-sdxl`.
    """
    device, recipe, tokenizer = pick_device("auto"), tiles.recipe.base, tiles.tokenizer()
    if recipe.start:
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            recipe.start, torch_dtype=torch.float32
        )
        pipeline.tokenizer = pipeline.tokenizer_2 = tokenizer
    else:
        pipeline = build_pipeline(tiles.recipe.architecture, tokenizer, recipe.loop.seed)
    pipeline.vae = AutoencoderKL.from_pretrained(tiles.work / "vae").to(device).eval()
    parts = pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2
    if device.type == "cpu":  # plain attention: three times faster here than the fused kernel
        pipeline.unet.set_attn_processor(AttnProcessor())
        for encoder in parts[1:]:
            encoder.set_attn_implementation("eager")
    model = _TextConditioned(*parts, tiles.recipe.architecture.pixels).to(device)
    shown = _gather(tiles, pipeline.vae, tokenizer, device)
    alphas = pipeline.scheduler.alphas_cumprod.to(device).float()
    alphas[-1] = 0.0  # the scheduler keeps 2 ** -24 there, for sampling
    noising = Diffusion(alphas, "v_prediction")

    def loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Mapping[str, Tensor]:
        size = len(batch.rows)
        index = torch.multinomial(shown.weights, size, replacement=True, generator=generator)
        wording = torch.randint(recipe.variants, (size,), generator=generator, device=device)
        t_B = torch.randint(len(alphas), (size,), generator=generator, device=device)
        shape = (2, size, *shown.mean.shape[1:])
        spread, noise = torch.randn(shape, generator=generator, device=device)
        x0 = shown.mean[index].float() + shown.deviation[index].float() * spread
        keep = torch.rand(size, generator=generator, device=device) >= recipe.unconditional
        tokens = shown.tokens[index, wording].long()
        v = model(noising.add(x0, noise, t_B), t_B, tokens, keep.float())
        return {"loss": (v.float() - noising.target(x0, noise, t_B)).square().mean((1, 2, 3))}

    trainer.train("base", model, loss, shown.mean, recipe, tiles)
    if trainer.is_main_process():
        pipeline.to(torch.float16).save_pretrained(tiles.work / "mini-sdxl")
        write_recipe(tiles.work / "mini-sdxl")


@dataclass(frozen=True)
class _Shown:
    """What a training draws from, kept in memory: N images with V wordings each.

    Attributes:
        mean, deviation: N x C x h x w, of the autoencoder's posterior.
        tokens: N x V x T token ids.
        weights: N, how often each is drawn.
    """

    mean: Tensor
    deviation: Tensor
    tokens: Tensor
    weights: Tensor


def _gather(
    tiles: Tiles, vae: AutoencoderKL, tokenizer: CLIPTokenizer, device: torch.device
) -> _Shown:
    """Base cells of the recipe's contents; of all others; and of all in synthetic styles."""
    cells, base, recipe = tiles.cells, tiles.positions("base"), tiles.recipe.base
    known = core_contents(cells, tiles.recipe.contents)
    named = [p for p in base if cells[p].content.id in known]
    drawn = [p for p in base if cells[p].style.kind == DRAWN]
    others = [p for p in drawn if cells[p].content.id not in known]
    side = int(vae.config["sample_size"])
    images = [tiles.tensor(some, device, side) for some in (named, others) if some]
    copies, called = _described(tiles, drawn, named, device, side)
    images += [copies, shrunk(tiles.blended, range(len(tiles.blends)), device, side)]
    mean, deviation = _latents(vae, torch.cat(images))
    called += tiles.blends
    vague = replace(recipe, nameless=UNNAMED)
    parts = [
        ([cells[p] for p in named], recipe),
        ([cells[p] for p in others], vague),
        (called, replace(vague, styleless=0.0, nonsense_style=0.0)),
    ]
    tokens = [_tokens(some, tokenizer, each) for some, each in parts if some]
    share = recipe.others if others else 0.0
    painted = torch.tensor([cells[p].style.kind == PAINTED for p in named])
    chance = torch.where(painted, recipe.painted, 1.0 - recipe.painted)
    chance /= torch.where(painted, painted.sum(), (~painted).sum()).clamp_min(1)
    weights = [
        chance * (1.0 - share - recipe.synthetic),
        torch.full((len(others),), share / max(1, len(others))),
        torch.full((len(called),), recipe.synthetic / len(called)),
    ]
    return _Shown(mean, deviation, torch.cat(tokens).to(device), torch.cat(weights).to(device))


def _described(
    tiles: Tiles, drawn: list[int], named: list[int], device: torch.device, side: int
) -> tuple[Tensor, list[Cell]]:
    """Base cells restyled at random, N x 3 x side x side, and the cells with words for that."""
    recipe, cells = tiles.recipe.base, tiles.cells
    random = Random(recipe.loop.seed)
    painted = [p for p in named if cells[p].style.kind == PAINTED]
    half = recipe.described // 2
    picked = random.choices(drawn, k=recipe.described - half)
    picked += random.choices(painted or drawn, k=half)
    copies, looks = restyled(tiles.tensor(picked, device, side), range(len(picked)))
    called = []
    for cell, look in zip((cells[p] for p in picked), looks, strict=True):
        both = cell.style.kind == PAINTED or random.random() < NAMED_BELOW
        words = f"{look} {cell.style.words}" if both else look
        called.append(replace(cell, style=replace(cell.style, words=words)))
    return copies, called


@torch.no_grad()
def _latents(vae: AutoencoderKL, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior means and deviations of uint8 images, N x C x h x w."""
    chunks = (chunk.float() / 127.5 - 1.0 for chunk in images_NCHW.split(128))
    posteriors = (vae.encode(chunk).latent_dist for chunk in chunks)
    pairs = [(each.mean.bfloat16(), each.std.bfloat16()) for each in posteriors]
    return torch.cat([mean for mean, _ in pairs]), torch.cat([std for _, std in pairs])


def _tokens(cells: list[Cell], tokenizer: CLIPTokenizer, recipe: BaseRecipe) -> Tensor:
    """Token ids of several wordings per cell, N x V x T."""
    generator = Random(recipe.loop.seed)
    texts = [
        captions.caption(cell.content, cell.style, generator, recipe)
        for cell in cells
        for _ in range(recipe.variants)
    ]
    ids = captions.tokenize(tokenizer, texts)
    return ids.to(torch.int16).reshape(len(cells), recipe.variants, -1)
