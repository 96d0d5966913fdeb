"""How often a classifier is right at a score: a monotone curve, fitted on judged images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from iqa_ray.selection.significance import Floats


@dataclass(frozen=True)
class AccuracyCurve:
    """Accuracy against score, never falling as quality rises.

    Attributes:
        qualities: (m,) ascending scores; of metrics of which lower is better, their negatives.
        accuracies: (m,) ascending, in [0, 1].
        higher_is_better: of the scores.
    """

    qualities: Floats
    accuracies: Floats
    higher_is_better: bool

    def __call__(self, scores: Floats) -> Floats:
        """The accuracy at scores of any shape: linear between those of the fit, constant beyond."""
        qualities = scores if self.higher_is_better else -scores
        return np.interp(qualities, self.qualities, self.accuracies)


def fit_accuracy(
    scores: Floats,
    correct: NDArray[np.bool_],
    higher_is_better: bool,
    weights: Floats | None = None,
) -> AccuracyCurve:
    """Fit the accuracy of a classifier against a score by isotonic regression (SciPy's).

    Args:
        scores: (n,) of judged images, n at least 1.
        correct: (n,) whether the classifier is right.
        higher_is_better: of the scores.
        weights: (n,) of the images; equal by default.

    Equal scores share one value of the curve.
    """
    qualities = scores if higher_is_better else -scores
    weights = np.ones(len(scores)) if weights is None else weights
    knots, places = np.unique(qualities, return_inverse=True)
    sums = np.bincount(places, weights)
    means = np.bincount(places, weights * correct) / sums
    fitted = optimize.isotonic_regression(means, weights=sums, increasing=True)
    return AccuracyCurve(knots, np.clip(fitted.x, 0, 1), higher_is_better)
