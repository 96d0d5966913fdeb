"""Cut-offs: the quality at which a classifier begins to fail (Smith et al., section 3.1.2).

For each metric, the densities of the scores of correctly and of incorrectly classified images
are estimated with Gaussian kernels. Where the curves cross and `correct` takes over as quality
rises, an image is as likely to come from either; that score is the metric's cut-off, if it parts
the classes better than chance and most resamples have such a crossing. Smith et al. take where the
curves cross; kernels, scale, weights, tests and the choice among crossings are ours.

Cut-offs and scores are in the metric's own direction and units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from scipy.stats import rankdata

from iqa_ray.errors import UsageError
from iqa_ray.selection.densities import Curves
from iqa_ray.selection.settings import Bandwidth, Scale, Weighting
from iqa_ray.selection.significance import Floats

Direction = Literal["higher_is_better", "lower_is_better"]

CLASSES = ("correct", "incorrect")
MAX_P_VALUE = 0.01
MIN_VALID_SHARE = 0.8
# the permutation test stops when this many permutations are as good as the observed classes
_MAX_EXCEEDING = 20


@dataclass(frozen=True)
class Cutoff:
    """The cut-off of one metric, or the reason why it has none.

    Attributes:
        value: the cut-off in the metric's own units; None without one.
        direction: `higher_is_better` or `lower_is_better`; an image is low when its score is on
            the worse side of `value`, strictly.
        source: `kde`, `certified`, or `manual` for one set by hand.
        bandwidths: of the kernels of the `correct` and the `incorrect` class, in units of the
            scale that the densities were estimated on.
        medians: of the two classes.
        crossings: every score at which the two curves cross, ascending.
        ci: bootstrap 95% interval of `value`, ascending; None if it could not be had.
        valid_share: share of the bootstrap resamples that had a valid crossing.
        separation: probability that a correctly classified image has the better score than an
            incorrectly classified one (area under the ROC curve), 0.5 is chance.
        counts: images of each class.
        reason: why there is no cut-off; None with one.
        version: of the metric whose scores it was learnt on; None where it is not on record.
        scale: `raw` or `log`: densities of the scores or of their logarithms.
        youden: share of the incorrectly minus share of the correctly classified images that the
            best crossing rejects, in [0, 1].
        p_value: of a Youden index at least as large if scores and correctness were unrelated.
        is_between_medians: whether the best crossing lies between the two classes' medians.
        certified: of a vote with a guarantee: target, confidence, accuracy_kept, share_kept,
            num_images, voters and rule; the guarantee is that vote's, not one metric's.
        fold_values: the cut-offs fitted without each fold of `folds.parquet`, in their order, None
            without one; None where there are no folds.
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
    scale: Scale | None = None
    youden: float | None = None
    p_value: float | None = None
    is_between_medians: bool | None = None
    certified: dict[str, Any] | None = None
    fold_values: tuple[float | None, ...] | None = None

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


@dataclass(frozen=True)
class _Axis:
    """From scores to the oriented axis on which densities are estimated, and back.

    `floor` stands for scores of 0 on a log scale: the smallest score above 0. `bounds` are those
    of the metric, on the axis.
    """

    scale: Scale
    sign: float
    floor: float
    bounds: tuple[float, float]

    @classmethod
    def fit(
        cls,
        scores: Floats,
        scale: Scale | Literal["auto"],
        value_range: tuple[float, float],
        higher_is_better: bool,
    ) -> _Axis:
        if scale == "auto":  # scores of range (0, inf) spread over orders of magnitude
            scale = "log" if value_range == (0.0, inf) else "raw"
        sign = 1.0 if higher_is_better else -1.0
        positive = scores[scores > 0]
        floor = float(positive.min()) if len(positive) else 1.0
        ends = sorted(sign * end for end in value_range)
        bounds = (-inf, inf) if scale == "log" else (ends[0], ends[1])
        return cls(scale, sign, floor, bounds)

    def find_obstacle(self, scores: Floats) -> str | None:
        if self.scale == "log" and (scores < 0).any():
            return f"a log scale needs scores of at least 0, the lowest is {scores.min():.4g}"
        return None

    def orient(self, scores: Floats) -> Floats:
        if self.scale == "log":
            scores = np.log(np.maximum(scores, self.floor))
        return self.sign * scores

    def restore(self, oriented: ArrayLike) -> Floats:
        value = self.sign * np.asarray(oriented, np.float64)
        return np.exp(value) if self.scale == "log" else value


