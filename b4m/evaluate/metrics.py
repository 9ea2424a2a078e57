"""Metrics as pure functions on unit features, one value per image; callers average.

Definitions (those in use for content and style customization):
CLIP-I content and CLIP-I style are the mean cosine between an image and all references of that
side (DreamBooth, arXiv 2208.12242; ZipLoRA, arXiv 2311.13600). CLIP-T is the plain cosine between
the image and its prompt: not clipped at 0, not multiplied by 2.5 or 100. CLIP-I style rewards
copying the style image and CLIP-I content rewards not stylizing at all, so neither is ever shown
without the other and their harmonic mean (NP-LoRA, arXiv 2511.11051).

Shape legend: N images, R references, M names, D feature dimensions, H x W x C pixels.
"""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Features = NDArray[np.float32]


def mean_cosine(images_ND: Features, references_RD: Features) -> Values:
    """Mean cosine of each image with all references, in [-1, 1].

    Args:
        images_ND: unit features of the images.
        references_RD: unit features of the references, at least one.
    """
    assert len(references_RD) > 0, "no reference"
    return np.asarray(images_ND, np.float64) @ np.asarray(references_RD, np.float64).mean(axis=0)


def matched_cosine(images_ND: Features, others_ND: Features) -> Values:
    """Cosine of each image with the feature in the same row (its prompt, its ground truth)."""
    return np.sum(np.asarray(images_ND, np.float64) * others_ND, axis=1)


def harmonic_mean(content_N: Values, style_N: Values) -> Values:
    """2 c s / (c + s): high only where both are; 0 where one of them is not positive."""
    content_N, style_N = np.maximum(content_N, 0.0), np.maximum(style_N, 0.0)
    total_N = content_N + style_N
    return np.divide(
        2.0 * content_N * style_N, total_N, out=np.zeros_like(total_N), where=total_N > 0
    )


def named_right(images_ND: Features, names_MD: Features, labels_N: NDArray[np.int64]) -> Values:
    """1 where the best matching name is the right one, else 0.

    Args:
        images_ND: unit features of the images.
        names_MD: unit text features of all candidate names; chance is 1 / M.
        labels_N: row of the right name for each image.
    """
    return np.asarray((images_ND @ names_MD.T).argmax(axis=1) == labels_N, np.float64)


def psnr(image_HWC: NDArray[np.uint8], target_HWC: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit images; equal images give 99.

    Args:
        image_HWC: values in [0, 255].
        target_HWC: the ground truth, of the same shape.
    """
    assert image_HWC.shape == target_HWC.shape, "images of different sizes"
    difference = image_HWC.astype(np.float64) - target_HWC.astype(np.float64)
    error = float(np.mean(difference**2))
    # Infinity would poison every mean; 99 dB is beyond any two 8-bit images that differ.
    return 99.0 if error == 0.0 else float(10.0 * np.log10(255.0**2 / error))
