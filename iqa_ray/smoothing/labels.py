"""How sure labels are: scores of versions, and the monotone T that makes certainties of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from iqa_ray import metrics
from iqa_ray.errors import UsageError
from iqa_ray.selection.calibration import AccuracyCurve, fit_accuracy
from iqa_ray.smoothing.settings import SSIM, Transform
from iqa_ray.smoothing.strategies import Strategy, share_versions
from iqa_ray.training.rows import Mix, RowPlan, Values, find_outside

Scores = NDArray[np.float64]


def is_calibrated(score: str, transform: Transform) -> bool:
    """Whether T is fitted to the accuracy of a classifier; else it is the identity."""
    return transform == "calibrated" or (transform == "auto" and score != SSIM)


def fit_transform(
    scores: Scores, correct: NDArray[np.bool_], score: str, shares: tuple[float, ...]
) -> AccuracyCurve:
    """T from validation images: how often the classifier is right at a score.

    Args:
        scores: (n, V) of all versions of validation images.
        correct: (n, V) whether the classifier is right on them.
        score: which.
        shares: (V,) of the versions in the mix that T is for, by which they weigh.
    """
    used = np.array(shares) > 0
    weights = np.broadcast_to(np.array(shares)[used], scores[:, used].shape)
    higher_is_better = score == SSIM or metrics.get_spec(score).higher_is_better
    return fit_accuracy(
        scores[:, used].ravel(), correct[:, used].ravel(), higher_is_better, weights.ravel()
    )


def transform_scores(
    scores: Scores, score: str, curve: AccuracyCurve | None, num_classes: int
) -> Scores:
    """Certainties T(s) of scores of any shape.

    Args:
        scores: NaN of images that could not be read; theirs is 1, and is not used.
        score: which.
        curve: T; the identity without one. Chance, one in `num_classes`, is the least that it
            gives: below it the label would say another class.
        num_classes: K.

    Raises:
        UsageError: the identity leaves scores outside (0, 1].
    """
    is_read = ~np.isnan(scores)
    if curve is not None:
        return np.where(is_read, np.maximum(curve(scores), 1 / num_classes), 1.0)
    outside = find_outside(scores) & is_read
    if outside.any():
        low, high = scores[is_read].min(), scores[is_read].max()
        raise UsageError(
            f"--score {score}: {outside.sum():,} of {is_read.sum():,} scores are outside (0, 1] "
            f"after T = identity (they are {low:.4g} to {high:.4g}): use --transform calibrated"
        )
    return np.where(is_read, scores, 1.0)


def plan_rows(
    strategy: Strategy, num_images: int, certainties: Scores | None, rows: NDArray[np.int64]
) -> RowPlan:
    """How a strategy treats its training rows.

    Args:
        strategy: which.
        num_images: N of all parts.
        certainties: (N, V) T(s) of all versions of all images, which certain labels do not need.
        rows: (n,) of the training images.
    """
    shares = share_versions(strategy.mix)
    mix = Mix(shares, num_images)
    if strategy.labels == "original":
        return RowPlan(mix)
    assert certainties is not None
    values: Values = certainties.T.ravel().astype(np.float32)
    if strategy.labels == "uniform":
        mean = (certainties[rows] * np.array(shares)).sum(axis=1).mean()
        values = np.full(certainties.size, mean, np.float32)
    return RowPlan(mix, values, is_shuffled=strategy.labels == "shuffled")