def fit_cutoff(
    scores: Floats,
    correct: NDArray[np.bool_],
    higher_is_better: bool,
    *,
    value_range: tuple[float, float] = (-inf, inf),
    scale: Scale | Literal["auto"] = "auto",
    bandwidth: Bandwidth = "scott",
    weighting: Weighting = "equal",
    min_wrong: int = 10,
    num_resamples: int = 1000,
    num_permutations: int = 999,
    seed: int = 0,
) -> Cutoff:
    """Fit the cut-off of one metric.

    Of the crossings where `correct` takes over as quality rises, the one with the largest Youden
    index is taken. It counts if that index exceeds chance (permutation test of the same maximum,
    p < 0.01) and at least 80% of the bootstrap resamples have such a crossing.

    Args:
        scores: (n,) finite scores of the metric.
        correct: (n,) whether the classifier was right about each image.
        higher_is_better: the metric's direction.
        value_range: of the metric; a density has no mass beyond it.
        scale: `log` estimates densities of log scores, `auto` does so for range (0, ∞). A score of
            0 then counts as the smallest one above 0.
        bandwidth: rule for the kernels' width, or the factor of each class's spread.
        weighting: `equal` compares densities of equal area; `prior` weights each by its class's
            size, so that the curves cross where right and wrong are equally likely.
        min_wrong: fewer incorrectly (or correctly) classified images give no cut-off.
        num_resamples: bootstrap resamples, drawn within each class; 0 leaves the bootstrap out.
        num_permutations: at most; 0 leaves the test out.
        seed: of bootstrap and permutations.

    Returns:
        The cut-off; one without a value says why in its `reason`.
    """
    axis = _Axis.fit(scores, scale, value_range, higher_is_better)
    oriented = axis.orient(scores)
    right, wrong = oriented[correct], oriented[~correct]
    known: dict[str, Any] = {
        "direction": name_direction(higher_is_better),
        "counts": {"correct": len(right), "incorrect": len(wrong)},
    }
    reason = axis.find_obstacle(scores) or _find_obstacle(right, wrong, min_wrong)
    if reason is not None:
        return Cutoff(None, reason=reason, **known)
    curves = Curves(right, wrong, bounds=axis.bounds, rule=bandwidth, weighting=weighting)
    rng = np.random.default_rng(seed)
    return _choose_crossing(curves, axis, known, num_permutations, num_resamples, rng)


def _choose_crossing(
    curves: Curves,
    axis: _Axis,
    known: dict[str, Any],
    num_permutations: int,
    num_resamples: int,
    rng: np.random.Generator,
) -> Cutoff:
    """The best crossing of two curves, if it exceeds chance and is stable."""
    right, wrong = curves.classes
    medians = float(np.median(right)), float(np.median(wrong))
    known |= {
        "scale": axis.scale,
        "bandwidths": dict(zip(CLASSES, curves.widths, strict=True)),
        "medians": dict(zip(CLASSES, axis.restore(medians).tolist(), strict=True)),
        "separation": measure_separation(right, wrong),
    }
    reason: str | None = None
    if not curves.is_fine:
        reason = f"scores spread over {curves.extent:,.0f} kernel widths, too many to resolve"
        return Cutoff(None, reason=reason, **known)
    masses = curves.bin_linearly()
    crossings = curves.find_crossings(*masses, curves.widths)
    known["crossings"] = tuple(sorted(axis.restore(crossings.values).tolist()))
    best = crossings.best
    if best is None:
        side = "; incorrectly classified images have the better median"
        reason = "the two densities do not cross from incorrect to correct"
        return Cutoff(None, reason=reason + side * (medians[1] >= medians[0]), **known)
    value = float(crossings.values[best])
    known["youden"] = crossings.best_youden
    known["is_between_medians"] = medians[1] < value < medians[0]
    if num_permutations:
        known["p_value"] = measure_p_value(curves, num_permutations, rng)
        reason = _find_chance(known["youden"], known["p_value"])
    if num_resamples and reason is None:
        found = _bootstrap(curves, masses, num_resamples, rng)
        known["valid_share"] = share = len(found) / num_resamples
        if share < MIN_VALID_SHARE:
            reason = f"only {share:.0%} of resamples have a crossing, {MIN_VALID_SHARE:.0%} needed"
        else:
            known["ci"] = tuple(sorted(axis.restore(np.percentile(found, [2.5, 97.5])).tolist()))
    return Cutoff(None if reason else float(axis.restore(value)), reason=reason, **known)


