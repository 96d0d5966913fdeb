from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqa_ray.rescoring.drift import (
    MIN_SCORES,
    Drift,
    ShareChange,
    compare_shares,
    find_alerts,
    measure_drift,
)

HUNDRED = np.arange(1.0, 101.0)


def test_identical_samples():
    found = measure_drift(HUNDRED, HUNDRED[::-1])
    assert found == Drift(100, 100, 0, 0, ks=0.0, ks_p=1.0, psi=0.0, psi_p=1.0)


def test_disjoint_samples():
    """Ten bins of ten; all current scores are in the last: (100.5 - 10.5) / 105 there."""
    found = measure_drift(HUNDRED, HUNDRED + 100)
    assert found.ks == 1.0
    assert found.ks_p == pytest.approx(0, abs=1e-50)
    p, full, empty = 10.5 / 105, 100.5 / 105, 0.5 / 105
    expected = (full - p) * log(full / p) + 9 * (empty - p) * log(empty / p)
    assert found.psi == pytest.approx(expected)
    assert found.psi == pytest.approx(4.5457, abs=1e-4)
    assert found.psi_p == pytest.approx(0, abs=1e-30)


def test_two_bins_by_hand():
    """The median is 10: 10 of 20 up to it, of the current scores 15 of 20.

    The distributions are furthest apart at 10, where they are 0.5 and 0.75.
    """
    reference = np.arange(1.0, 21.0)
    current = np.array([*np.arange(1.0, 11.0), 1, 2, 3, 4, 5, *np.arange(16.0, 21.0)])
    found = measure_drift(reference, current, num_bins=2)
    assert found.ks == pytest.approx(0.25)
    p, low, high = 0.5, 15.5 / 21, 5.5 / 21
    assert found.psi == pytest.approx((low - p) * log(low / p) + (high - p) * log(high / p))
    # 2.46 on one degree of freedom: 1 - erf(sqrt(2.46 / 2))
    assert found.psi_p == pytest.approx(0.117, abs=1e-3)


def test_ties_merge_bins():
    """Quantiles 1 … 1, 2, 2: bins up to 1 (14 scores) and above; 2 is the maximum, no edge."""
    reference = np.array([1.0] * 14 + [2.0] * 6)
    current = np.array([1.0] * 8 + [2.0] * 12)
    found = measure_drift(reference, current)
    p, q = 14.5 / 21, 8.5 / 21
    assert found.psi == pytest.approx((q - p) * log(q / p) + (p - q) * log((1 - q) / (1 - p)))
    assert found.ks == pytest.approx(0.3)


def test_constant_scores():
    reference = np.full(30, 5.0)
    same = measure_drift(reference, np.full(30, 5.0))
    assert (same.ks, same.psi, same.psi_p) == (0.0, 0.0, 1.0)
    lower = measure_drift(reference, np.full(30, 4.0))
    higher = measure_drift(reference, np.full(30, np.nextafter(5.0, 6.0)))
    # of three bins one is full then and another now
    p, q = 30.5 / 31.5, 0.5 / 31.5
    for moved in (lower, higher):
        assert moved.ks == 1.0
        assert moved.psi == pytest.approx(2 * (p - q) * log(p / q))
        assert moved.psi_p == pytest.approx(0, abs=1e-20)
    assert measure_drift(HUNDRED, np.full(30, 5.0)).ks == pytest.approx(0.95)


def test_the_order_of_scores_does_not_matter():
    """Of twenty reference scores one is lower than the rest, too few for a bin of its own."""
    reference = np.array([1.0] + [5.0] * 19)
    current = np.array([1.0] * 5 + [5.0] * 5 + [9.0] * 10)
    found = measure_drift(reference, current)
    assert measure_drift(reference[::-1], current[::-1]) == found
    # below 5, at 5 and above it
    p, q = np.array([1.5, 19.5, 0.5]) / 21.5, np.array([5.5, 5.5, 10.5]) / 21.5
    assert found.psi == pytest.approx(((q - p) * np.log(q / p)).sum())


def test_missing_scores_are_dropped_and_counted():
    current = np.array([np.nan, *HUNDRED, np.nan, np.inf])
    found = measure_drift(np.array([*HUNDRED, np.nan]), current)
    assert found == Drift(100, 100, 1, 3, ks=0.0, ks_p=1.0, psi=0.0, psi_p=1.0)


@pytest.mark.parametrize(
    ("reference", "current", "expected"),
    [
        ([], HUNDRED, Drift(0, 100, 0, 0, reason="0 reference scores, at least 20 are needed")),
        (HUNDRED, [], Drift(100, 0, 0, 0, reason="0 current scores, at least 20 are needed")),
        (
            HUNDRED,
            [1.0] * 19 + [np.nan],
            Drift(100, 19, 0, 1, reason="19 current scores, at least 20 are needed"),
        ),
    ],
)
def test_too_few_scores(reference, current, expected):
    assert measure_drift(np.array(reference), np.array(current)) == expected
    assert measure_drift(HUNDRED[:MIN_SCORES], HUNDRED[:MIN_SCORES]).ks == 0.0


def test_chance_drifts_as_often_as_it_says():
    """200 pairs of samples without drift: p values below 0.1 in a tenth of them."""
    rng = np.random.default_rng(0)
    found = [measure_drift(rng.normal(size=1000), rng.normal(size=200)) for _ in range(200)]
    psis = np.array([drift.psi for drift in found])
    assert psis.mean() == pytest.approx(9 * (1 / 1000 + 1 / 200), rel=0.1)
    assert 0.05 < np.mean([drift.psi_p < 0.1 for drift in found]) < 0.15
    assert 0.05 < np.mean([drift.ks_p < 0.1 for drift in found]) < 0.15


