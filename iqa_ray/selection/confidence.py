"""Whether a classifier is less sure of images with worse scores (Smith et al., sections 2.2, 4.2).

Smith et al. take a high correlation of quality and confidence as the sign that low quality makes
the classifier struggle, and look for the quality where confidence drops. Correlations here have
intervals, and confidence and accuracy are averaged along the score.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from iqa_ray.selection.significance import Floats, bound_share

MIN_IMAGES = 10  # with fewer there is no correlation worth an interval
_Z = float(stats.norm.ppf(0.975))  # of the 95% intervals
_NUM_BINS = 10


@dataclass(frozen=True)
class Correlation:
    """A correlation in [-1, 1] and the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """Images of neighbouring scores.

    Attributes:
        score_low, score_median, score_high: the worst score among them, the one in the middle and
            the best, in the metric's own units.
        num_images: how many there are.
        confidence: their mean confidence.
        accuracy, accuracy_low, accuracy_high: the classifier's, with Wilson's 95% interval.
    """

    score_low: float
    score_median: float
    score_high: float
    num_images: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclass(frozen=True)
class Relation:
    """How a metric's scores and a classifier's confidence go together.

    Attributes:
        num_images: those with score, confidence and outcome.
        pcc, srcc: Pearson's and Spearman's correlation of the oriented score (higher is better)
            and confidence; None where one of them is constant or too few images have both.
        bins: from the worst scores to the best.
    """

    num_images: int
    pcc: Correlation | None
    srcc: Correlation | None
    bins: tuple[Bin, ...]

    def summarise(self) -> dict[str, Any]:
        """Everything but the bins."""
        return {name: value for name, value in asdict(self).items() if name != "bins"}


def relate_confidence(
    scores: Floats, confidence: Floats, correct: NDArray[np.bool_], higher_is_better: bool
) -> Relation:
    """Correlate scores with confidence, and average confidence and accuracy along the score.

    The bins hold equally many images, as far as equal scores, which share a bin, permit.

    Args:
        scores: (n,) finite scores of a metric.
        confidence: (n,) the classifier's, in [0, 1]; NaN for an image without, which is left out.
        correct: (n,) whether the classifier was right.
        higher_is_better: the metric's direction.
    """
    is_known = ~np.isnan(confidence)
    scores, confidence, correct = scores[is_known], confidence[is_known], correct[is_known]
    oriented = scores if higher_is_better else -scores
    pcc = srcc = None
    if len(scores) >= MIN_IMAGES and np.ptp(scores) > 0 and np.ptp(confidence) > 0:
        pcc = _correlate(oriented, confidence)
        srcc = bound_correlation(*correlate_ranks(oriented, confidence))
    bins = tuple(
        _describe_bin(scores[rows], confidence[rows], correct[rows], higher_is_better)
        for rows in _split_equally(oriented)
    )
    return Relation(len(scores), pcc, srcc, bins)


def _correlate(x: Floats, y: Floats) -> Correlation:
    """Pearson's correlation.

    The interval is symmetric on Fisher's scale. Its standard error is that of the infinitesimal
    jackknife (Efron 1982), since Fisher's own, 1 / sqrt(n - 3), is for normal variables, and
    confidence piles up near 1.
    """
    x, y = stats.zscore(x), stats.zscore(y)
    value = float(np.mean(x * y))
    return bound_correlation(value, _influence(x, y, value))


def correlate_ranks(x: Floats, y: Floats) -> tuple[float, Floats]:
    """Spearman's correlation: Pearson's of the ranks, ties sharing the mean of theirs.

    Args:
        x, y: (n,) values of the same images, neither all the same.

    Returns:
        The correlation, and the (n,) influences of the images on it, also through the ranks of the
        others, of which `bound_correlation` makes an interval.
    """
    ranks = [stats.rankdata(values) for values in (x, y)]
    u, v = (stats.zscore(rank) for rank in ranks)
    value = float(np.mean(u * v))
    influence = _influence(u, v, value)
    for rank, own, other in ((ranks[0], u, v), (ranks[1], v, u)):
        share_above = _sum_above(rank, other - value * own) / len(x)
        influence += len(x) / np.std(rank) * (share_above - np.mean(share_above))
    return value, influence


def _influence(u: Floats, v: Floats, value: float) -> Floats:
    """(n,) influence of each pair on the correlation of standardised values."""
    return u * v - value * (u**2 + v**2) / 2


def _sum_above(rank: Floats, weights: Floats) -> Floats:
    """(n,) for each image the weights of those that rank above it; an equal one counts half."""
    _, place = np.unique(rank, return_inverse=True)
    sums = np.bincount(place, weights)
    return (sums.sum() - np.cumsum(sums) + sums / 2)[place]


def bound_correlation(value: float, influence: Floats) -> Correlation:
    """A correlation with its interval, from the (n,) influences of the images on it."""
    room = 1 - value**2
    if room < 1e-12:  # all on one line
        return Correlation(value, value, value)
    margin = _Z * float(np.std(influence)) / np.sqrt(len(influence)) / room
    low, high = np.tanh(np.arctanh(value) + np.array([-margin, margin]))
    return Correlation(value, float(low), float(high))


def _split_equally(oriented: Floats) -> list[NDArray[np.int64]]:
    """Rows of each bin, from the worst scores to the best."""
    shares = np.arange(1, _NUM_BINS) / _NUM_BINS
    if not len(oriented):
        return []
    edges = np.unique(np.quantile(oriented, shares, method="inverted_cdf"))
    number = np.searchsorted(edges, oriented, side="left")  # a bin holds its upper edge
    order = np.argsort(number, kind="stable")
    pieces = np.split(order, np.cumsum(np.bincount(number)))
    return [rows for rows in pieces if len(rows)]


def _describe_bin(
    scores: Floats, confidence: Floats, correct: NDArray[np.bool_], higher_is_better: bool
) -> Bin:
    num_right, total = int(correct.sum()), len(correct)
    low, high = bound_share(num_right, total)
    least, most = float(scores.min()), float(scores.max())
    worst, best = (least, most) if higher_is_better else (most, least)
    return Bin(
        score_low=worst,
        score_median=float(np.median(scores)),
        score_high=best,
        num_images=total,
        confidence=float(confidence.mean()),
        accuracy=num_right / total,
        accuracy_low=float(low),
        accuracy_high=float(high),
    )
