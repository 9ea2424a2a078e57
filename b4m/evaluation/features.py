"""What all encoders share: unit features in batches, and the square that they look at."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from b4m.errors import B4MError
from b4m.evaluation.kinds import Features

_BATCH = 64


def encode(items: Sequence, forward: Callable[[Sequence], torch.Tensor]) -> Features:
    """Unit rows of `forward` over batches; a zero or non-finite feature is our own mistake."""
    if not items:
        raise B4MError("there is nothing to encode: no image and no text was given")
    with torch.inference_mode():
        parts = [forward(part).float().cpu() for part in _batches(items)]
    features_ND = torch.cat(parts)
    norms_N1 = features_ND.norm(dim=1, keepdim=True)
    assert bool(torch.isfinite(norms_N1).all() and (norms_N1 > 0).all()), "empty feature"
    return np.asarray(features_ND / norms_N1, dtype=np.float32)


def square(
    image: Image.Image, side: int, filter: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """The central square of an image at `side` pixels, RGB."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    central = image.convert("RGB").crop((left, top, left + short, top + short))
    return central.resize((side, side), filter)


def _batches(items: Sequence) -> Iterator[Sequence]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]
