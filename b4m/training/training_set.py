"""Images of a concept as training sees them, and the denoising loss on them.

Shape suffixes: N images, B batch, C H W latents.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from b4m.bases.base import Base, Conditioning
from b4m.data.cache import Cache
from b4m.data.captions import check_trigger, content_caption
from b4m.data.images import fit_square, load_image
from b4m.data.manifest import ManifestRow
from b4m.data.restyle import identifier, restyle
from b4m.settings import Restyling
from b4m.training.randomness import derive_seed


@dataclass(frozen=True)
class Augmentation:
    """What is shown beside the images themselves.

    Attributes:
        flip: the mirror image, as often as the image.
        restyle: share of the shown content images that are restyled copies, in [0, 1).
        copies: restyled copies of each content image.
        words: how captions name a copy's look: "described", in words that a base may know, or
            "nonsense", an identifier such as "w@z" that names no look at all.
        seed: of the copies' looks.
    """

    flip: bool = False
    restyle: float = 0.0
    copies: int = 24
    words: str = "described"
    seed: int = 0

    @classmethod
    def of(cls, settings: Restyling, seed: int, flip: bool = False) -> "Augmentation":
        """What the settings ask for."""
        return cls(flip, settings.restyle, settings.restyle_copies, settings.restyle_words, seed)


@dataclass(frozen=True)
class TrainingSet:
    """N images: posterior of their latents, captions and the captions' conditioning, on the CPU.

    The first axis of the latents holds the image as it is and, if images may be flipped, its
    mirror image: (V, N, C, H, W) with V = 1 or 2.
    """

    mean_VNCHW: Tensor
    std_VNCHW: Tensor
    captions: tuple[str, ...]
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
    folder: Path,
    rows: Sequence[ManifestRow],
    base: Base,
    cache: Cache,
    augmentation: Augmentation | None = None,
) -> TrainingSet:
    """Load and encode images and captions, each once and for all runs that share the cache.

    Args:
        folder: prepared data folder.
        rows: lines of its manifest.
        base: says the size of the images.
        cache: of that base.
        augmentation: what else is shown; None is nothing.
    """
    augmentation = augmentation or Augmentation()
    for row in rows:
        _check_length(row, folder, base)
    shown = [
        pair
        for row in rows
        for pair in _shown(row, load_image(folder / row.file), base.pixels, augmentation)
    ]
    images = [image for image, _ in shown]
    captions = tuple(caption for _, caption in shown)
    mirrored = [[ImageOps.mirror(image) for image in images]] if augmentation.flip else []
    latents = [cache.latents(variant) for variant in (images, *mirrored)]
    return TrainingSet(
        torch.stack([mean for mean, _ in latents]),
        torch.stack([std for _, std in latents]),
        captions,
        cache.texts(captions),
    )


def _check_length(row: ManifestRow, folder: Path, base: Base) -> None:
    """Tell what the base does not read of a caption; a trigger among that is refused."""
    read = base.part_read(row.caption)
    if cut := row.caption[len(read) :].strip():
        where = f"{folder / row.file} ({row.source}), cut to the tokens that the base reads"
        check_trigger(read, row.trigger, where)
        warnings.warn(f"{where}: {cut!r} at the end of the caption is lost", stacklevel=2)


def _shown(
    row: ManifestRow, image: Image.Image, pixels: int, augmentation: Augmentation
) -> Iterator[tuple[Image.Image, str]]:
    """A row's images with their captions, each as often as its share asks for.

    Rows that are not restyled are repeated as often as a restyled row is shown in all.
    """
    whole = fit_square(image, pixels)
    if not augmentation.restyle:
        yield whole, row.caption
        return
    share, copies = augmentation.restyle, augmentation.copies
    repeats = max(1, round(copies * (1 - share) / share))
    if row.kind != "content":
        repeats += copies
    for _ in range(repeats):
        yield whole, row.caption
    if row.kind == "content":
        for number in range(copies):
            seed = derive_seed(augmentation.seed, "restyle", row.file, number)
            copy, words = restyle(image, seed)
            if augmentation.words == "nonsense":
                words = identifier(seed)
            yield fit_square(copy, pixels), content_caption(row.class_word, words)


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
