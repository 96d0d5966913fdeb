"""How scores and confidence go together: correlations with intervals, and bins along the score."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from iqa_ray.selection.confidence import relate_confidence


def draw(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Skewed scores, and confidence that piles up near 1."""
    quality = rng.normal(0, 1, size)
    return np.exp(quality / 2), 1 - rng.beta(1, 1 + 3 * np.exp(quality), size)


def relate(scores, confidence, correct=None, higher_is_better=True):
    scores, confidence = np.array(scores, np.float64), np.array(confidence, np.float64)
    correct = np.ones(len(scores), bool) if correct is None else np.array(correct)
    return relate_confidence(scores, confidence, correct, higher_is_better)


# --- correlations -------------------------------------------------------------------------------


def test_correlations_are_scipys():
    scores, confidence = draw(np.random.default_rng(0), 300)
    for rounded in (scores, scores.round(1)):
        found = relate(rounded, confidence)
        assert found.pcc.value == pytest.approx(stats.pearsonr(rounded, confidence).statistic)
        assert found.srcc.value == pytest.approx(stats.spearmanr(rounded, confidence).statistic)
        assert found.num_images == 300


def test_correlations_are_of_quality_and_not_of_the_number():
    scores, confidence = draw(np.random.default_rng(0), 300)
    better, worse = relate(scores, confidence), relate(-scores, confidence, None, False)
    for name in ("pcc", "srcc"):
        one, other = getattr(better, name), getattr(worse, name)
        assert one.value > 0
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_the_interval_of_the_opposite_is_its_mirror():
    """Also where most values are tied."""
    scores, confidence = draw(np.random.default_rng(0), 300)
    scores, confidence = scores.round(0), confidence.round(1)
    one, other = relate(scores, confidence), relate(-scores, confidence)
    for found, mirrored in ((one.pcc, other.pcc), (one.srcc, other.srcc)):
        assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low))


@pytest.mark.parametrize(
    "coarsen", [lambda scores: scores, lambda scores: scores.round(1), lambda scores: scores > 1.8]
)
def test_intervals_are_those_of_the_jackknife(coarsen):
    """Leaving one image out at a time, ranks and all, on Fisher's scale."""
    scores, confidence = draw(np.random.default_rng(0), 400)
    scores, confidence = coarsen(scores).astype(float), confidence.round(1)
    found = relate(scores, confidence)
    for correlation, measure in ((found.pcc, stats.pearsonr), (found.srcc, stats.spearmanr)):
        left_out = np.array(
            [
                measure(np.delete(scores, row), np.delete(confidence, row)).statistic
                for row in range(400)
            ]
        )
        error = np.sqrt(399 / 400 * np.sum((left_out - left_out.mean()) ** 2))
        low, centre, high = np.arctanh([correlation.low, correlation.value, correlation.high])
        margin = 1.96 * error / (1 - correlation.value**2)
        assert [centre - low, high - centre] == pytest.approx([margin, margin], rel=0.02)


def test_95_of_100_intervals_hold_the_true_correlation():
    """Of skewed variables, where Fisher's own interval of Pearson's is too wide: 99 of 100."""
    rng = np.random.default_rng(0)
    big = draw(rng, 1_000_000)
    truth = {"pcc": stats.pearsonr(*big).statistic, "srcc": stats.spearmanr(*big).statistic}
    hits = dict.fromkeys(truth, 0)
    for _ in range(500):
        found = relate(*draw(rng, 300))
        for name, value in truth.items():
            correlation = getattr(found, name)
            hits[name] += correlation.low <= value <= correlation.high
    for name, count in hits.items():
        assert 0.92 <= count / 500 <= 0.98, name


@pytest.mark.parametrize(
    ("scores", "confidence"),
    [
        ([1.0] * 20, np.linspace(0, 1, 20)),
        (np.arange(20), [0.5] * 20),
        (np.arange(9), np.linspace(0, 1, 9)),
        ([], []),
        (np.arange(20), [np.nan] * 20),
    ],
)
def test_what_is_constant_or_too_few_has_no_correlation(scores, confidence):
    found = relate(scores, confidence)
    assert found.pcc is None
    assert found.srcc is None


def test_a_straight_line_has_no_interval_to_speak_of():
    found = relate(np.arange(10), np.arange(10) / 10)
    for correlation in (found.pcc, found.srcc):
        assert correlation.value == pytest.approx(1)
        assert (correlation.low, correlation.high) == (correlation.value, correlation.value)


def test_images_without_confidence_are_left_out():
    scores, confidence = draw(np.random.default_rng(0), 50)
    more = relate(np.append(scores, [99.0, -99.0]), np.append(confidence, [np.nan, np.nan]))
    assert more == relate(scores, confidence)


# --- bins ---------------------------------------------------------------------------------------


def test_bins_hold_equally_many_images_from_worst_to_best():
    rng = np.random.default_rng(0)
    rows = rng.permutation(40)
    confidence, correct = np.linspace(0, 1, 40), np.arange(40) >= 18
    bins = relate(np.arange(40)[rows], confidence[rows], correct[rows]).bins
    assert [part.num_images for part in bins] == [4] * 10
    assert (bins[0].score_low, bins[0].score_high) == (0, 3)
    assert (bins[9].score_low, bins[9].score_median, bins[9].score_high) == (36, 37.5, 39)
    assert [part.accuracy for part in bins] == [0, 0, 0, 0, 0.5, 1, 1, 1, 1, 1]
    assert bins[4].confidence == pytest.approx(confidence[16:20].mean())
    interval = stats.binomtest(2, 4).proportion_ci(0.95, method="wilson")
    assert (bins[4].accuracy_low, bins[4].accuracy_high) == pytest.approx(tuple(interval))


def test_where_lower_is_better_the_highest_score_is_the_worst():
    bins = relate(np.arange(40), np.linspace(0, 1, 40), np.arange(40) >= 18, False).bins
    assert (bins[0].score_low, bins[0].score_high) == (39, 36)
    assert (bins[9].score_low, bins[9].score_high) == (3, 0)
    assert bins[9].accuracy == 0
    assert bins[0].confidence > bins[9].confidence


def test_equal_scores_share_a_bin():
    scores = [1.0] * 15 + [2.0] * 3 + [3.0] * 22
    bins = relate(scores, np.linspace(0, 1, 40)).bins
    assert [(part.score_low, part.score_high, part.num_images) for part in bins] == [
        (1, 1, 15), (2, 2, 3), (3, 3, 22),
    ]  # fmt: skip


def test_few_images_have_few_bins():
    assert [part.num_images for part in relate([3.0, 1.0], [0.5, 0.6]).bins] == [1, 1]
    assert relate([], []).bins == ()
