"""Images to latents and back, always through a float32 VAE.

Latents are in the denoiser's scale: (z - mean) / std * scaling_factor, with the VAE's own mean and
std where its config has them; a single shift_factor stands for the mean where it has that.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_IMAGES_AT_ONCE = 8


@torch.no_grad()
def encode(vae: Any, device: torch.device, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation of the latents, both (B, C, H, W) in float32.

    `mean + std * noise` is a draw from the posterior; the mean alone is the usual point estimate.

    Args:
        vae: diffusers' AutoencoderKL.
        device: where it computes.
        images: B RGB images, all of one size that the VAE's factor divides.
    """
    shift, scale = _normalization(vae, device)
    means, stds = [], []
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        x_BCHW = torch.stack([_to_tensor(p) for p in images[start : start + _IMAGES_AT_ONCE]])
        posterior = vae.encode(x_BCHW.to(device)).latent_dist
        means.append((posterior.mean - shift) * scale)
        stds.append(posterior.std * scale)
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def decode(vae: Any, device: torch.device, latents_BCHW: Tensor) -> list[Image.Image]:
    """B RGB images of latents in the denoiser's scale."""
    shift, scale = _normalization(vae, device)
    images = []
    for part_BCHW in latents_BCHW.to(device, torch.float32).split(_IMAGES_AT_ONCE):
        x_BCHW = vae.decode(part_BCHW / scale + shift, return_dict=False)[0]
        pixels_BHWC = (x_BCHW / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        images += [Image.fromarray((x * 255).round().astype(np.uint8)) for x in pixels_BHWC]
    return images


def _to_tensor(image: Image.Image) -> Tensor:
    """RGB image as (3, H, W) in [-1, 1]."""
    x_HWC = torch.from_numpy(np.array(image.convert("RGB"), dtype=np.float32))
    return x_HWC.permute(2, 0, 1) / 127.5 - 1.0


def _normalization(vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shift and scale of the VAE's own latents to the denoiser's, broadcast over (B, C, H, W)."""
    config = vae.config
    mean = getattr(config, "latents_mean", None)
    std = getattr(config, "latents_std", None)
    single = getattr(config, "shift_factor", None) or 0.0
    shift = torch.tensor(mean if mean is not None and std is not None else [single])
    spread = torch.tensor(std if mean is not None and std is not None else [1.0])
    scale = float(config.scaling_factor) / spread
    return shift.view(1, -1, 1, 1).to(device), scale.view(1, -1, 1, 1).to(device)
