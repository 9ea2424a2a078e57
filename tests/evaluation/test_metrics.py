"""Metrics against closed forms."""

import numpy as np
import pytest

from b4m.evaluation import metrics

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


def test_named_within_counts_the_best_matching_names() -> None:
    names = np.eye(3, dtype=np.float32)
    images = np.array([[0.9, 0.1, 0], [0, 0.2, 0.9], [0.3, 0.2, 0.1]], np.float32)
    labels = np.array([0, 1, 2])
    assert metrics.named_within(images, names, labels).tolist() == [1.0, 0.0, 0.0]
    assert metrics.named_within(images, names, labels, first=2).tolist() == [1.0, 1.0, 0.0]
    assert metrics.named_within(images, names, labels, first=3).tolist() == [1.0, 1.0, 1.0]


def test_of_equally_good_names_the_first_ones_are_given() -> None:
    names = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    images = np.array([[1, 0], [1, 0]], np.float32)
    assert metrics.named_within(images, names, np.array([0, 1])).tolist() == [1.0, 0.0]


def test_nearest_cosine_is_one_for_a_copy_and_the_largest_of_all() -> None:
    images, others = unit(4, 6), unit(9, 6)
    others[3] = images[1]
    nearest = metrics.nearest_cosine(images, others)
    assert nearest[1] == pytest.approx(1.0)
    np.testing.assert_allclose(nearest, (images @ others.T).max(axis=1), atol=1e-6)


def test_diversity_is_the_mean_distance_of_all_pairs() -> None:
    images = unit(5, 4)
    pairs = [(i, j) for i in range(5) for j in range(5) if i < j]
    by_hand = np.mean([1 - float(images[i] @ images[j]) for i, j in pairs])
    assert metrics.diversity(images).mean() == pytest.approx(by_hand, abs=1e-6)
    assert metrics.diversity(np.repeat(images[:1], 3, axis=0)) == pytest.approx(0.0, abs=1e-6)
    assert metrics.diversity(np.array([[1, 0], [-1, 0]], np.float32)).tolist() == [2.0, 2.0]


def test_csls_follows_its_definition() -> None:
    images, pool = unit(4, 6), unit(9, 6)
    references, k = pool[2:5], 3
    by_hand = []
    for image in images:
        near_image = np.mean(sorted(float(image @ other) for other in pool)[-k:])
        scores = []
        for row in (2, 3, 4):
            others = [float(pool[row] @ pool[n]) for n in range(9) if n != row]
            near_reference = np.mean(sorted(others)[-k:])
            scores.append(2 * float(image @ pool[row]) - near_image - near_reference)
        by_hand.append(np.mean(scores))
    np.testing.assert_allclose(metrics.csls(images, references, pool, k), by_hand, atol=1e-6)


def test_csls_takes_away_what_a_hub_has_in_common_with_everything() -> None:
    """A reference near to all styles wins by cosine; by CSLS the image's own style does."""
    corners = np.eye(4, dtype=np.float32)
    hub = np.full((1, 4), 0.5, np.float32)
    own = corners[:1]
    image = np.array([[0.8, 0.12**0.5, 0.12**0.5, 0.12**0.5]], np.float32)
    pool = np.concatenate([corners, hub])
    assert metrics.mean_cosine(image, hub) > metrics.mean_cosine(image, own)
    assert metrics.csls(image, own, pool, 4) > metrics.csls(image, hub, pool, 4)


def test_the_discrimination_gap_is_one_for_classes_at_right_angles() -> None:
    features = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 1, 2]]
    gaps = metrics.discrimination_gap(features, np.array([0, 0, 1, 1, 1, 2]))
    assert gaps[:2] == pytest.approx([1.0, 1.0])
    assert np.isnan(gaps[2])  # one image says nothing of its class
    assert np.isnan(metrics.discrimination_gap(features[:2], np.array([0, 0]))).all()


def test_the_discrimination_gap_is_negative_for_a_class_that_is_no_class() -> None:
    x, y = [1, 0], [0, 1]
    features = np.array([x, y, x, x, y, y], np.float32)
    gaps = metrics.discrimination_gap(features, np.array([0, 0, 1, 1, 2, 2]))
    assert gaps == pytest.approx([0 - 0.5, 1 - 0.25, 1 - 0.25])


def test_psnr_follows_its_definition() -> None:
    truth = np.full((4, 4, 3), 100, np.uint8)
    wrong = truth + np.uint8(10)
    assert metrics.psnr(wrong, truth) == pytest.approx(10 * np.log10(255**2 / 100))
    assert metrics.psnr(truth, truth) == 99.0
