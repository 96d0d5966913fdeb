"""Accuracy on what a vote keeps, measured on images that did not choose the cut-offs.

Judged images are dealt into folds. Each metric's cut-off is fitted once on all of them, for use,
and once without each fold; the images of that fold are then voted on with the latter. Images that
belong together, such as several shots of one object, share a fold. The metrics that vote are the
same in every fold: those that have a cut-off on all images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iqa_ray.selection.cutoffs import Cutoff
from iqa_ray.selection.settings import Rule
from iqa_ray.selection.significance import bound_share
from iqa_ray.selection.votes import votes_to_reject

NUM_FOLDS = 5
PARTS = ("kept", "rejected", "all")


def assign_folds(units: pd.Series[str], seed: int) -> NDArray[np.int64]:
    """Deal units at random into NUM_FOLDS folds whose numbers of units differ by at most one.

    Args:
        units: (n,) what each image belongs to, such as its content hash or its group.
        seed: of the draw.

    Returns:
        (n,) each image's fold, from 0; images of one unit share it.
    """
    codes, names = pd.factorize(units, sort=True)
    return np.random.default_rng(seed).permutation(len(names))[codes] % NUM_FOLDS


def keep_by_folds(
    frame: pd.DataFrame, cutoffs: Mapping[str, Cutoff], rule: Rule, folds: NDArray[np.float64]
) -> NDArray[np.bool_] | None:
    """Which images the vote keeps, each voted on with cut-offs that it did not choose.

    A voter that has no cut-off without a fold casts no low vote there.

    Args:
        frame: a column of scores a voter, NaN without one; such an image is not kept.
        cutoffs: the voters.
        rule: of the vote.
        folds: (n,) each image's fold; NaN for one on which no cut-off was fitted.

    Returns:
        (n,) whether each is kept; None if a fitted voter does not say what its cut-offs without
        each fold are.
    """
    num_low = np.zeros(len(frame), np.int64)
    is_scored = np.ones(len(frame), bool)
    places = np.where(np.isnan(folds), NUM_FOLDS, folds).astype(np.int64)
    for name, cutoff in cutoffs.items():
        values = cutoff.fold_values
        if cutoff.source == "manual":
            values = (cutoff.value,) * NUM_FOLDS
        if values is None:
            return None
        bounds = np.array([*values, cutoff.value], np.float64)[places]
        scores = frame[name].to_numpy(np.float64)
        is_scored &= ~np.isnan(scores)
        # nothing is below, or above, a cut-off that is NaN
        num_low += scores < bounds if cutoff.higher_is_better else scores > bounds
    return (num_low < votes_to_reject(rule, len(cutoffs))) & is_scored


def measure_accuracy(
    correct: NDArray[np.bool_], keep: NDArray[np.bool_], units: pd.Series[str]
) -> dict[str, Any]:
    """How often the classifier is right on kept, on rejected and on all images.

    Args:
        correct: (n,) whether it was right about each.
        keep: (n,) whether each is kept.
        units: (n,) what each belongs to: images of one unit count together in the intervals.

    Returns:
        For each of PARTS: num_<part>, accuracy_<part> (None without images) and
        accuracy_<part>_ci, its 95% interval (Wilson's, of as many independent images as the
        spread between units is worth: Korn and Graubard, Survey Methodology 24, 1998).
    """
    codes = pd.factorize(units)[0]
    found: dict[str, Any] = {}
    for part, chosen in zip(PARTS, (keep, ~keep, np.ones(len(keep), bool)), strict=True):
        found[f"num_{part}"] = total = int(chosen.sum())
        found[f"accuracy_{part}"] = found[f"accuracy_{part}_ci"] = None
        if total:
            accuracy = float(correct[chosen].mean())
            size = total / _measure_design_effect(correct[chosen], codes[chosen], accuracy)
            low, high = bound_share(accuracy * size, size)
            found[f"accuracy_{part}"] = accuracy
            found[f"accuracy_{part}_ci"] = [float(low), float(high)]
    return found


def _measure_design_effect(
    correct: NDArray[np.bool_], codes: NDArray[np.int64], accuracy: float
) -> float:
    """Variance of the accuracy with units drawn as a whole, over that with images drawn alone."""
    residuals = np.bincount(codes, correct - accuracy)[np.unique(codes)]
    count = len(residuals)
    if count < 2 or accuracy in (0.0, 1.0):  # no spread to tell: a unit counts as one image
        return len(correct) / count
    of_units = float((residuals**2).sum()) * count / (count - 1)
    of_images = accuracy * (1 - accuracy) * len(correct) ** 2 / (len(correct) - 1)
    return max(1.0, of_units / of_images)
