"""A guaranteed vote: the loosest cut-offs whose kept images reach a target accuracy.

Learn-then-Test (Angelopoulos et al.): each hypothesis "with these cut-offs the classifier is right
on fewer kept images than the target" has an exact binomial test on judged images, and the error of
rejecting any true one is held at 1 - confidence over all of them.

**The guarantee.** With probability `confidence` over the judged images and the seed, the vote with
the certified cut-offs keeps only a population's images of which the classifier is right on at
least `target`. The population is what the judged images are an independent random sample of: later
images like these, under the same classifier. It is not about the judged images themselves, whose
accuracy is known, nor about other sources of images. Several shots of one object are not
independent: give one image an object. Voters, rule and target must not have been chosen by the
outcomes of these images, for instance by which metrics have a cut-off on them.

**The path.** The cut-offs of all voters move together from strict to loose: at level j every voter
calls its worst 1 - j/100 low, and the last level keeps everything that has a score. Which scores
these quantiles are is learnt on the path part, a tenth of the judged images drawn at random, from
scores alone. The tests see only the other images, the testing part.

Why a part of its own: given the path, the testing images are independent draws, the hypotheses are
fixed, and of the n that a level keeps the number of right ones is exactly binomial(n, its
accuracy). With cut-offs at quantiles of the testing images' own scores that would not hold. Given
all scores, the number of right ones is a sum of unlike Bernoulli variables whose mean is that of
these very images, and a test of it says nothing exact about later ones. A tenth is enough, since
any path is valid and a rough one is only slightly worse.

**Multiplicity.** A fixed sequence from the strict end stops at once: the first keep sets are too
small to be certified even where all are right, which takes log(1 - confidence) / log(target)
images. So the sequence has several starts. The first is where 3 times that number of testing
images is expected to be kept, the next ones where it is 3 times as many each time, and the last
one is the level that keeps everything. They share half of the permitted error equally, but that
the last one gets a fifth of what another one gets. The other half goes to the level that looks
best by the outcomes of the path part, if one looks better than the target there; else they have
all. From a start the walk goes on to looser levels while it rejects, and hands what it has to the
next start (the fallback procedure, Wiens 2003, which is at least as powerful as Bonferroni over
the starts). The levels and their shares depend on the path part and on numbers of images, never
on who is right in the testing part, so the family-wise error is at most 1 - confidence, whatever
the accuracy does along the path.

Why so: on simulated and real votes (`benchmarks.guarantee_options`), one start far up is often too
weak, one far down misses what only strict levels reach, and fixed starts miss a band between them
where strict levels are wrong as well. Only the start that outcomes choose finds that band, but a
tenth of the images chooses badly where there are few, and more of them are lost to the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, inf, log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from iqa_ray.errors import UsageError
from iqa_ray.selection.significance import Floats

Ints = NDArray[np.int64]

_NUM_LEVELS = 100
_PATH_SHARE = 0.1
# expected keep set of the first start, in images that would do if all were right, and the ratio
# of each start's to the one before
_FIRST_START = 3.0
_START_RATIO = 3.0
# a start that keeps more than this share of everything adds little to the one that keeps all
_LAST_START = 2 / 3
_WEIGHT_OF_ALL = 0.2
# smaller keep sets do not say how many images would be needed
_MIN_KEPT = 10
# the chance to be certified with the number of images that is said to be needed
_POWER = 0.8


@dataclass(frozen=True)
class Certificate:
    """What `certify` found: cut-offs with a guarantee, or why there are none.

    Attributes:
        target: the accuracy on kept images that was asked for.
        confidence: the probability with which it holds.
        num_images: judged images in the testing part, with or without scores.
        cutoffs: of each voter, in its own units; None where nothing could be certified.
        accuracy_kept: observed on the testing images that the vote keeps.
        share_kept: of the testing images.
        num_more: about how many more judged images would be needed, if the keep set that needs
            fewest is as accurate and as large a share as observed: with so many it is certified
            with a probability of 0.8. None where no keep set was above the target, and where
            something was certified.
        reason: why nothing was certified; None otherwise.
    """

    target: float
    confidence: float
    num_images: int
    cutoffs: dict[str, float] | None = None
    accuracy_kept: float | None = None
    share_kept: float | None = None
    num_more: int | None = None
    reason: str | None = None

    def describe(self) -> dict[str, Any]:
        """What the summary and `cutoffs.json` say of the vote."""
        names = ("target", "confidence", "accuracy_kept", "share_kept", "num_images")
        return {name: getattr(self, name) for name in names}


def certify(
    scores: Mapping[str, Floats],
    correct: NDArray[np.bool_],
    higher_is_better: Mapping[str, bool],
    votes_to_reject: int,
    target: float,
    confidence: float = 0.95,
    seed: int = 0,
) -> Certificate:
    """Certify the loosest vote that keeps images of at least the target accuracy.

    Args:
        scores: (n,) scores of each voter; NaN without one, which rejects the image.
        correct: (n,) whether the classifier was right about each image.
        higher_is_better: the direction of each voter.
        votes_to_reject: so many low votes reject an image, 1 to the number of voters.
        target: accuracy on kept images, within (0, 1).
        confidence: probability with which it holds, within (0, 1).
        seed: of the draw of the path part. One that was chosen by its result is no random draw.

    Returns:
        The cut-offs and what was observed with them, or the reason why there are none. An image
        is low where its score is strictly on the worse side of the voter's cut-off.

    Raises:
        UsageError: target or confidence out of range.
    """
    for name, value in (("target accuracy", target), ("confidence", confidence)):
        if not 0 < value < 1:
            raise UsageError(f"the {name} must be above 0 and below 1, not {value:g}")
    assert 1 <= votes_to_reject <= len(scores), "rules are checked where they are given"
    signs = np.array([1.0 if higher_is_better[name] else -1.0 for name in scores])
    oriented = signs * np.column_stack(list(scores.values()))
    num_path = ceil(_PATH_SHARE * len(correct))
    order = np.random.default_rng(seed).permutation(len(correct))
    chosen, tested = oriented[order[:num_path]], oriented[order[num_path:]]
    certificate = Certificate(target, confidence, len(tested))
    few = "too few judged images have a score of every voter"
    if np.isnan(chosen).any(axis=1).all():
        return replace(certificate, reason=few)
    path = _make_path(chosen)
    was_right = correct[order]
    kept = _count_kept(path, tested, votes_to_reject)
    right = _count_kept(path, tested[was_right[num_path:]], votes_to_reject)
    if not kept[-1]:
        return replace(certificate, reason=few)
    kept_of_path = _count_kept(path, chosen, votes_to_reject)
    right_of_path = _count_kept(path, chosen[was_right[:num_path]], votes_to_reject)
    expected = kept_of_path / num_path * len(tested)
    favourite = _choose_start(kept_of_path, right_of_path, target)
    errors = _share_error(expected, favourite, target, 1 - confidence)
    level = _walk(binom.sf(right - 1, kept, target), errors)
    if level is None:
        return _explain(certificate, kept, right, errors)
    return replace(
        certificate,
        cutoffs=dict(zip(scores, (signs * path[level]).tolist(), strict=True)),
        accuracy_kept=float(right[level] / kept[level]),
        share_kept=float(kept[level] / len(tested)),
    )


def _make_path(oriented: Floats) -> Floats:
    """(levels, voters) cut-offs from strict to loose; the last level is far below every score."""
    complete = oriented[~np.isnan(oriented).any(axis=1)]
    shares = 1 - np.arange(1, _NUM_LEVELS + 1) / _NUM_LEVELS
    lowest = complete.min(axis=0)
    below = lowest - (complete.max(axis=0) - lowest)
    return np.vstack([np.quantile(complete, shares, axis=0), below])


def _count_kept(path: Floats, oriented: Floats, votes_to_reject: int) -> Ints:
    """(levels,) how many of the (n, voters) images each level keeps."""
    complete = oriented[~np.isnan(oriented).any(axis=1)]
    passed = np.column_stack(
        [
            np.searchsorted(-cutoffs, -values)  # first level with a cut-off of at most the score
            for cutoffs, values in zip(path.T, complete.T, strict=True)
        ]
    )
    # The first level at which too few voters are left to reject the image. Cut-offs only fall
    # along the path, so all later levels keep it too.
    first = np.sort(passed, axis=1)[:, -votes_to_reject]
    return np.cumsum(np.bincount(first, minlength=len(path) + 1)[: len(path)])


def _choose_start(kept: Ints, right: Ints, target: float) -> int | None:
    """The level that the path part's outcomes recommend; None if none looks above the target.

    Its excess over the target is the largest in standard errors, the accuracy drawn towards 1/2
    as if one more image were right and one more wrong; of equals the loosest.
    """
    excess = ((right + 1) / (kept + 2) - target) * np.sqrt(kept)
    level = len(kept) - 1 - int(np.argmax(excess[::-1]))
    return level if excess[level] > 0 else None


def _share_error(expected: Floats, favourite: int | None, target: float, error: float) -> Floats:
    """(levels,) the error that is given to each start, 0 for the other levels.

    Args:
        expected: (levels,) testing images that each level is expected to keep.
        favourite: the level that half of the error goes to; None for none.
        target: accuracy on kept images.
        error: that is permitted in all.
    """
    sizes = []
    size = _FIRST_START * log(error) / log(target)
    while size < _LAST_START * expected[-1]:
        sizes.append(size)
        size *= _START_RATIO
    starts = [*np.searchsorted(expected, sizes), len(expected) - 1]
    weights = np.array([1.0] * len(sizes) + [_WEIGHT_OF_ALL])
    errors = np.zeros(len(expected))
    np.add.at(errors, starts, error * weights / weights.sum())
    if favourite is not None:
        errors /= 2
        errors[favourite] += error / 2
    return errors


def _walk(p_values: Floats, errors: Floats) -> int | None:
    """The loosest level that the fallback procedure rejects; None if it rejects none.

    A level is tested at its own error and, where the level before it was rejected, that one's.
    """
    loosest, carried = None, 0.0
    for level, (p_value, error) in enumerate(zip(p_values, errors, strict=True)):
        carried += error
        if carried and p_value <= carried:
            loosest = level
        else:
            carried = 0.0
    return loosest


def _explain(certificate: Certificate, kept: Ints, right: Ints, errors: Floats) -> Certificate:
    """Why nothing was certified, and about how many more judged images it would take.

    Looked at are the starts, and the stricter levels: more images put the first start there.
    """
    error = 1 - certificate.confidence
    is_start = errors > 0
    is_stricter = (np.arange(len(errors)) < np.argmax(is_start)) & (kept >= _MIN_KEPT)
    levels = np.flatnonzero((is_start & (kept > 0)) | is_stricter)
    accuracies = right[levels] / kept[levels]
    needed = np.array(
        [
            _estimate_needed(accuracy, certificate.target, errors[level])
            if is_start[level]
            else max(
                _estimate_needed(accuracy, certificate.target, error / 2),
                _FIRST_START * log(error) / log(certificate.target),
            )
            for accuracy, level in zip(accuracies, levels, strict=True)
        ]
    )
    growths = needed / kept[levels]
    best = np.argmax(accuracies) if np.isinf(growths).all() else np.argmin(growths)
    observed = f"right on {accuracies[best]:.1%} of {kept[levels[best]]:,} kept images"
    if np.isinf(growths[best]):
        reason = f"no keep set reaches the target accuracy: the best is {observed}"
        return replace(certificate, reason=reason)
    num_judged = certificate.num_images / (1 - _PATH_SHARE)
    num_more = max(1, ceil((growths[best] - 1) * num_judged))
    reason = f"too few judged images: {observed}, which is above the target, but not surely"
    return replace(certificate, num_more=num_more, reason=reason)


def _estimate_needed(accuracy: float, target: float, error: float) -> float:
    """Kept images with which a binomial test at `error` succeeds with the usual power.

    The normal approximation, but not fewer than would do if all were right. No number will do
    where the accuracy is not above the target.
    """
    if accuracy <= target:
        return inf
    deviation = norm.isf(error) * np.sqrt(target * (1 - target))
    deviation += norm.ppf(_POWER) * np.sqrt(accuracy * (1 - accuracy))
    return float(max((deviation / (accuracy - target)) ** 2, log(error) / log(target)))
