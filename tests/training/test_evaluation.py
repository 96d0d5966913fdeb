from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqa_ray.training.evaluation import (
    compute_log_odds,
    measure_accuracy,
    measure_auc,
    measure_calibration_error,
    measure_loss,
)


def test_accuracy_and_loss_by_hand():
    """Softmax outputs of 1/4 and 3/4: the true classes have 3/4 and 1/4."""
    logits = np.log([[1, 3], [1, 3]]).astype(np.float32)
    labels = np.array([1, 0])
    assert measure_accuracy(logits, labels) == 0.5
    assert measure_loss(logits, labels) == pytest.approx(np.log(16 / 3) / 2, rel=1e-6)


def test_the_loss_is_computed_in_fp64():
    logits = np.array([[2**24, 2**24]], np.float32)  # fp32 has no numbers between here and two more
    assert measure_loss(logits, np.array([0])) == pytest.approx(np.log(2))


def test_auc_by_hand():
    """Class 0: 3.5 of 4 pairs in order, one of them a tie; class 1: 3 of 4; class 2 is absent."""
    probabilities = np.array([[0.9, 0.05, 0.05], [0.6, 0.4, 0.0], [0.4, 0.5, 0.1], [0.6, 0.3, 0.1]])
    assert measure_auc(probabilities, np.array([0, 0, 1, 1])) == (3.5 / 4 + 3 / 4) / 2


def test_auc_where_it_is_not_defined():
    assert np.isnan(measure_auc(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0])))
    assert np.isnan(measure_auc(np.empty((0, 3)), np.empty(0, np.int64)))


def test_log_odds_by_hand():
    logits = np.log([[1, 2, 5], [3, 1, 4]]).astype(np.float32)
    expected = np.log([[1 / 7, 2 / 6, 5 / 3], [3 / 5, 1 / 7, 4 / 4]])
    np.testing.assert_allclose(compute_log_odds(logits), expected, atol=1e-6)
    # in fp64, though logits are not
    expected = [[1 - np.log(2), -np.log1p(np.e), -np.log1p(np.e)]]
    found = compute_log_odds(np.array([[1, 0, 0]], np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    # of two classes: the difference, to the last bit
    two = np.array([[20_000, 2**-10], [-300, 0.5]], np.float32)
    difference = 20_000 - 2**-10  # which fp32 cannot tell from 20,000
    expected = [[difference, -difference], [-300.5, 300.5]]
    np.testing.assert_array_equal(compute_log_odds(two), expected)


def test_confident_errors_are_no_ties():
    """Both probabilities are 1.0 in fp32 and fp64; the wrong image is the less sure one."""
    logits = np.array([[60, 0, 0], [50, 0, 0]], np.float32)
    labels = np.array([0, 1])
    probabilities = np.exp(logits - logits.max(1, keepdims=True), dtype=np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    assert probabilities[0, 0] == probabilities[1, 0] == 1
    # class 0: the first is surer of it; class 1: the second gives it more
    assert measure_auc(compute_log_odds(logits), labels) == 1
    assert measure_auc(compute_log_odds(logits), 1 - labels) == 0


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(-8, 8), min_size=4, max_size=4), min_size=1, max_size=5))
def test_log_odds_are_those_of_softmax(rows):
    logits = np.array(rows, np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.log(probabilities) - np.log1p(-probabilities)
    np.testing.assert_allclose(compute_log_odds(logits), expected, rtol=1e-6, atol=1e-9)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 5), min_size=3, max_size=3)),
        min_size=2,
        max_size=12,
    )
)
def test_auc_is_the_share_of_pairs_in_order(rows):
    labels = np.array([label for label, _ in rows])
    values = np.array([row for _, row in rows]) / 5
    areas = []
    for label in set(labels.tolist()):
        own, others = values[labels == label, label], values[labels != label, label]
        pairs = [(a > b) + (a == b) / 2 for a in own for b in others]
        areas += [sum(pairs) / len(pairs)] if pairs else []
    expected = np.mean(areas) if areas else np.nan
    assert measure_auc(values, labels) == pytest.approx(expected, nan_ok=True)


def test_the_calibration_error_by_hand():
    """Two bins: of 0.9 three in four are right, of 0.6 one in two."""
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2)
    labels = np.array([0, 0, 0, 1, 0, 1])
    expected = 4 / 6 * abs(0.9 - 0.75) + 2 / 6 * abs(0.6 - 0.5)
    assert measure_calibration_error(probabilities, labels) == pytest.approx(expected)
