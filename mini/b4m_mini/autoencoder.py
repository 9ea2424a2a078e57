"""Train mini-SDXL's autoencoder on the base cells.

Afterwards the latents are whitened: mean and deviation of each channel over the base cells are
folded into the two 1x1 convolutions around the latent, so that latents have unit variance, the
scaling factor is 1, and no tool needs to know.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from b4m.bases.base import pick_device
from b4m.testing import build_vae
from b4m.training.loop import Batch
from b4m_mini import trainer
from b4m_mini.recipe import VaeRecipe
from b4m_mini.tiles import Tiles, restyled

_SHIFT = 6  # pixels at the most


class _Autoencoder(nn.Module):
    """Encoder and decoder with the random draw between them, as one thing to train."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x_BCHW: Tensor, noise_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decoded images, means and log variances of the posterior, in float32."""
        posterior = self.vae.encode(x_BCHW).latent_dist
        decoded = self.vae.decode(posterior.mean + posterior.std * noise_BCHW).sample
        return decoded.float(), posterior.mean.float(), posterior.logvar.float()


def train(tiles: Tiles) -> None:
    """Train on cells of the base split, whiten and save into `tiles.work/vae`."""
    device, recipe, architecture = pick_device("auto"), tiles.recipe.vae, tiles.recipe.architecture
    torch.manual_seed(recipe.loop.seed)
    vae = build_vae(architecture).to(device)
    images = tiles.tensor(tiles.positions("base"), device, architecture.pixels)
    copies, _ = restyled(images, range(len(images)))
    side = architecture.pixels // 2 ** (len(architecture.vae_channels) - 1)

    def loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Mapping[str, Tensor]:
        chance = torch.rand(len(batch.rows), 1, 1, 1, generator=generator, device=device)
        drawn = torch.where(chance < recipe.restyled, copies[batch.rows], images[batch.rows])
        x_BCHW = _augment(drawn, generator)
        shape = (len(x_BCHW), architecture.latent_channels, side, side)
        noise = torch.randn(shape, generator=generator, device=device)
        return _losses(x_BCHW, model(x_BCHW, noise), recipe)

    trainer.train("vae", _Autoencoder(vae), loss, images, recipe, tiles)
    _whiten(vae.eval(), images)
    if trainer.is_main_process():
        vae.save_pretrained(tiles.work / "vae")


def _augment(tiles_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Images in [-1, 1]: some mirrored, all shifted alike."""
    x, device = tiles_BCHW.float() / 127.5 - 1.0, tiles_BCHW.device
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator, device=device) < 0.5
    x = functional.pad(torch.where(mirrored, x.flip(-1), x), (_SHIFT,) * 4, value=1.0)
    top, left = torch.randint(2 * _SHIFT + 1, (2,), generator=generator, device=device).tolist()
    return x[:, :, top : top + tiles_BCHW.shape[2], left : left + tiles_BCHW.shape[3]]


def _losses(x_BCHW: Tensor, output: Sequence[Tensor], recipe: VaeRecipe) -> dict[str, Tensor]:
    """Each per image; "loss" is their weighted sum."""
    decoded, mean, logvar = output
    error = decoded - x_BCHW
    edges = sum(error.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (-1, -2))
    absolute, squared = error.abs().mean((1, 2, 3)), error.square().mean((1, 2, 3))
    divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean((1, 2, 3))
    total = absolute + recipe.squared * squared + recipe.edge * edges + recipe.kl * divergence
    return {"loss": total, "squared": squared, "kl": divergence}


@torch.no_grad()
def _whiten(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold the latents' mean and deviation per channel into the convolutions beside them."""
    count = min(len(images), 512)
    some = images[torch.linspace(0, len(images) - 1, count, device=images.device).long()]
    latents = torch.cat(
        [vae.encode(chunk.float() / 127.5 - 1.0).latent_dist.mean for chunk in some.split(64)]
    )
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    quant: Any = vae.quant_conv
    post: Any = vae.post_quant_conv
    channels = len(mean)
    # moments are (mean, log variance): mean' = (mean - m) / s, logvar' = logvar - 2 log s
    quant.weight[:channels] /= deviation[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    quant.bias[channels:] -= 2.0 * deviation.log()
    # the decoder sees s z' + m again
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= deviation[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)
