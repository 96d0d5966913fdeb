"""Whether tonight's scores differ from the reference's, and what is worth an alert.

The Kolmogorov–Smirnov distance says how far two distributions are apart at most, the population
stability index (PSI) how much of them lies elsewhere. By convention a PSI below 0.1 is called
stable, 0.1 to 0.25 moderate drift and above 0.25 major drift (Siddiqi 2006, Credit Risk
Scorecards). That convention is for samples of thousands: without any drift the PSI of 10 bins is
about 9 (1/n + 1/m), which is 0.19 for 50 scores against 1,000. Hence the p value beside it.
Pure: numbers in, numbers out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from iqa_ray.selection.significance import Floats, bound_share

MIN_SCORES = 20  # on either side: with fewer there is nothing to compare
_SMOOTHING = 0.5  # added to each bin's count, so that an empty bin has a logarithm
_ALERT_P = 0.01  # a PSI that chance exceeds more often than this raises no alert
# differences that agree to this many decimals are equal: 0.4 - 0.3 is not quite 0.1
_DECIMALS = 9


@dataclass(frozen=True)
class Drift:
    """How far current scores are from those of the reference.

    Attributes:
        num_reference, num_current: scores that were compared.
        num_dropped_reference, num_dropped_current: NaN or infinite ones, which were not.
        ks: Kolmogorov–Smirnov distance in [0, 1].
        ks_p: its two-sided p value, approximate where scores are tied or a side has more than
            10,000.
        psi: population stability index, from 0 up.
        psi_p: how often chance alone gives a PSI as large, approximately.
        reason: why there are no measures (which are None then); None where there are.
    """

    num_reference: int
    num_current: int
    num_dropped_reference: int
    num_dropped_current: int
    ks: float | None = None
    ks_p: float | None = None
    psi: float | None = None
    psi_p: float | None = None
    reason: str | None = None


def measure_drift(reference: Floats, current: Floats, num_bins: int = 10) -> Drift:
    """Compare two samples of one metric's scores.

    The PSI is Σ (q - p) ln(q / p) over bins, p the share of the reference in a bin and q that of
    the current scores, each (count + 0.5) / (n + 0.5 · bins). The bins hold equally many reference
    scores: each ends with one of the reference's quantiles, and bins that ties leave empty are
    merged. A reference of one value has three bins: below it, at it, above it. Without drift
    PSI / (1/n + 1/m) is about chi-squared with bins - 1 degrees of freedom (Yurdakul 2018,
    Statistical Properties of Population Stability Index).

    Args:
        reference: (n,) scores of the reference period; NaN for an image without one.
        current: (m,) scores to be judged, of other images.
        num_bins: at least 2.

    Returns:
        Without measures where either side has fewer than MIN_SCORES scores.
    """
    assert num_bins >= 2, num_bins
    old, new = reference[np.isfinite(reference)], current[np.isfinite(current)]
    counts = (len(old), len(new), len(reference) - len(old), len(current) - len(new))
    for name, scores in (("reference", old), ("current", new)):
        if len(scores) < MIN_SCORES:
            reason = f"{len(scores)} {name} scores, at least {MIN_SCORES} are needed"
            return Drift(*counts, reason=reason)
    with warnings.catch_warnings():
        # many ties can defeat the exact p; SciPy warns and gives the approximate one
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ks_2samp(old, new)
    edges = _choose_edges(old, num_bins)
    psi = _measure_psi(_count_in_bins(old, edges), _count_in_bins(new, edges))
    psi_p = stats.chi2.sf(psi / (1 / len(old) + 1 / len(new)), len(edges))
    return Drift(*counts, float(test.statistic), float(test.pvalue), psi, float(psi_p))


def _choose_edges(reference: Floats, num_bins: int) -> Floats:
    """Inner edges, ascending; a bin holds its upper edge, so that each holds a reference score."""
    shares = np.arange(1, num_bins) / num_bins
    edges = np.unique(np.quantile(reference, shares, method="inverted_cdf"))
    edges = edges[edges < reference.max()]
    if not len(edges):
        value = reference.max()
        edges = np.array([np.nextafter(value, -np.inf), value])
    return edges


def _count_in_bins(scores: Floats, edges: Floats) -> NDArray[np.int64]:
    return np.bincount(np.searchsorted(edges, scores, side="left"), minlength=len(edges) + 1)


def _measure_psi(reference: NDArray[np.int64], current: NDArray[np.int64]) -> float:
    """Population stability index of two (bins,) arrays of counts."""
    p, q = (
        (counts + _SMOOTHING) / (counts.sum() + _SMOOTHING * len(counts))
        for counts in (reference, current)
    )
    return float(((q - p) * np.log(q / p)).sum())


@dataclass(frozen=True)
class ShareChange:
    """A share before and now. Shares are in [0, 1], differences in [-1, 1]; None where undefined.

    Attributes:
        num_before, total_before: the share before, as counts.
        num_now, total_now: the share now, as counts.
        share_before, share_now: None where the total is 0.
        difference: now - before; None where either is.
        low, high: ends of its 95% interval.
    """

    num_before: int
    total_before: int
    num_now: int
    total_now: int
    share_before: float | None = None
    share_now: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def compare_shares(num_before: int, total_before: int, num_now: int, total_now: int) -> ShareChange:
    """How a share of images, such as that of the rejected ones, has changed.

    The interval is Newcombe's hybrid score interval (1998, Statistics in Medicine 17: 873–890,
    method 10), made of the two Wilson intervals. It takes the two groups for independent: give
    other images now than before, not the whole data set twice.
    """
    assert 0 <= num_before <= total_before, (num_before, total_before)
    assert 0 <= num_now <= total_now, (num_now, total_now)
    counts = (num_before, total_before, num_now, total_now)
    before = num_before / total_before if total_before else None
    now = num_now / total_now if total_now else None
    if before is None or now is None:
        return ShareChange(*counts, before, now)
    low_before, high_before = bound_share(num_before, total_before)
    low_now, high_now = bound_share(num_now, total_now)
    difference = now - before
    low = difference - float(np.hypot(now - low_now, high_before - before))
    high = difference + float(np.hypot(high_now - now, before - low_before))
    return ShareChange(*counts, before, now, difference, low, high)


def find_alerts(
    drifts: Mapping[str, Drift],
    rejected: ShareChange,
    num_failed: int,
    num_images: int,
    alert_drift: float | None = None,
    alert_rejected: float | None = None,
    alert_errors: float | None = None,
) -> list[str]:
    """What exceeds its threshold, in words; a threshold of None is not looked at.

    Drift and rejected share must also exceed chance, or a night with a handful of new images
    would be an alert more often than not. What is undefined is no alert.

    Args:
        drifts: by metric.
        rejected: the share of images that are rejected.
        num_failed: images that some metric has no score for, of `num_images`.
        num_images: at least `num_failed`.
        alert_drift: a PSI; it counts where psi_p is below 0.01.
        alert_rejected: an increase of the rejected share (0.05: five percentage points); it
            counts where its 95% interval excludes zero.
        alert_errors: a share of images that failed.
    """
    reasons = []
    if alert_drift is not None:
        for name, drift in drifts.items():
            if drift.psi is None or drift.psi_p is None:
                continue
            if drift.psi > alert_drift and drift.psi_p < _ALERT_P:
                reasons.append(_describe_drift(name, drift, alert_drift))
    if alert_rejected is not None and rejected.difference is not None:
        rise = round(rejected.difference, _DECIMALS)
        if rise > alert_rejected and (rejected.low or 0) > 0:
            reasons.append(_describe_increase(rejected, alert_rejected))
    if alert_errors is not None and num_images and num_failed / num_images > alert_errors:
        reasons.append(
            f"{num_failed:,} of {num_images:,} images failed ({num_failed / num_images:.1%}), "
            f"more than {alert_errors:.1%}"
        )
    return reasons


def _describe_drift(name: str, drift: Drift, threshold: float) -> str:
    return (
        f"{name} scores drifted: population stability index {drift.psi:.2f}, more than "
        f"{threshold:g} (Kolmogorov–Smirnov distance {drift.ks:.2f}; {drift.num_current:,} scores "
        f"against {drift.num_reference:,} of the reference)"
    )


def _describe_increase(rejected: ShareChange, threshold: float) -> str:
    low, high = 100 * (rejected.low or 0), 100 * (rejected.high or 0)
    return (
        f"rejected share rose from {rejected.share_before:.1%} to {rejected.share_now:.1%}, by "
        f"more than {100 * threshold:g} points (95% interval of the change {low:+.1f} to "
        f"{high:+.1f})"
    )
