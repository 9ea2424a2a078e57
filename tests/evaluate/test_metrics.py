"""Metrics against closed forms."""

import numpy as np
import pytest

from b4m.evaluate import metrics

RNG = np.random.default_rng(0)


def unit(*shape: int) -> np.ndarray:
    features = RNG.normal(size=shape).astype(np.float32)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def test_mean_cosine_is_the_mean_over_all_pairs() -> None:
    images, references = unit(5, 7), unit(3, 7)
    by_hand = [
        sum(float(np.dot(image, reference)) for reference in references) / 3 for image in images
    ]
    np.testing.assert_allclose(metrics.mean_cosine(images, references), by_hand, atol=1e-6)


def test_a_copy_of_the_only_reference_scores_one() -> None:
    reference = unit(1, 7)
    np.testing.assert_allclose(metrics.mean_cosine(reference, reference), [1.0], atol=1e-6)


def test_matched_cosine_compares_row_with_row() -> None:
    images, others = unit(4, 6), unit(4, 6)
    np.testing.assert_allclose(
        metrics.matched_cosine(images, others), np.diag(images @ others.T), atol=1e-6
    )


def test_harmonic_mean_needs_both_sides() -> None:
    content, style = np.array([0.5, 1.0, 0.8, -0.3]), np.array([0.5, 0.0, 0.2, 0.9])
    np.testing.assert_allclose(metrics.harmonic_mean(content, style), [0.5, 0.0, 0.32, 0.0])


def test_named_right_finds_the_best_matching_name() -> None:
    names = np.eye(3, dtype=np.float32)
    images = np.array([[0.9, 0.1, 0], [0, 0.2, 0.9]], np.float32)
    assert metrics.named_right(images, names, np.array([0, 1])).tolist() == [1.0, 0.0]


def test_psnr_follows_its_definition() -> None:
    truth = np.full((4, 4, 3), 100, np.uint8)
    wrong = truth + np.uint8(10)
    assert metrics.psnr(wrong, truth) == pytest.approx(10 * np.log10(255**2 / 100))
    assert metrics.psnr(truth, truth) == 99.0
