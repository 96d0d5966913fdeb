"""How good (n, C) outputs of a classifier are: accuracy, loss, AUC, calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_NUM_BINS = 15  # of the calibration error, as Guo et al. have them


def measure_accuracy(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Share of the rows whose largest of C logits is that of the true class; labels are (n,)."""
    return float((logits.argmax(1) == labels).mean())


def measure_loss(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Mean cross-entropy of (n, C) logits in nats, computed in fp64; labels are (n,)."""
    logits = logits.astype(np.float64)
    own = logits[np.arange(len(labels)), labels]
    return float((np.logaddexp.reduce(logits, axis=1) - own).mean())


def compute_log_odds(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The log-odds of each class against all others, from (n, C) logits.

    They rank as softmax probabilities do, but never saturate: in fp32 a probability is 1 from
    log-odds of 17 on, in fp64 from 37 on, so that errors made with confidence would be ties.
    """
    logits = logits.astype(np.float64)
    below = np.logaddexp.accumulate(logits, axis=1)
    above = np.logaddexp.accumulate(logits[:, ::-1], axis=1)[:, ::-1]
    none = np.full((len(logits), 1), -np.inf)
    others = np.logaddexp(np.hstack([none, below[:, :-1]]), np.hstack([above[:, 1:], none]))
    return np.asarray(logits - others)


def measure_auc(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Area under the ROC curve of each class against the others, averaged over classes.

    Args:
        scores: (n, C) of each class, such as log-odds; only their order within a class matters.
        labels: (n,) true classes, 0 to C - 1.

    Returns:
        In [0, 1]; 0.5 is chance, equal scores count one half. A class that is absent from the
        labels, or alone in them, is left out; NaN if none is left.
    """
    is_class = labels[:, None] == np.arange(scores.shape[1])
    num_own = is_class.sum(axis=0)
    num_other = len(labels) - num_own
    defined = (num_own > 0) & (num_other > 0)
    if not defined.any():
        return float("nan")
    rank_sums = (stats.rankdata(scores, axis=0) * is_class).sum(axis=0)
    wins = (rank_sums - num_own * (num_own + 1) / 2)[defined]
    return float((wins / (num_own * num_other)[defined]).mean())


def bin_reliability(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """A reliability diagram (Guo et al., section 2): 15 bins of equal width of the confidence.

    Args:
        probabilities: (n, C), whose largest is the confidence.
        labels: (n,) true classes.

    Returns:
        (15,) images in each bin, sum of their confidences, and number of them that are right.
    """
    confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * _NUM_BINS).astype(int), _NUM_BINS - 1)
    counts = np.bincount(bins, minlength=_NUM_BINS)
    sums = [np.bincount(bins, part, minlength=_NUM_BINS) for part in (confidence, is_right)]
    return counts, sums[0].astype(np.float64), sums[1].astype(np.float64)


def measure_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64]
) -> float:
    """The expected calibration error in [0, 1] (Guo et al., section 2), in 15 bins of equal width.

    Args:
        probabilities: (n, C).
        labels: (n,) true classes.
    """
    counts, confidences, right = bin_reliability(probabilities, labels)
    return float(np.abs(confidences - right).sum() / counts.sum())
