"""Accuracy against score, fitted by isotonic regression."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqa_ray.selection.calibration import fit_accuracy


def test_a_curve_by_hand():
    """At 1: right, at 2: wrong and right, at 3: wrong, at 4: right. 1 to 3 are pooled: 2 of 4."""
    scores, correct = np.array([1.0, 2, 2, 3, 4]), np.array([1, 0, 1, 0, 1], bool)
    curve = fit_accuracy(scores, correct, True)
    assert curve(np.array([0, 1, 2, 3, 3.5, 4, 9])).tolist() == pytest.approx(
        [0.5, 0.5, 0.5, 0.5, 0.75, 1, 1]
    )


def test_where_lower_is_better_the_curve_falls_with_the_score():
    curve = fit_accuracy(np.array([1.0, 2.0]), np.array([True, False]), False)
    assert curve(np.array([[1.0, 1.5], [2.0, 0.0]])).tolist() == [[1.0, 0.5], [0.0, 1.0]]


def test_weights_count_as_so_many_images():
    scores, correct = np.array([1.0, 1.0, 2.0]), np.array([True, False, True])
    weighted = fit_accuracy(scores, correct, True, np.array([3.0, 1.0, 1.0]))
    assert weighted(np.array([1.0])).tolist() == [0.75]


@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.booleans()), min_size=1, max_size=50), st.booleans()
)
def test_a_curve_never_falls_as_quality_rises(pairs, higher_is_better):
    scores, correct = (np.array(column) for column in zip(*pairs, strict=True))
    curve = fit_accuracy(scores, correct.astype(bool), higher_is_better)
    grid = np.sort(np.concatenate([scores, np.linspace(-1e3, 1e3, 50)]))
    found = curve(grid if higher_is_better else grid[::-1])
    assert (np.diff(found) >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()
