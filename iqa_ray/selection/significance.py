"""What chance explains: the interval of a share, and p values of several tests at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

_Z = float(stats.norm.ppf(0.975))  # of the 95% intervals


def bound_share(num: ArrayLike, total: ArrayLike) -> tuple[Floats, Floats]:
    """Wilson's 95% interval of the share num / total, elementwise; totals are above 0."""
    num, total = np.asarray(num, np.float64), np.asarray(total, np.float64)
    centre = (num + _Z**2 / 2) / (total + _Z**2)
    margin = _Z / (total + _Z**2) * (num * (total - num) / total + _Z**2 / 4) ** 0.5
    return np.clip(centre - margin, 0, 1), np.clip(centre + margin, 0, 1)


def adjust_holm(p_values: Floats) -> Floats:
    """Holm's step-down adjustment of (n,) p values for testing all of them.

    The smallest is multiplied by n, the next one by n - 1 and so on; none may be smaller than the
    one before it, nor exceed 1. A NaN was not tested: it stays, and does not count.
    """
    adjusted = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return adjusted
