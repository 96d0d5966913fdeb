"""Cut-offs: the quality at which a classifier begins to fail (Smith et al., section 3.1.2).

For each metric, the densities of the scores of correctly and of incorrectly classified images
are estimated with Gaussian kernels. Where the curves cross between the two medians, an image is
as likely to come from either; that score is the metric's cut-off. Smith et al. take where the
curves cross; kernels, weights, medians and the choice among crossings are ours.

Everything here works on *oriented* scores (higher is better) and gives values back in the
metric's own direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from scipy import fft
from scipy.stats import rankdata

from iqa_ray.errors import UsageError
from iqa_ray.selection.settings import Bandwidth, Weighting

Floats = NDArray[np.float64]
Direction = Literal["higher_is_better", "lower_is_better"]

# the curves are tabulated at this many points a bandwidth, and this far beyond the data
_POINTS_PER_BANDWIDTH = 32
_MARGIN_BANDWIDTHS = 5.0
_MAX_POINTS = 1 << 17
# where both curves are below this share of their peak, their crossing is rounding error
_FLOOR = 1e-4


@dataclass(frozen=True)
class Cutoff:
    """The cut-off of one metric, or the reason why it has none.

    Attributes:
        value: the cut-off in the metric's own units; None without one.
        direction: `higher_is_better` or `lower_is_better`; an image is low when its score is on
            the worse side of `value`, strictly.
        source: `kde`, or `manual` for one set by hand.
        bandwidths: of the kernels of the `correct` and the `incorrect` class, in score units.
        medians: of the two classes.
        crossings: every score at which the two curves cross, ascending.
        ci: bootstrap 95% interval of `value`, ascending; None if it could not be had.
        valid_share: share of the bootstrap resamples that had a valid crossing.
        separation: probability that a correctly classified image has the better score than an
            incorrectly classified one (area under the ROC curve), 0.5 is chance.
        counts: images of each class.
        reason: why there is no cut-off; None with one.
        version: of the metric whose scores it was learnt on; None where it is not on record.
    """

    # of `from_json`
    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    value: float | None
    direction: Direction
    source: str = "kde"
    bandwidths: dict[str, float] | None = None
    medians: dict[str, float] | None = None
    crossings: tuple[float, ...] = ()
    ci: tuple[float, float] | None = None
    valid_share: float | None = None
    separation: float | None = None
    counts: dict[str, int] | None = None
    reason: str | None = None
    version: str | None = None

    @property
    def higher_is_better(self) -> bool:
        return self.direction == "higher_is_better"

    def is_low(self, scores: Floats) -> NDArray[np.bool_]:
        """Which scores are on the worse side of the cut-off."""
        assert self.value is not None
        return scores < self.value if self.higher_is_better else scores > self.value

    def to_json(self) -> dict[str, Any]:
        """The metric's entry in `cutoffs.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Cutoff:
        """The reverse of `to_json`.

        Raises:
            UsageError: `entry` is none of `to_json`; the message names the first wrong field.
        """
        try:
            return TypeAdapter(cls).validate_python(entry)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"])) or "it"
            raise UsageError(
                f"an entry of cutoffs.json is malformed ({where}: {problem['msg']}): run "
                "`iqa-ray cutoffs` again"
            ) from None


def name_direction(higher_is_better: bool) -> Direction:
    """The direction as it stands in `cutoffs.json`."""
    return "higher_is_better" if higher_is_better else "lower_is_better"


