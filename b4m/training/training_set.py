"""Images of a concept as training sees them: latents, captions, masks.

Shape suffixes: V variants, N images, K captions of each, B batch, C H W latents.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from b4m.bases.base import Base, Conditioning
from b4m.data.cache import Cache
from b4m.data.captions import check_trigger, content_caption, shuffled_tags
from b4m.data.images import fit_square, load_image
from b4m.data.manifest import ManifestRow
from b4m.data.masks import read_mask
from b4m.data.restyle import identifier, restyle
from b4m.errors import B4MError
from b4m.settings import Restyling
from b4m.training.randomness import derive_seed
from b4m.training.settings import TrainSettings


@dataclass(frozen=True)
class Augmentation:
    """What is shown beside, or instead of, the images and captions themselves.

    Attributes:
        flip: the mirror image, as often as the image.
        restyle: share of the shown content images that are restyled copies, in [0, 1).
        copies: restyled copies of each content image.
        words: how captions name a copy's look: "described", in words that a base may know, or
            "nonsense", an identifier such as "w@z" that names no look at all.
        seed: of the copies' looks and of the tags' orders.
        dropout: share of the shown images without their caption, in [0, 1).
        tag_orders: orders of each caption's tags; 0 leaves captions as they are.
        keep_tags: tags at the beginning that keep their place.
        masked: masks are read too.
    """

    flip: bool = False
    restyle: float = 0.0
    copies: int = 24
    words: str = "described"
    seed: int = 0
    dropout: float = 0.0
    tag_orders: int = 0
    keep_tags: int = 1
    masked: bool = False

    @classmethod
    def restyling(cls, settings: Restyling, seed: int) -> "Augmentation":
        """Restyled copies alone."""
        copies, words = settings.restyle_copies, settings.restyle_words
        return cls(restyle=settings.restyle, copies=copies, words=words, seed=seed)

    @classmethod
    def of(cls, settings: TrainSettings) -> "Augmentation":
        """Everything that a training asks for."""
        return replace(
            cls.restyling(settings, settings.seed),
            flip=settings.flip,
            dropout=settings.caption_dropout,
            tag_orders=settings.shuffle_tags,
            keep_tags=settings.keep_tags,
            masked=settings.masked,
        )


@dataclass(frozen=True)
class Shown:
    """B drawn examples.

    Attributes:
        x0_BCHW: latents drawn from the posterior.
        text: the captions' conditioning, of those left out the unconditional one.
        captions: as texts.
        kept_B: False where the caption is left out.
        mask_B1HW: weights of the latents' places; None where nothing is masked.
    """

    x0_BCHW: Tensor
    text: Conditioning
    captions: tuple[str, ...]
    kept_B: Tensor
    mask_B1HW: Tensor | None = None

    def __getitem__(self, part: slice) -> "Shown":
        return Shown(
            self.x0_BCHW[part],
            self.text[part],
            self.captions[part],
            self.kept_B[part],
            None if self.mask_B1HW is None else self.mask_B1HW[part],
        )

    def __len__(self) -> int:
        return len(self.x0_BCHW)

    @classmethod
    def cat(cls, parts: Sequence["Shown"]) -> "Shown":
        """All of the parts in order; where one is masked, others count whole."""
        mask = None
        if any(one.mask_B1HW is not None for one in parts):
            masks = [
                torch.ones_like(one.x0_BCHW[:, :1]) if one.mask_B1HW is None else one.mask_B1HW
                for one in parts
            ]
            mask = torch.cat(masks)
        return cls(
            torch.cat([one.x0_BCHW for one in parts]),
            Conditioning.cat([one.text for one in parts]),
            tuple(caption for one in parts for caption in one.captions),
            torch.cat([one.kept_B for one in parts]),
            mask,
        )

    def to(self, device: torch.device) -> "Shown":
        """Move what a forward needs."""
        mask = None if self.mask_B1HW is None else self.mask_B1HW.to(device)
        return Shown(
            self.x0_BCHW.to(device), self.text.to(device), self.captions, self.kept_B, mask
        )


class Examples(Protocol):
    """What can be drawn from."""

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def draw(self, rows: Sequence[int], generator: torch.Generator) -> Shown:
        """Examples of these images, on the CPU."""
        ...


@dataclass(frozen=True)
class TrainingSet:
    """N images of one size: posterior of their latents, captions and conditioning, on the CPU.

    The first axis of the latents holds the image as it is and, if images may be flipped, its
    mirror image: (V, N, C, H, W) with V = 1 or 2. Captions and conditioning hold K of each image,
    image by image.

    Attributes:
        mean_VNCHW: of the posterior.
        std_VNCHW: of the posterior.
        captions: N x K texts.
        text: their conditioning.
        dropout: share of draws without a caption, in [0, 1).
        empty: the unconditional conditioning, one row; needed for dropout.
        mask_VN1HW: weights in [0, 1] of the latents' places; None where nothing is masked.
    """

    mean_VNCHW: Tensor
    std_VNCHW: Tensor
    captions: tuple[str, ...]
    text: Conditioning
    dropout: float = 0.0
    empty: Conditioning = field(default_factory=lambda: Conditioning({}))
    mask_VN1HW: Tensor | None = None

    def __len__(self) -> int:
        return self.mean_VNCHW.shape[1]

    def draw(self, rows: Sequence[int], generator: torch.Generator) -> Shown:
        """Latents from the posterior with one of their captions, some without, on the CPU."""
        index = list(rows)
        flips = torch.randint(self.mean_VNCHW.shape[0], (len(index),), generator=generator)
        mean_BCHW = self.mean_VNCHW[flips, index]
        jitter_BCHW = torch.randn(mean_BCHW.shape, generator=generator)
        x0_BCHW = mean_BCHW + self.std_VNCHW[flips, index] * jitter_BCHW
        said = self._said(index, generator)
        kept_B = torch.ones(len(index), dtype=torch.bool)
        text = self.text[said]
        if self.dropout:
            kept_B = torch.rand(len(index), generator=generator) >= self.dropout
            text = text.where(kept_B, self.empty)
        captions = tuple(self.captions[one] for one in said)
        mask = None if self.mask_VN1HW is None else self.mask_VN1HW[flips, index]
        return Shown(x0_BCHW, text, captions, kept_B, mask)

    def _said(self, index: Sequence[int], generator: torch.Generator) -> list[int]:
        """Which captions the images are shown with."""
        orders = len(self.captions) // len(self)
        if orders == 1:
            return list(index)
        chosen = torch.randint(orders, (len(index),), generator=generator).tolist()
        return [one * orders + order for one, order in zip(index, chosen, strict=True)]


@dataclass(frozen=True)
class Picture:
    """An image before it is cut to size, with its caption and its mask."""

    image: Image.Image
    caption: str
    mask: Image.Image | None = None


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
    pictures = read_pictures(folder, rows, base, augmentation)
    images = [fit_square(one.image, base.pixels) for one in pictures]
    variants = [images, [ImageOps.mirror(one) for one in images]][: 1 + augmentation.flip]
    latents = [cache.latents(variant) for variant in variants]
    mean_VNCHW = torch.stack([mean for mean, _ in latents])
    size = (mean_VNCHW.shape[-1], mean_VNCHW.shape[-2])
    mask_VN1HW = None
    if augmentation.masked:
        square = (base.pixels, base.pixels)
        masks = [(one.mask or Image.new("L", square, 255)) for one in pictures]
        fitted = [fit_square(one, base.pixels) for one in masks]
        mask_VN1HW = stack_masks(fitted, size, augmentation.flip)
    captions = caption_orders([one.caption for one in pictures], augmentation)
    return TrainingSet(
        mean_VNCHW,
        torch.stack([std for _, std in latents]),
        captions,
        cache.texts(captions),
        augmentation.dropout,
        base.unconditional(1).to("cpu") if augmentation.dropout else Conditioning({}),
        mask_VN1HW,
    )


def read_pictures(
    folder: Path, rows: Sequence[ManifestRow], base: Base, augmentation: Augmentation
) -> list[Picture]:
    """The images that are shown, each as often as its share asks for.

    Raises:
        B4MError: if masks are asked for and there is none.
    """
    for row in rows:
        _check_length(row, folder, base)
    pictures = [one for row in rows for one in _shown(row, folder, augmentation)]
    if augmentation.masked and all(one.mask is None for one in pictures):
        raise B4MError(
            f"masked looks for masks, and no image of {rows[0].concept!r} in {folder} has one; "
            "put NAME.mask.png beside NAME.png and prepare the data again"
        )
    return pictures


def stack_masks(masks: Sequence[Image.Image], size: tuple[int, int], flip: bool) -> Tensor:
    """Masks (V, N, 1, H, W) at the latents' places: the mean of what lies at each.

    Args:
        masks: grey, cut as their images are.
        size: width and height of the latents.
        flip: whether there are mirror images.
    """
    places = [np.asarray(one.resize(size, Image.Resampling.BOX), np.float32) for one in masks]
    mask_N1HW = torch.from_numpy(np.stack(places))[:, None] / 255
    return torch.stack([mask_N1HW, mask_N1HW.flip(-1)][: 1 + flip])


def caption_orders(captions: Sequence[str], augmentation: Augmentation) -> tuple[str, ...]:
    """K captions of each: itself, or so many orders of its tags."""
    if not augmentation.tag_orders:
        return tuple(captions)
    return tuple(
        shuffled_tags(caption, augmentation.keep_tags, derive_seed(augmentation.seed, "tags", n, k))
        for n, caption in enumerate(captions)
        for k in range(augmentation.tag_orders)
    )


def _check_length(row: ManifestRow, folder: Path, base: Base) -> None:
    """Tell what the base does not read of a caption; a trigger among that is refused."""
    read = base.part_read(row.caption)
    if cut := row.caption[len(read) :].strip():
        where = f"{folder / row.file} ({row.source}), cut to the tokens that the base reads"
        check_trigger(read, row.trigger, where)
        warnings.warn(f"{where}: {cut!r} at the end of the caption is lost", stacklevel=2)


def _shown(row: ManifestRow, folder: Path, augmentation: Augmentation) -> Iterator[Picture]:
    """A row's images with their captions, each as often as its share asks for.

    Rows that are not restyled are repeated as often as a restyled row is shown in all.
    """
    image = load_image(folder / row.file)
    mask = read_mask(folder / row.file) if augmentation.masked else None
    whole = Picture(image, row.caption, mask)
    if not augmentation.restyle:
        yield whole
        return
    share, copies = augmentation.restyle, augmentation.copies
    repeats = max(1, round(copies * (1 - share) / share))
    if row.kind != "content":
        repeats += copies
    for _ in range(repeats):
        yield whole
    if row.kind == "content":
        for number in range(copies):
            seed = derive_seed(augmentation.seed, "restyle", row.file, number)
            copy, words = restyle(image, seed)
            if augmentation.words == "nonsense":
                words = identifier(seed)
            yield Picture(copy, content_caption(row.class_word, words), mask)
