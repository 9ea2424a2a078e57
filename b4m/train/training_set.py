"""Pictures of a concept as training sees them, and the denoising loss on them.

Shape suffixes: N pictures, B batch, C H W latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from b4m.bases.base import Base, Conditioning
from b4m.data.cache import Cache
from b4m.data.images import fit_square, load_image
from b4m.data.manifest import ManifestRow


@dataclass(frozen=True)
class TrainingSet:
    """N pictures: posterior of their latents and their captions' conditioning, on the CPU.

    The first axis of the latents holds the picture as it is and, if pictures may be flipped, its
    mirror image: (V, N, C, H, W) with V = 1 or 2.
    """

    mean_VNCHW: Tensor
    std_VNCHW: Tensor
    text: Conditioning

    def __len__(self) -> int:
        return self.mean_VNCHW.shape[1]

    def sample(
        self, rows: Sequence[int], generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Conditioning]:
        """Latents (B, C, H, W) drawn from the posterior, and the captions' conditioning."""
        index = list(rows)
        variants = self.mean_VNCHW.shape[0]
        flips = torch.randint(variants, (len(index),), generator=generator)
        mean_BCHW = self.mean_VNCHW[flips, index]
        jitter_BCHW = torch.randn(mean_BCHW.shape, generator=generator)
        x0_BCHW = mean_BCHW + self.std_VNCHW[flips, index] * jitter_BCHW
        return x0_BCHW.to(device), self.text[index].to(device)


def read_training_set(
    folder: Path, rows: Sequence[ManifestRow], base: Base, cache: Cache, flip: bool = False
) -> TrainingSet:
    """Load and encode pictures and captions, each once and for all runs that share the cache.

    Args:
        folder: prepared data folder.
        rows: lines of its manifest.
        base: says the size of the pictures.
        cache: of that base.
        flip: also keep the mirror images.
    """
    from PIL import ImageOps

    images = [fit_square(load_image(folder / row.file), base.pixels) for row in rows]
    variants = [images, [ImageOps.mirror(image) for image in images]] if flip else [images]
    latents = [cache.latents(variant) for variant in variants]
    return TrainingSet(
        torch.stack([mean for mean, _ in latents]),
        torch.stack([std for _, std in latents]),
        cache.texts([row.caption for row in rows]),
    )


@dataclass(frozen=True)
class Noise:
    """Noise and timesteps of a batch, on the base's device."""

    noise_BCHW: Tensor
    t_B: Tensor

    @classmethod
    def sample(cls, base: Base, batch_size: int, generator: torch.Generator) -> "Noise":
        """Normal noise and uniform timesteps for B latents."""
        noise_BCHW = torch.randn((batch_size, *base.latent_shape), generator=generator)
        t_B = base.noising.sample_times(batch_size, generator)
        return cls(noise_BCHW.to(base.device), t_B.to(base.device))

    def __getitem__(self, rows: Sequence[int]) -> "Noise":
        return Noise(self.noise_BCHW[list(rows)], self.t_B[list(rows)])


def denoising_losses(
    model: nn.Module,
    base: Base,
    x0_BCHW: Tensor,
    noise: Noise,
    text: Conditioning,
    min_snr_gamma: float = 0.0,
) -> Tensor:
    """Mean squared error (B,) between the denoiser's output and what it should be.

    Args:
        model: the denoiser, adapted.
        base: its noising says what the output should be.
        x0_BCHW: clean latents.
        noise: of the same B.
        text: conditioning of the B captions.
        min_snr_gamma: gamma of `Noising.min_snr_weight`; 0 is none.
    """
    noising = base.noising
    noisy_BCHW = noising.add(x0_BCHW, noise.noise_BCHW, noise.t_B)
    output_BCHW = base.predict(model, noisy_BCHW, noise.t_B, text)
    target_BCHW = noising.target(x0_BCHW, noise.noise_BCHW, noise.t_B)
    loss_B = (output_BCHW - target_BCHW).square().flatten(1).mean(dim=1)
    if min_snr_gamma > 0:
        loss_B = loss_B * noising.min_snr_weight(noise.t_B, min_snr_gamma)
    return loss_B
