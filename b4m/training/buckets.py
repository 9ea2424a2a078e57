"""Images in their own aspect ratios: a few sizes of about the base's area, one size per batch.

A size is width x height, both multiples of a step, with at most the area that the base was trained
on and sides between half and twice its own. An image goes to the size whose ratio is nearest,
is scaled until it covers it, and loses what stands over in equal parts; what it lost and how large
it was is told to bases that ask (SDXL's size conditioning).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image, ImageOps

from b4m.bases.base import Base, Conditioning, Frame
from b4m.data.cache import Cache
from b4m.data.manifest import ManifestRow
from b4m.errors import B4MError
from b4m.training.randomness import ShuffledIndices, derive_seed
from b4m.training.training_set import (
    Augmentation,
    Picture,
    Shown,
    TrainingSet,
    caption_orders,
    read_pictures,
    stack_masks,
)

Size = tuple[int, int]


def bucket_sizes(pixels: int, step: int) -> list[Size]:
    """The sizes that there are, by width.

    Args:
        pixels: side of the base's square.
        step: both sides are multiples of it.
    """
    widths = range(math.ceil(pixels / 2 / step) * step, 2 * pixels + 1, step)
    tall = {w: min(2 * pixels, pixels * pixels // w) // step * step for w in widths}
    return [(w, h) for w, h in tall.items() if h >= pixels / 2]


def size_for(image: Size, sizes: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest by factor; of equal ones the larger."""
    ratio = math.log(image[0] / image[1])
    return min(sizes, key=lambda s: (abs(math.log(s[0] / s[1]) - ratio), -s[0] * s[1]))


def cut(image: Image.Image, size: Size) -> tuple[Image.Image, Frame]:
    """Scale an image until it covers the size, and cut the middle."""
    scale = max(size[0] / image.width, size[1] / image.height)
    width = max(size[0], round(image.width * scale))
    height = max(size[1], round(image.height * scale))
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    scaled = image.resize((width, height), Image.Resampling.LANCZOS)
    part = scaled.crop((left, top, left + size[0], top + size[1]))
    return part, Frame(image.size, (left, top), size)


@dataclass(frozen=True)
class Order:
    """Batches of one size each: in an epoch every image once, the last batch of a size filled up.

    Attributes:
        sizes: how many images each size has; they are numbered size by size.
        batch_size: images in a batch.
        seed: of the order.
    """

    sizes: tuple[int, ...]
    batch_size: int
    seed: int

    @cached_property
    def _counts(self) -> list[int]:
        """Batches of each size in an epoch."""
        return [math.ceil(count / self.batch_size) for count in self.sizes]

    def batch(self, position: int) -> list[int]:
        """Indices of batch number `position`, counted from 0."""
        batches = sum(self._counts)
        epoch = position // batches
        (number,) = ShuffledIndices(batches, 1, self.seed, "turn").batch(position)
        first = 0
        for which, count in enumerate(self._counts):
            if number < count:
                stream = ShuffledIndices(
                    self.sizes[which], self.batch_size, derive_seed(self.seed, "size", which, epoch)
                )
                return [first + index for index in stream.batch(number)]
            number -= count
            first += self.sizes[which]
        raise AssertionError("a place lies in one of the sizes")


@dataclass(frozen=True)
class BucketedSet:
    """Training sets of one size each; images are numbered through, size by size."""

    parts: tuple[TrainingSet, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def draw(self, rows: Sequence[int], generator: torch.Generator) -> Shown:
        """Examples of these images, which all have one size."""
        first = 0
        for part in self.parts:
            if rows[0] < first + len(part):
                return part.draw([row - first for row in rows], generator)
            first += len(part)
        raise IndexError(f"there is no image {rows[0]}")

    def order(self, batch_size: int, seed: int) -> Order:
        """Which images come when."""
        return Order(tuple(map(len, self.parts)), batch_size, seed)


def read_bucketed_set(
    folder: Path,
    rows: Sequence[ManifestRow],
    base: Base,
    cache: Cache,
    augmentation: Augmentation,
    step: int = 0,
) -> BucketedSet:
    """Load and encode images in their own aspect ratios.

    Args:
        folder: prepared data folder.
        rows: lines of its manifest.
        base: says about what area.
        cache: of that base.
        augmentation: what else is shown.
        step: sides are multiples of so many pixels; 0 is a 16th of the base's side, but no less
            than a place of a latent.

    Raises:
        B4MError: for a step that does not go with the base.
    """
    factor = base.pixels // base.latent_shape[-1]
    step = step or max(base.pixels // 16, factor)
    if step % factor or step > base.pixels:
        raise B4MError(
            f"setting bucket_step={step} must be a multiple of {factor} and at most {base.pixels}"
        )
    sizes = bucket_sizes(base.pixels, step)
    members: dict[Size, list[Picture]] = {}
    for picture in read_pictures(folder, rows, base, augmentation):
        members.setdefault(size_for(picture.image.size, sizes), []).append(picture)
    parts = [
        _part(size, pictures, base, cache, replace(augmentation, seed=augmentation.seed + number))
        for number, (size, pictures) in enumerate(sorted(members.items()))
    ]
    return BucketedSet(tuple(parts))


def _part(
    size: Size, pictures: Sequence[Picture], base: Base, cache: Cache, augmentation: Augmentation
) -> TrainingSet:
    """The images of one size. Mirror images are cut at the same corner, so frames hold for both."""
    cuts = [cut(one.image, size) for one in pictures]
    variants = [[image for image, _ in cuts]]
    if augmentation.flip:
        variants.append([cut(ImageOps.mirror(one.image), size)[0] for one in pictures])
    latents = [cache.latents(variant) for variant in variants]
    mean_VNCHW = torch.stack([mean for mean, _ in latents])
    captions = caption_orders([one.caption for one in pictures], augmentation)
    orders = len(captions) // len(pictures)
    frames = [frame for _, frame in cuts for _ in range(orders)]
    mask_VN1HW = None
    if augmentation.masked:
        masks = [one.mask or Image.new("L", one.image.size, 255) for one in pictures]
        fitted = [cut(mask, size)[0] for mask in masks]
        places = (mean_VNCHW.shape[-1], mean_VNCHW.shape[-2])
        mask_VN1HW = stack_masks(fitted, places, augmentation.flip)
    return TrainingSet(
        mean_VNCHW,
        torch.stack([std for _, std in latents]),
        captions,
        base.framed(cache.texts(captions), frames),
        augmentation.dropout,
        base.unconditional(1).to("cpu") if augmentation.dropout else Conditioning({}),
        mask_VN1HW,
    )
