"""Accuracy against the share kept: by hand, against its definition, and with ties."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from iqa_ray.selection.coverage import (
    RISK_COVERAGE_SCHEMA,
    order_by_votes,
    trace_coverage,
)
from iqa_ray.selection.cutoffs import measure_separation


def trace(quality, correct):
    """One voter's curve as (coverage, accuracy) and its area."""
    quality, correct = np.array(quality, np.float64), np.array(correct, bool)
    rows, areas = trace_coverage({"m": quality}, correct)
    rows = rows[rows["voter"] == "m"]
    return rows["coverage"].to_numpy(), rows["accuracy"].to_numpy(), areas["m"]


def test_a_curve_by_hand():
    coverage, accuracy, area = trace([0.1, 0.9, 0.5, 0.7], [False, True, True, False])
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert accuracy.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    # of 4 images 0, 0, 1, 1, 2 wrong ones are kept at 0, 1/4, 2/4, 3/4, 1 of coverage
    assert area == pytest.approx((0 + 1 / 8 + 1 / 4 + 3 / 8) / 4)


def test_rows_have_the_schema_and_wilsons_intervals():
    correct = np.array([True, False, True, True])
    rows, areas = trace_coverage({"m": np.arange(4.0), "confidence": -np.arange(4.0)}, correct)
    assert list(rows.columns) == RISK_COVERAGE_SCHEMA.names
    assert list(rows["voter"].unique()) == list(areas) == ["m", "confidence", "random"]
    assert rows["num_images"].tolist() == [1, 2, 3, 4] * 3
    whole = stats.binomtest(3, 4).proportion_ci(0.95, method="wilson")
    for _, row in rows[rows["coverage"] == 1].iterrows():
        assert row["accuracy"] == 0.75
        assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(tuple(whole))


def test_images_of_the_same_quality_stand_for_the_average_over_their_orders():
    quality = [5.0, 3.0, 3.0, 3.0, 1.0, 1.0]
    correct = np.array([True, True, False, False, False, True])
    found = trace(quality, correct)
    curves, areas = [], []
    for order in permutations(range(6)):
        if np.all(np.diff(np.array(quality)[list(order)]) <= 0):
            _, accuracy, area = trace(np.arange(6)[::-1], correct[list(order)])
            curves.append(accuracy)
            areas.append(area)
    assert len(curves) == 12
    np.testing.assert_allclose(found[1], np.mean(curves, axis=0))
    assert found[2] == pytest.approx(np.mean(areas))


def test_the_order_of_the_rows_does_not_matter():
    rng = np.random.default_rng(0)
    quality, correct = rng.integers(0, 4, 50).astype(float), rng.random(50) < 0.6
    shuffled = rng.permutation(50)
    for one, other in zip(
        trace(quality, correct), trace(quality[shuffled], correct[shuffled]), strict=True
    ):
        np.testing.assert_allclose(one, other)


@pytest.mark.parametrize("num_values", [3, 10**6])
def test_the_area_is_that_of_traub_et_al(num_values):
    """AUGRC = (1 - AUROC) · acc · (1 - acc) + (1 - acc)² / 2."""
    rng = np.random.default_rng(1)
    correct = rng.random(5000) < 0.7
    quality = np.round((rng.normal(0, 1, 5000) + correct) * num_values / 4)
    accuracy = correct.mean()
    auroc = measure_separation(quality[correct], quality[~correct])
    expected = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert trace(quality, correct)[2] == pytest.approx(expected, rel=1e-12)


def test_the_best_the_worst_and_a_random_order_have_their_closed_forms():
    correct = np.arange(1000) >= 200
    err = 0.2
    _, areas = trace_coverage({"best": correct * 1.0, "worst": -1.0 * correct}, correct)
    assert areas["best"] == pytest.approx(err**2 / 2)
    assert areas["worst"] == pytest.approx(err - err**2 / 2)
    assert areas["random"] == pytest.approx(err / 2)


def test_an_order_at_random_is_as_accurate_at_every_share():
    rows, _ = trace_coverage({}, np.array([True, False, False, True, True]))
    assert rows["accuracy"].tolist() == pytest.approx([0.6] * 5)
    assert rows["accuracy_low"].is_monotonic_increasing


def test_images_without_a_quality_come_last_and_count():
    nan = np.nan
    coverage, accuracy, area = trace([nan, 2, nan, 1], [True, True, False, True])
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert accuracy.tolist() == pytest.approx([1, 1, 2.5 / 3, 3 / 4])
    assert area == pytest.approx((0 + 0 + 0.125 + 0.125) / 4)


def test_a_voter_without_any_quality_is_an_order_at_random():
    rows, areas = trace_coverage({"m": np.full(4, np.nan)}, np.array([True, False, True, True]))
    assert rows.loc[rows["voter"] == "m", "accuracy"].tolist() == [0.75] * 4
    assert areas["m"] == areas["random"]


def test_a_curve_of_a_million_images_has_200_rows():
    rng = np.random.default_rng(0)
    correct = rng.random(1_000_001) < 0.8
    coverage, accuracy, _ = trace(rng.random(1_000_001), correct)
    assert len(coverage) == 200
    assert coverage[-1] == 1
    assert np.all(np.diff(coverage) > 0)
    assert accuracy[-1] == correct.mean()
    assert len(trace(np.arange(201), [True] * 201)[0]) == 200
    assert len(trace(np.arange(199), [True] * 199)[0]) == 199


def test_the_vote_orders_by_low_votes_and_then_by_rank():
    num_low = np.array([1, 0, 0, 2, 1])
    ranks = np.array([5.0, 1.0, 2.5, 4.0, np.nan])
    order = order_by_votes(num_low, ranks, 5)
    assert np.argsort(-order).tolist() == [2, 1, 0, 3, 4]
    assert np.isnan(order[4])
