"""Accuracy against the share of images that is kept: risk and coverage.

Every voter orders the images from best to worst, and the classifier's accuracy is measured on the
best ones of each number. Images of the same quality are in no order: a number that ends among them
stands for the average over all orders of theirs. Images that a voter has no value for come last,
as one such tie, so that every curve is of the same images.

The area under the generalized risk coverage curve (AUGRC) is that of Traub et al. 2024: the
integral, over coverage, of the share of all images that are kept and wrongly classified. It lies
between err² / 2 (every wrong image behind every right one) and err - err² / 2; an order at random
has err / 2 on average (err: the share of wrong ones). Lower is better. With ties the integral
equals (1 - AUROC) · (1 - err) · err + err² / 2, AUROC being that of quality for correctness.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from scipy import integrate

from iqa_ray.selection.significance import Floats, bound_share

RISK_COVERAGE_SCHEMA = pa.schema(
    [
        ("voter", pa.string()),
        ("coverage", pa.float64()),
        ("num_images", pa.int64()),
        ("accuracy", pa.float64()),
        ("accuracy_low", pa.float64()),
        ("accuracy_high", pa.float64()),
    ]
)
VOTE, CONFIDENCE, RANDOM = "vote", "confidence", "random"
_MAX_POINTS = 200  # of a curve


def trace_coverage(
    qualities: Mapping[str, Floats], correct: NDArray[np.bool_]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Accuracy against the share kept, for each voter and for an order at random.

    Args:
        qualities: by voter, (n,) qualities of the images, higher is better; NaN without one.
        correct: (n,) whether the classifier was right about each image, n > 0.

    Returns:
        The rows of `risk_coverage.parquet` (RISK_COVERAGE_SCHEMA), for each voter and `random` at
        most 200, coverage ascending up to 1, with Wilson's 95% interval of each accuracy on its
        own; and the AUGRC of each, which is of all images, not of the rows alone.
    """
    rows, areas = [], {}
    wrong = ~correct
    num_kept = _spread_numbers(len(correct))
    for voter, quality in {**qualities, RANDOM: np.zeros(len(correct))}.items():
        ends, num_wrong = _count_wrong(quality, wrong)
        areas[voter] = float(integrate.trapezoid(num_wrong, ends)) / len(correct) ** 2
        num_right = num_kept - np.interp(num_kept, ends, num_wrong)
        low, high = bound_share(num_right, num_kept)
        columns = {
            "voter": voter,
            "coverage": num_kept / len(correct),
            "num_images": num_kept,
            "accuracy": num_right / num_kept,
            "accuracy_low": low,
            "accuracy_high": high,
        }
        rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True), areas


def order_by_votes(num_low: NDArray[np.int64], ranks: Floats, num_ranked: int) -> Floats:
    """(n,) qualities by which the vote orders images: fewer low votes first, then better ranks.

    What a rule keeps are the first ones of this order, whichever rule it is.

    Args:
        num_low: (n,) low votes of each image.
        ranks: (n,) mean ranks, as `rank_images` gives them; NaN for an unscored image.
        num_ranked: no rank is higher.
    """
    return ranks - num_low * float(num_ranked)


def _spread_numbers(num_images: int) -> NDArray[np.int64]:
    """Numbers of images, evenly spread and ascending to all of them."""
    count = min(num_images, _MAX_POINTS)
    return np.arange(1, count + 1) * num_images // count


def _count_wrong(quality: Floats, wrong: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Where each tie ends among the images, from best to worst, and how many wrong ones then."""
    order = np.argsort(-quality, kind="stable")  # NaN is last
    ordered = quality[order]
    is_end = np.ones(len(ordered), bool)
    is_end[:-1] = (ordered[:-1] != ordered[1:]) & ~np.isnan(ordered[:-1])
    ends = np.flatnonzero(is_end)
    num_wrong = np.cumsum(wrong[order])[ends]
    return np.append(0.0, ends + 1.0), np.append(0.0, num_wrong)
