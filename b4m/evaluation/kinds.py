"""What an encoder is to everybody else; no network is imported here.

Shape legend: N images, M texts, D feature dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Features = NDArray[np.float32]
STYLE_ONLY = ("hed_style", "magenta_style", "csd")
"""Metrics of encoders that describe a style and no content."""


class Encoder(Protocol):
    """What turns images into unit vectors."""

    id: str
    """Name in scores.csv: no path, so that it is the same on every machine."""
    metric: str
    """First part of the metric names: "clip_i" for CLIP models, the own name for all others."""
    weights_hash: str
    """sha256 of the weight file."""
    preprocessing: str
    """What happens to an image before the network, in words."""

    def encode_images(self, images: Sequence[Image.Image]) -> Features:
        """Unit features (N, D), float32, of RGB images of any size."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """An encoder that puts texts into the same space as images."""

    names: Mapping[str, "Names"]
    """What it calls the concepts it was taught, by kind; empty for a model of the open world."""

    def encode_texts(self, texts: Sequence[str]) -> Features:
        """Unit features (M, D), float32. A text that does not fit is refused, never cut."""
        ...


@dataclass(frozen=True)
class Names:
    """What an encoder calls things, and the sentence around it: "a drawing in {} style"."""

    template: str
    words: Mapping[str, str]
    """Words by concept: {"openmoji": "outlined comic"}."""