def test_many_scores():
    rng = np.random.default_rng(0)
    found = measure_drift(rng.normal(size=100_000), rng.normal(0.1, 1, size=50_000))
    # two normal distributions 0.1 apart: KS distance 2 Φ(0.05) - 1, PSI a little below 0.1²
    assert found.ks == pytest.approx(0.0399, abs=0.008)
    assert found.psi == pytest.approx(0.0095, abs=0.002)
    assert found.psi_p < 1e-10
    assert found.ks_p < 1e-10


SCORES = st.lists(st.integers(-3, 3).map(float), min_size=MIN_SCORES, max_size=40).map(np.array)


@settings(max_examples=40)
@given(reference=SCORES, current=SCORES, num_bins=st.integers(2, 12))
def test_measures_are_always_finite(reference, current, num_bins):
    found = measure_drift(reference, current, num_bins)
    assert 0 <= found.ks <= 1
    assert 0 <= found.psi < 10
    assert 0 <= found.ks_p <= 1
    assert 0 <= found.psi_p <= 1
    values = np.unique([reference, current]) if len(reference) == len(current) else range(-3, 4)
    shares = [abs((reference <= v).mean() - (current <= v).mean()) for v in values]
    assert found.ks == pytest.approx(max(shares))


@pytest.mark.parametrize(
    ("now", "before", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_intervals_of_newcombe(now, before, low, high):
    """Newcombe 1998, Table II, method 10."""
    found = compare_shares(*before, *now)
    assert found.difference == pytest.approx(now[0] / now[1] - before[0] / before[1])
    assert found.low == pytest.approx(low, abs=5.1e-5)
    assert found.high == pytest.approx(high, abs=5.1e-5)
    mirrored = compare_shares(*now, *before)
    assert mirrored.low == pytest.approx(-found.high)
    assert mirrored.high == pytest.approx(-found.low)


def test_shares_of_nothing():
    assert compare_shares(0, 0, 3, 4) == ShareChange(0, 0, 3, 4, share_now=0.75)
    assert compare_shares(3, 4, 0, 0) == ShareChange(3, 4, 0, 0, share_before=0.75)
    assert compare_shares(0, 0, 0, 0) == ShareChange(0, 0, 0, 0)
    with pytest.raises(AssertionError):
        compare_shares(5, 4, 0, 1)


STEADY = compare_shares(80, 1000, 8, 100)


def test_alerts_in_words():
    drifts = {
        "brisque": Drift(1745, 50, 0, 0, ks=0.43, ks_p=1e-9, psi=0.614, psi_p=1e-5),
        "lapm": Drift(1745, 50, 0, 0, ks=0.08, ks_p=0.8, psi=0.17, psi_p=0.5),
    }
    found = find_alerts(drifts, compare_shares(48, 80, 56, 70), 3, 50, 0.25, 0.1, 0.05)
    assert found == [
        "brisque scores drifted: population stability index 0.61, more than 0.25 "
        "(Kolmogorov–Smirnov distance 0.43; 50 scores against 1,745 of the reference)",
        "rejected share rose from 60.0% to 80.0%, by more than 10 points "
        "(95% interval of the change +5.2 to +33.4)",
        "3 of 50 images failed (6.0%), more than 5.0%",
    ]
    assert find_alerts(drifts, compare_shares(48, 80, 56, 70), 3, 50) == []


def test_drift_must_exceed_threshold_and_chance():
    def is_alert(psi: float, psi_p: float) -> bool:
        drift = Drift(1000, 100, 0, 0, ks=0.5, ks_p=0.0, psi=psi, psi_p=psi_p)
        return bool(find_alerts({"lapm": drift}, STEADY, 0, 100, alert_drift=0.25))

    assert is_alert(0.26, 0.001)
    assert not is_alert(0.25, 0.001)
    assert not is_alert(0.26, 0.02)


def test_rejected_share_must_exceed_threshold_and_chance():
    def is_alert(rejected: ShareChange, threshold: float) -> bool:
        return bool(find_alerts({}, rejected, 0, 100, alert_rejected=threshold))

    assert is_alert(compare_shares(300, 1000, 400, 1000), 0.09)
    assert not is_alert(compare_shares(300, 1000, 400, 1000), 0.1)  # 0.4 - 0.3 > 0.1 in floats
    assert not is_alert(compare_shares(10, 100, 1, 3), 0.05)  # one image more or less
    assert not is_alert(compare_shares(400, 1000, 300, 1000), 0.0)


def test_errors_must_exceed_the_threshold():
    def is_alert(num_failed: int, num_images: int, threshold: float) -> bool:
        return bool(find_alerts({}, STEADY, num_failed, num_images, alert_errors=threshold))

    assert is_alert(1, 100, 0.0)
    assert not is_alert(0, 100, 0.0)
    assert not is_alert(29, 100, 0.29)  # 29 > 0.29 × 100 in floats
    assert not is_alert(0, 0, 0.0)


def test_what_is_undefined_is_no_alert():
    drift = measure_drift(HUNDRED, np.array([]))
    nothing = compare_shares(8, 100, 0, 0)
    assert find_alerts({"lapm": drift}, nothing, 0, 0, 0.0, 0.0, 0.0) == []
