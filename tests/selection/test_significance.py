"""Intervals of shares and p values of several tests against published and hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from iqa_ray.selection.significance import adjust_holm, bound_share


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 3·0.01, 1·0.04 < 2·0.03, 4·0.005
        ([0.4, np.nan, 0.9], [0.8, np.nan, 0.9]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.03], [0.03]),
        ([np.nan], [np.nan]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values, adjusted):
    np.testing.assert_allclose(adjust_holm(np.array(p_values, np.float64)), adjusted, rtol=1e-12)


def test_the_interval_of_a_share_is_wilsons():
    num, total = np.array([0, 1, 7, 50, 999, 3]), np.array([5, 1, 20, 50, 1000, 4])
    low, high = bound_share(num, total)
    for row in range(len(num)):
        test = stats.binomtest(int(num[row]), int(total[row]))
        expected = test.proportion_ci(0.95, method="wilson")
        assert (low[row], high[row]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_the_interval_of_a_share_stays_within_0_and_1():
    total = np.arange(1, 3000)
    assert bound_share(0 * total, total)[0].min() == 0
    assert bound_share(total, total)[1].max() == 1