def _find_chance(youden: float, p_value: float) -> str | None:
    if p_value < MAX_P_VALUE:
        return None
    return f"no better than chance (Youden index {youden:.3f}, p = {p_value:.2g})"


def tabulate_densities(
    scores: Floats, correct: NDArray[np.bool_], cutoff: Cutoff, value_range: tuple[float, float]
) -> tuple[Floats, Floats, Floats]:
    """The two densities that `cutoff` was estimated from, for a figure.

    Returns:
        (n,) ascending scores, and the densities of the correctly and of the incorrectly classified
        images there, on the cut-off's scale: per unit of score, or of its natural logarithm.
    """
    assert cutoff.scale is not None
    assert cutoff.bandwidths is not None
    axis = _Axis.fit(scores, cutoff.scale, value_range, cutoff.higher_is_better)
    oriented = axis.orient(scores)
    curves = Curves(oriented[correct], oriented[~correct], bounds=axis.bounds)
    right, wrong = (
        curves.estimate_density(mass, cutoff.bandwidths[name])
        for mass, name in zip(curves.bin_linearly(), CLASSES, strict=True)
    )
    order = slice(None, None, int(axis.sign))
    return axis.restore(curves.grid)[order], right[order], wrong[order]


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


def measure_p_value(curves: Curves, num_permutations: int, rng: np.random.Generator) -> float:
    """p-value of the best crossing's Youden index under permutations of right and wrong.

    The maximum over crossings is taken anew in each permutation. Testing stops early when the
    answer is clear, at which point p is the share of permutations that are as good (Besag and
    Clifford, Biometrika 78(2), 1991).
    """
    right, wrong = curves.bin_whole()
    _, observed = curves.find_best(right, wrong)
    totals = right + wrong
    used = np.flatnonzero(totals)
    exceeding = 0
    for number in range(1, num_permutations + 1):
        permuted = np.zeros_like(totals)
        permuted[used] = rng.multivariate_hypergeometric(
            totals[used], right.sum(), method="marginals"
        )
        exceeding += curves.find_best(permuted, totals - permuted)[1] >= observed
        if exceeding == _MAX_EXCEEDING:
            return exceeding / number
    return (exceeding + 1) / (num_permutations + 1)


def _bootstrap(
    curves: Curves, masses: tuple[Floats, Floats], num_resamples: int, rng: np.random.Generator
) -> Floats:
    """Oriented cut-offs of those resamples that have one.

    The binned classes are resampled, so that the cost does not depend on the number of images.
    """
    parts = []
    for mass in masses:
        used = np.flatnonzero(mass)
        parts.append((used, round(mass.sum()), mass[used] / mass[used].sum()))
    found = []
    for _ in range(num_resamples):
        resampled = []
        for used, size, shares in parts:
            counts = np.zeros(len(masses[0]))
            counts[used] = rng.multinomial(size, shares)
            resampled.append(counts)
        value, _ = curves.find_best(*resampled)
        if value is not None:
            found.append(value)
    return np.array(found)
