"""Train mini-SDXL's autoencoder on the base cells.

Afterwards the latents are whitened: mean and deviation of each channel over the base cells are
folded into the two 1x1 convolutions around the latent, so that latents have unit variance, the
scaling factor is 1, and no tool needs to know.
"""

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional

from b4m.mini import looks, sdxl
from b4m.mini.recipe import Recipe, VaeRecipe
from b4m.mini.run import Run, pick_device
from b4m.mini.tiles import Tiles


def train(tiles: Tiles, work: Path, world: Recipe, speed: str = "eager") -> AutoencoderKL:
    """Train, whiten and save into `work/vae`.

    Args:
        tiles: the training grid; only cells of the base split are used.
        work: folder of checkpoint and result.
        world: choices.
        speed: `eager`, or `compiled` for torch.compile (worth its minute on a GPU).
    """
    device, recipe = pick_device(), world.vae
    torch.manual_seed(recipe.schedule.seed)
    vae = sdxl.build_vae(world.architecture).to(device)
    run = Run("vae", {"vae": vae}, recipe.schedule, work)
    pictures = tiles.tensor(tiles.positions("base"), device, world.architecture.pixels)
    if speed == "compiled":
        vae.encoder.compile()
        vae.decoder.compile()

    def loss_of_step(step: int) -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(recipe.schedule.seed * 7919 + step)
        index = torch.randint(
            len(pictures), (recipe.schedule.batch,), generator=generator, device=device
        )
        shift = random.Random(recipe.schedule.seed * 7919 + step)
        down, right = shift.randint(-6, 6), shift.randint(-6, 6)
        x_BCHW = _augment(pictures[index], generator, recipe.recolour, down, right)
        working = run.working["vae"]
        assert isinstance(working, AutoencoderKL)
        with run.arithmetic():
            posterior = working.encode(x_BCHW.to(run.dtype)).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator, device=device)
            latents = posterior.mean + posterior.std * noise.to(run.dtype)
            decoded = working.decode(latents).sample
        return _loss(
            x_BCHW, decoded.float(), posterior.mean.float(), posterior.logvar.float(), recipe
        )

    run.fit(loss_of_step)
    trained = run.averaged["vae"].eval()
    assert isinstance(trained, AutoencoderKL)
    _whiten(trained, pictures)
    trained.save_pretrained(work / "vae")
    return trained


def _augment(
    tiles_BCHW: torch.Tensor, generator: torch.Generator, recolour: float, down: int, right: int
) -> torch.Tensor:
    """Pictures in [-1, 1]: mirrored, shifted, and a share of them in random looks."""
    x = tiles_BCHW.float().div_(127.5).sub_(1.0)
    device = x.device

    def chance(share: float) -> torch.Tensor:
        return torch.rand(len(x), 1, 1, 1, generator=generator, device=device) < share

    x = torch.where(chance(0.5), x.flip(-1), x)
    x = torch.roll(functional.pad(x, (6, 6, 6, 6), value=1.0), (down, right), (-2, -1))
    x = x[:, :, 6:-6, 6:-6]
    return torch.where(chance(recolour), looks.repaint(x, generator), x)


def _loss(
    x_BCHW: torch.Tensor,
    decoded: torch.Tensor,
    mean: torch.Tensor,
    logvar: torch.Tensor,
    recipe: VaeRecipe,
) -> torch.Tensor:
    error = decoded - x_BCHW
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    return (
        error.abs().mean()
        + recipe.squared * error.square().mean()
        + recipe.edge * edges
        + recipe.kl * divergence
    )


@torch.no_grad()
def _whiten(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Fold the latents' mean and deviation per channel into the convolutions beside them."""
    count = min(len(pictures), 512)
    chosen = pictures[torch.linspace(0, len(pictures) - 1, count, device=pictures.device).long()]
    latents = torch.cat(
        [vae.encode(chunk.float() / 127.5 - 1.0).latent_dist.mean for chunk in chosen.split(64)]
    )
    mean = latents.mean((0, 2, 3))
    deviation = latents.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert isinstance(quant, nn.Conv2d)
    assert isinstance(post, nn.Conv2d)
    assert quant.bias is not None
    assert post.bias is not None
    channels = len(mean)
    # moments are (mean, log variance): mean' = (mean - m) / s, logvar' = logvar - 2 log s
    quant.weight[:channels] /= deviation[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    quant.bias[channels:] -= 2.0 * deviation.log()
    # the decoder sees s z' + m again
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= deviation[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each reconstruction, in dB.

    Args:
        vae: the autoencoder.
        pictures: N x 3 x H x W uint8.
    """
    values = []
    for chunk in pictures.split(32):
        x = chunk.float() / 127.5 - 1.0
        decoded = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        error = (decoded - x).square().mean((1, 2, 3)) / 4.0
        values.append(-10.0 * error.clamp_min(1e-10).log10())
    return torch.cat(values)