def fit_cutoff(
    scores: Floats,
    correct: NDArray[np.bool_],
    higher_is_better: bool,
    *,
    bandwidth: Bandwidth = "scott",
    weighting: Weighting = "equal",
    min_wrong: int = 10,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Cutoff:
    """Fit the cut-off of one metric.

    Args:
        scores: (n,) finite scores of the metric.
        correct: (n,) whether the classifier was right about each image.
        higher_is_better: the metric's direction.
        bandwidth: rule for the kernels' width, or the factor of each class's standard deviation.
        weighting: `equal` compares densities of equal area; `prior` weights each by its class's
            size, so that the curves cross where right and wrong are equally likely.
        min_wrong: fewer incorrectly (or correctly) classified images give no cut-off.
        num_resamples: bootstrap resamples, drawn within each class.
        seed: of the bootstrap.

    Returns:
        The cut-off; one without a value says why in its `reason`.
    """
    sign = 1.0 if higher_is_better else -1.0
    right, wrong = sign * scores[correct], sign * scores[~correct]
    direction = name_direction(higher_is_better)
    counts = {"correct": len(right), "incorrect": len(wrong)}
    reason = _find_obstacle(right, wrong, min_wrong)
    if reason is not None:
        return Cutoff(None, direction, counts=counts, reason=reason)
    widths = _bandwidth_of(right, bandwidth), _bandwidth_of(wrong, bandwidth)
    medians = float(np.median(right)), float(np.median(wrong))
    known: dict[str, Any] = {
        "direction": direction,
        "counts": counts,
        "bandwidths": {"correct": widths[0], "incorrect": widths[1]},
        "medians": {"correct": sign * medians[0], "incorrect": sign * medians[1]},
        "separation": measure_separation(right, wrong),
    }
    if medians[1] >= medians[0]:
        reason = "incorrectly classified images do not have the worse median: wrong side"
        return Cutoff(None, reason=reason, **known)
    curves = _Curves(right, wrong, _POINTS_PER_BANDWIDTH, bandwidth, weighting)
    ones = np.ones(len(right)), np.ones(len(wrong))
    crossings, value = curves.find_cutoff(*ones, *widths, *medians)
    known["crossings"] = tuple(sorted(sign * crossing for crossing in crossings))
    if value is None:
        between = " between the medians" if crossings else ""
        reason = f"the two densities do not cross{between} from incorrect to correct"
        return Cutoff(None, reason=reason, **known)
    found = _bootstrap(curves, num_resamples, seed)
    ci = None
    if len(found):
        ends = sorted(float(end) for end in sign * np.percentile(found, [2.5, 97.5]))
        ci = (ends[0], ends[1])
    share = len(found) / num_resamples if num_resamples else None
    return Cutoff(sign * value, ci=ci, valid_share=share, **known)


def measure_separation(right: Floats, wrong: Floats) -> float:
    """Area under the ROC curve of oriented scores: P(right > wrong) + P(right = wrong) / 2."""
    ranks = rankdata(np.concatenate([right, wrong]))
    rank_sum = float(ranks[: len(right)].sum()) - len(right) * (len(right) + 1) / 2
    return rank_sum / (len(right) * len(wrong))


def _find_obstacle(right: Floats, wrong: Floats, min_wrong: int) -> str | None:
    for name, scores in (("incorrectly", wrong), ("correctly", right)):
        if len(scores) < max(min_wrong, 2):
            return f"only {len(scores)} {name} classified images, {max(min_wrong, 2)} are needed"
        if np.ptp(scores) == 0:
            return f"all {name} classified images have the same score"
    return None


def _bandwidth_of(scores: Floats, rule: Bandwidth, weights: Floats | None = None) -> float:
    """Kernel width in score units: the rule's factor (d = 1) times the standard deviation."""
    if weights is None:
        size, deviation = len(scores), float(np.std(scores, ddof=1))
    else:
        size = int(weights.sum())
        mean = float(weights @ scores) / size
        deviation = float(np.sqrt(weights @ (scores - mean) ** 2 / (size - 1)))
    if rule == "scott":
        factor = size ** (-1 / 5)
    elif rule == "silverman":
        factor = (size * 3 / 4) ** (-1 / 5)
    else:
        factor = float(rule)
    return factor * deviation


class _Curves:
    """Both classes binned on one grid, so that a density is one Fourier transform.

    Linear binning on a grid of 1/32 bandwidth changes a density by less than 1e-4 of its peak.
    """

    def __init__(
        self,
        right: Floats,
        wrong: Floats,
        points_per_bandwidth: int,
        bandwidth: Bandwidth,
        weighting: Weighting,
    ) -> None:
        self.right, self.wrong = right, wrong
        self._rule, self._weighting = bandwidth, weighting
        widths = [_bandwidth_of(scores, bandwidth) for scores in (right, wrong)]
        margin = _MARGIN_BANDWIDTHS * max(widths)
        low = min(right.min(), wrong.min()) - margin
        high = max(right.max(), wrong.max()) + margin
        points = int(np.ceil((high - low) / min(widths) * points_per_bandwidth)) + 1
        self._grid = np.linspace(low, high, min(max(points, 1024), _MAX_POINTS))
        self._step = self._grid[1] - self._grid[0]
        # twice the length, so that the circular convolution does not wrap around
        self._length = fft.next_fast_len(2 * len(self._grid), real=True)
        self._omega = 2 * np.pi * np.fft.rfftfreq(self._length, self._step)
        self._places = [self._place(scores) for scores in (right, wrong)]

    def _place(self, scores: Floats) -> tuple[NDArray[np.int64], Floats]:
        position = (scores - self._grid[0]) / self._step
        cell = np.minimum(position.astype(np.int64), len(self._grid) - 2)
        return cell, position - cell

    def _density(self, which: int, weights: Floats, width: float) -> Floats:
        cell, fraction = self._places[which]
        size = len(self._grid)
        mass = np.bincount(cell, weights * (1 - fraction), size)
        mass += np.bincount(cell + 1, weights * fraction, size)
        kernel = np.exp(-0.5 * (self._omega * width) ** 2)
        density = fft.irfft(fft.rfft(mass, self._length) * kernel, self._length)[:size]
        return np.asarray(density) / (weights.sum() * self._step)

    def find_cutoff(
        self,
        right_weights: Floats,
        wrong_weights: Floats,
        right_width: float,
        wrong_width: float,
        right_median: float,
        wrong_median: float,
    ) -> tuple[list[float], float | None]:
        """Every crossing, and the one between the medians where `correct` takes over.

        If there are several such, the one that parts the classes best (Youden's index).
        """
        right = self._density(0, right_weights, right_width)
        wrong = self._density(1, wrong_weights, wrong_width)
        if self._weighting == "prior":
            right *= right_weights.sum()
            wrong *= wrong_weights.sum()
        matters = np.maximum(right, wrong) > _FLOOR * max(right.max(), wrong.max())
        difference = right - wrong
        change = np.sign(difference[:-1]) * np.sign(difference[1:]) < 0
        cells = np.flatnonzero(change & matters[:-1])
        slope = difference[cells + 1] - difference[cells]
        crossings = self._grid[cells] - difference[cells] / slope * self._step
        rising = (slope > 0) & (crossings > wrong_median) & (crossings < right_median)
        if not rising.any():
            return crossings.tolist(), None
        gain = -np.cumsum(difference)[cells]
        best = np.argmax(np.where(rising, gain, -np.inf))
        return crossings.tolist(), float(crossings[best])

    def resample(self, rng: np.random.Generator) -> float | None:
        """The cut-off of one bootstrap resample; None if it has no valid crossing."""
        weights, widths, medians = [], [], []
        for scores in (self.right, self.wrong):
            size = len(scores)
            chosen = rng.integers(size, size=size)
            count = np.bincount(chosen, minlength=size).astype(np.float64)
            weights.append(count)
            widths.append(_bandwidth_of(scores, self._rule, count))
            medians.append(float(np.median(scores[chosen])))
        if min(widths) <= self._step or medians[1] >= medians[0]:
            return None
        return self.find_cutoff(weights[0], weights[1], *widths, *medians)[1]


def _bootstrap(curves: _Curves, num_resamples: int, seed: int) -> Floats:
    """Cut-offs of those resamples that have one."""
    rng = np.random.default_rng(seed)
    found = (curves.resample(rng) for _ in range(num_resamples))
    return np.array([value for value in found if value is not None])
