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


def named_within(
    images_ND: Features, names_MD: Features, labels_N: NDArray[np.int64], first: int = 1
) -> Values:
    """1 where the right name is among the `first` best matching ones, else 0.

    Args:
        images_ND: unit features of the images.
        names_MD: unit text features of all candidate names; chance is first / M.
        labels_N: row of the right name for each image.
        first: how many names may be given.
    """
    best_NM = np.argsort(-(images_ND @ names_MD.T), axis=1, kind="stable")
    return np.asarray((best_NM[:, :first] == labels_N[:, None]).any(axis=1), np.float64)


def nearest_cosine(images_ND: Features, others_MD: Features) -> Values:
    """Cosine of each image with the most similar of the others; 1 for a copy of one of them."""
    return (np.asarray(images_ND, np.float64) @ others_MD.T).max(axis=1)


def diversity(images_ND: Features) -> Values:
    """Mean cosine distance of each image to the other ones, in [0, 2]; 0 if all are alike.

    Args:
        images_ND: unit features of images of one prompt that differ by their seed, at least two.
    """
    features_ND = np.asarray(images_ND, np.float64)
    assert len(features_ND) > 1, "one image"
    total_N = features_ND @ features_ND.sum(axis=0) - np.sum(features_ND**2, axis=1)
    return 1.0 - total_N / (len(features_ND) - 1)


def csls(
    images_ND: Features, references_RD: Features, pool_PD: Features, neighbours: int = 10
) -> Values:
    """Mean cross-domain similarity local scaling of each image with its references, in [-4, 4].

    CSLS(x, y) = 2 cos(x, y) - r(x) - r(y), with r the mean cosine with the nearest neighbours in a
    pool (Conneau et al. 2018, arXiv 1710.04087). It takes away what an image has in common with
    every style: the raw cosine of a reference that is near to everything says nothing.

    Args:
        images_ND: unit features of the images.
        references_RD: unit features of their references.
        pool_PD: unit features of all references there are, these included.
        neighbours: size of a neighbourhood; all there are if the pool is smaller.
    """
    pool_PD = np.asarray(pool_PD, np.float64)

    def density(features_ND: Features, own: int) -> Values:
        nearest_NP = np.sort(features_ND @ pool_PD.T, axis=1)[:, ::-1]
        return nearest_NP[:, own : own + neighbours].mean(axis=1)

    # A reference is its own nearest neighbour in the pool and does not count.
    common = density(references_RD, own=1).mean()
    return 2.0 * mean_cosine(images_ND, references_RD) - density(images_ND, own=0) - common


def discrimination_gap(features_ND: Features, labels_N: NDArray[np.int64]) -> Values:
    """For each class: mean cosine of its images with one another, minus that with all others.

    An encoder whose gap is not positive does not see what makes the class one; its scores of that
    class are not to be used (arXiv 2605.09030 finds a quarter of artists so for CSD).

    Args:
        features_ND: unit features.
        labels_N: class of each, 0 to C - 1.

    Returns:
        One gap per class; NaN for a class with one image, or if there is one class.
    """
    features_ND = np.asarray(features_ND, np.float64)
    gaps = []
    for label in range(int(labels_N.max()) + 1):
        own_KD, others_MD = features_ND[labels_N == label], features_ND[labels_N != label]
        if len(own_KD) < 2 or len(others_MD) == 0:
            gaps.append(np.nan)
            continue
        gaps.append(1.0 - diversity(own_KD).mean() - mean_cosine(own_KD, others_MD).mean())
    return np.array(gaps)


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
