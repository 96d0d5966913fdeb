"""Distances of features, by hand and by definition."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from iqa_ray.layers.distances import compute_cka, compute_gram, measure_distances, measure_hsic

RNG = np.random.default_rng(0)


def make_features(num, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(num, width)))


def gram(rows):
    return np.array(rows, np.float64) @ np.array(rows, np.float64).T


def sum_hsic(first, second):
    """What a batch adds to the sums of CKA."""
    k, m = compute_gram(first), compute_gram(second)
    return np.array([measure_hsic(k, m), measure_hsic(k, k), measure_hsic(m, m)])


def test_a_distance_is_a_share_of_the_norm_of_the_clean_features():
    clean = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 2.0]])
    distorted = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 6.0]])
    assert measure_distances(clean, distorted).tolist() == [0.0, 1.0, 2.5]


def test_features_of_0_that_stay_have_the_distance_0_and_none_if_they_move():
    clean, distorted = torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [0, 0, 1]])
    assert measure_distances(clean, distorted).tolist() == pytest.approx([0, np.nan], nan_ok=True)


def test_hsic_of_four_images_by_hand():
    """Features (1, 1, -1, -1) and (1, -1, 1, -1): inner products with other images.

    K L has the trace of 4 entries -1 · 1, 4 of 1 · -1 and 4 of -1 · -1 off the diagonal: -4. The
    sums of K are -4, and so are those of L; each row has -1: (16 / 6) - 2 · 4 / 2 more.
    """
    k, m = gram([[1], [1], [-1], [-1]]), gram([[1], [-1], [1], [-1]])
    assert measure_hsic(k, m) == pytest.approx((-4 + 16 / 6 - 4) / 4)
    assert measure_hsic(k, k) == pytest.approx((12 + 16 / 6 - 4) / 4)


def test_hsic_is_the_mean_over_all_quadruples_of_images():
    """The U-statistic of Song et al.: of four different images each."""
    k, m = (gram(RNG.normal(size=(6, 3))) for _ in range(2))
    parts = [
        k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(6), 4)
    ]
    assert measure_hsic(k, m) == pytest.approx(np.mean(parts))


def test_three_images_are_too_few():
    k = gram([[1], [2], [3]])
    assert np.isnan(measure_hsic(k, k))


def test_a_gram_matrix_has_no_mean():
    features = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    assert compute_gram(features).tolist() == [[1, -1], [-1, 1]]


def test_cka_of_turned_and_scaled_features_is_1():
    features = make_features(8, 5)
    turn = torch.linalg.qr(make_features(5, 5, seed=1))[0]
    sums = sum_hsic(features, 7 * features @ turn + 3)
    assert compute_cka(sums) == pytest.approx(1)
    assert compute_cka(sum_hsic(features, features)) == 1.0


def test_cka_of_one_feature_is_the_squared_correlation():
    """Kornblith et al., section 3: with one feature on either side."""
    x = RNG.normal(size=400_000)
    y = 0.6 * x + 0.8 * RNG.normal(size=len(x))
    pairs = np.stack([x, y]).reshape(2, -1, 8, 1)
    sums = sum(sum_hsic(*map(torch.from_numpy, batch)) for batch in pairs[:, :4000].swapaxes(0, 1))
    assert compute_cka(sums) == pytest.approx(0.36, abs=0.03)


def test_the_size_of_batches_does_not_matter_as_it_does_to_the_biased_estimate():
    """Of unrelated features, whose biased CKA is far from 0 where features outnumber images."""
    first, second = make_features(600, 50, 1), make_features(600, 50, 2)
    for size in (5, 20, 200):
        batches = zip(first.split(size), second.split(size), strict=True)
        assert abs(compute_cka(sum(sum_hsic(*batch) for batch in batches))) < 0.03


def test_features_that_are_the_same_for_all_images_have_no_cka():
    sums = sum_hsic(make_features(6, 3), torch.ones(6, 3))
    assert np.isnan(compute_cka(sums))
