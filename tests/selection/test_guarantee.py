from __future__ import annotations

from math import ceil, log

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, binomtest

from iqa_ray.errors import UsageError
from iqa_ray.selection import guarantee
from iqa_ray.selection.cutoffs import Cutoff, name_direction
from iqa_ray.selection.guarantee import Certificate, certify
from iqa_ray.selection.votes import cast_votes

DIRECTIONS = {"a": True, "b": True, "c": False}


def draw(num_images: int, rng: np.random.Generator, accuracy=None):
    """Scores of three voters of one hidden quality, and outcomes of the accuracy at it."""
    quality = rng.standard_normal(num_images)
    scores = {
        name: (1 if up else -1) * (quality + 0.5 * rng.standard_normal(num_images))
        for name, up in DIRECTIONS.items()
    }
    rises = 0.4 + 0.58 / (1 + np.exp(-3 * (quality + 0.3)))
    chance = rises if accuracy is None else accuracy(quality)
    return scores, rng.random(num_images) < chance


def keep(scores: dict[str, np.ndarray], cutoffs: dict[str, float], needed: int) -> np.ndarray:
    """What `cast_votes` keeps with the cut-offs."""
    frame = pd.DataFrame(scores).assign(label="x")
    frame["path"] = frame["image_id"] = frame.index.astype(str)
    for name in scores:
        frame[f"{name}_error"] = "no score"
    voters = {name: Cutoff(cutoffs[name], name_direction(DIRECTIONS[name])) for name in scores}
    return cast_votes(frame, voters, needed)["keep"].to_numpy()


def split(num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the path part and of the testing part."""
    order = np.random.default_rng(seed).permutation(num_images)
    num_path = ceil(num_images / 10)
    return order[:num_path], order[num_path:]


@pytest.mark.parametrize(("target", "confidence"), [(0.9, 0.95), (0.95, 0.95), (0.8, 0.99)])
def test_where_all_are_right_as_many_images_do_as_the_closed_form_says(target, confidence):
    needed = ceil(log(1 - confidence) / log(target))
    for num_tested in (needed - 1, needed):
        num_images = next(n for n in range(1, 1000) if n - ceil(n / 10) == num_tested)
        scores = {"a": np.arange(num_images, dtype=float)}
        certificate = certify(scores, np.ones(num_images, bool), DIRECTIONS, 1, target, confidence)
        assert certificate.num_images == num_tested
        assert (certificate.cutoffs is not None) == (num_tested >= needed)
    assert certificate.accuracy_kept == 1
    assert certificate.share_kept == 1


@pytest.mark.parametrize("needed", [1, 2, 3])
def test_what_is_said_of_the_kept_is_what_the_vote_keeps(needed):
    scores, correct = draw(2000, np.random.default_rng(1))
    scores["b"][::17] = np.nan
    certificate = certify(scores, correct, DIRECTIONS, needed, 0.85, seed=4)
    tested = split(2000, 4)[1]
    kept = keep(scores, certificate.cutoffs, needed)[tested]
    assert list(certificate.cutoffs) == ["a", "b", "c"]
    assert certificate.num_images == 1800
    assert certificate.share_kept == kept.mean()
    assert certificate.accuracy_kept == correct[tested][kept].mean()
    assert 0.2 < certificate.share_kept < 0.8
    assert binom.sf(correct[tested][kept].sum() - 1, kept.sum(), 0.85) <= 0.05


def test_the_cut_offs_are_quantiles_of_the_path_part():
    scores, correct = draw(2000, np.random.default_rng(2))
    certificate = certify(scores, correct, DIRECTIONS, 2, 0.85, seed=7)
    path, _ = split(2000, 7)
    shares = [(scores["a"][path] < certificate.cutoffs["a"]).mean()]
    shares.append((scores["b"][path] < certificate.cutoffs["b"]).mean())
    shares.append((scores["c"][path] > certificate.cutoffs["c"]).mean())
    assert shares == pytest.approx([shares[0]] * 3, abs=1e-9)
    assert certify(scores, correct, DIRECTIONS, 2, 0.85, seed=8) != certificate


def test_the_next_looser_vote_was_not_certified():
    """By hand: with the certified level's error the test of the next level fails."""
    scores, correct = draw(3000, np.random.default_rng(3))
    certificate = certify({"a": scores["a"]}, correct, DIRECTIONS, 1, 0.85)
    path, tested = split(3000, 0)
    quantiles = np.quantile(scores["a"][path], 1 - np.arange(1, 101) / 100)
    level = int(np.argmin(np.abs(quantiles - certificate.cutoffs["a"])))
    assert quantiles[level] == certificate.cutoffs["a"]

    def test(cutoff: float) -> float:
        kept = correct[tested][scores["a"][tested] >= cutoff]
        return float(binom.sf(kept.sum() - 1, len(kept), 0.85))

    assert test(quantiles[level]) <= 0.05 < test(quantiles[level + 1])


def test_levels_are_tested_at_their_own_error_and_what_the_one_before_hands_on():
    errors = np.array([0.02, 0.0, 0.02, 0.0, 0.01])
    rejected = [
        ([0.02, 0.02, 0.04, 0.04, 0.05], 4),
        ([0.02, 0.021, 0.02, 0.02, 0.04], 3),
        ([0.021, 0.0, 0.021, 0.0, 0.011], None),
        ([0.021, 0.0, 0.02, 0.021, 0.01], 4),
        ([0.02, 0.02, 0.041, 0.0, 0.5], 1),
    ]
    for p_values, loosest in rejected:
        assert guarantee._walk(np.array(p_values), errors) == loosest


def test_starts_share_the_permitted_error():
    expected = np.linspace(9, 900, 100)
    errors = guarantee._share_error(expected, None, 0.9, 0.05)
    # 3 and 9 times the 28.4 images that would do; the next, 768, is too near to all
    starts = [np.argmax(expected >= size) for size in (85.3, 255.9)] + [99]
    assert np.flatnonzero(errors).tolist() == starts
    assert errors.sum() == pytest.approx(0.05)
    assert errors[starts[0]] == pytest.approx(errors[starts[1]]) == pytest.approx(errors[99] * 5)
    few = guarantee._share_error(expected / 10, None, 0.9, 0.05)
    assert np.flatnonzero(few).tolist() == [99]
    assert few[99] == pytest.approx(0.05)
    favoured = guarantee._share_error(expected, 50, 0.9, 0.05)
    assert favoured == pytest.approx(errors / 2 + 0.025 * (np.arange(100) == 50))


def test_the_path_part_recommends_the_start_with_the_largest_excess():
    kept, right = np.array([2, 20, 60, 60, 100]), np.array([2, 20, 57, 57, 80])
    excess = [(3 / 4 - 0.8) * 2**0.5, (21 / 22 - 0.8) * 20**0.5, (58 / 62 - 0.8) * 60**0.5]
    assert excess[0] < 0 < excess[1] < excess[2]
    assert guarantee._choose_start(kept, right, 0.8) == 3
    assert guarantee._choose_start(kept, right, 0.95) == 1
    assert guarantee._choose_start(kept, right, 0.96) is None


def test_a_band_between_the_fixed_starts_is_found_by_the_outcomes_of_the_path_part():
    """The strictest third and the whole are below the target, and what lies between above it."""
    values = np.arange(2000, dtype=float)
    rng = np.random.default_rng(0)
    chance = np.where(values > 1700, 0.6, np.where(values > 500, 0.99, 0.6))
    correct = rng.random(2000) < chance
    certificate = certify({"a": values}, correct, DIRECTIONS, 1, 0.88)
    path, tested = split(2000, 0)
    assert 0.5 < certificate.share_kept < 0.9
    kept = _count(values[path], values[tested])
    right = _count(values[path], values[tested][correct[tested]])
    fixed = guarantee._share_error(np.arange(1, 102) * 18.0, None, 0.88, 0.05)
    assert guarantee._walk(binom.sf(right - 1, kept, 0.88), fixed) is None


def _count(path: np.ndarray, values: np.ndarray) -> np.ndarray:
    return guarantee._count_kept(guarantee._make_path(path[:, None]), values[:, None], 1)


def test_where_the_starts_lie_is_read_from_the_path_part(monkeypatch):
    """A hundred path images: level j keeps j of them, and the last level all once more."""
    seen = []
    share_error = guarantee._share_error
    monkeypatch.setattr(
        guarantee, "_share_error", lambda *args: seen.append(args) or share_error(*args)
    )
    scores = {"a": np.random.default_rng(1).permutation(1000).astype(float)}
    certify(scores, np.ones(1000, bool), DIRECTIONS, 1, 0.9, confidence=0.99)
    expected, favourite, target, error = seen[0]
    assert favourite == 100
    assert expected == pytest.approx(9 * np.append(np.arange(1, 101), 100))
    assert (target, error) == pytest.approx((0.9, 0.01))


def count_violations(num_runs: int, num_images: int, target: float, accuracy) -> tuple[int, int]:
    """Of seeded runs: those with a vote that truly misses the target, and those with a vote."""
    rng = np.random.default_rng(5)
    later, right = draw(20_000, rng, accuracy)
    violations = certified = 0
    for seed in range(num_runs):
        scores, correct = draw(num_images, rng, accuracy)
        certificate = certify(scores, correct, DIRECTIONS, 2, target, seed=seed)
        if certificate.cutoffs is not None:
            certified += 1
            low = sum(
                (later[name] < cutoff) if DIRECTIONS[name] else (later[name] > cutoff)
                for name, cutoff in certificate.cutoffs.items()
            )
            violations += bool(right[low < 2].mean() < target)
    return violations, certified


def test_outcomes_at_random_just_below_the_target_are_certified_in_5_percent_of_runs():
    """The hardest case: every hypothesis is at the border, so every certificate is an error."""
    _, certified = count_violations(1000, 400, 0.8, lambda q: np.full(len(q), 0.7999))
    assert certified > 5
    assert binomtest(certified, 1000, 0.05, alternative="greater").pvalue > 0.01


def test_outcomes_that_have_to_do_with_quality_keep_the_guarantee():
    violations, certified = count_violations(300, 600, 0.85, None)
    assert certified > 200
    assert binomtest(violations, 300, 0.05, alternative="greater").pvalue > 0.01


def test_sharp_images_that_are_wrong_do_not_stop_the_walk():
    """The strictest start fails; a looser one, where they are few, does not."""
    rng = np.random.default_rng(6)
    scores, correct = draw(6000, rng, lambda q: np.where(q > 2.2, 0.0, np.where(q > -1, 0.97, 0.5)))
    certificate = certify({"a": scores["a"]}, correct, DIRECTIONS, 1, 0.9)
    _, tested = split(6000, 0)
    best = tested[np.argsort(-scores["a"][tested])[:85]]
    assert correct[best].mean() < 0.9
    assert certificate.share_kept > 0.5


def test_where_no_keep_set_reaches_the_target_no_number_of_images_is_named():
    scores, correct = draw(2000, np.random.default_rng(8), lambda q: np.full(len(q), 0.6))
    certificate = certify(scores, correct, DIRECTIONS, 2, 0.9)
    assert certificate.cutoffs is None
    assert certificate.num_more is None
    assert certificate.reason.startswith("no keep set reaches the target accuracy: the best is ")
    assert certificate == Certificate(0.9, 0.95, 1800, reason=certificate.reason)


def test_a_path_that_fails_everywhere_fails_although_its_first_images_are_right():
    """Ten right ones at the strict end are too few for any start, and say how many would do."""
    values = np.arange(1000, dtype=float)
    certificate = certify({"a": values}, values >= 980, DIRECTIONS, 1, 0.9)
    assert certificate.cutoffs is None
    kept = int(certificate.reason.split(" of ")[1].split()[0])
    assert certificate.reason == (
        f"too few judged images: right on 100.0% of {kept} kept images, which is above the "
        "target, but not surely"
    )
    # three times the 28.4 images that would do, of a share of kept / 900
    assert certificate.num_more == ceil((3 * log(0.05) / log(0.9) / kept - 1) * 1000)
    assert 10 <= kept <= 20


def explain(kept: list[int], right: list[int], errors: list[float]) -> Certificate:
    certificate = Certificate(0.9, 0.95, num_images=900)
    return guarantee._explain(certificate, np.array(kept), np.array(right), np.array(errors))


def test_stricter_levels_than_the_first_start_count_with_half_the_permitted_error():
    certificate = explain([5, 50, 800], [5, 47, 400], [0, 0, 0.05])
    deviation = 1.959964 * np.sqrt(0.9 * 0.1) + 0.841621 * np.sqrt(0.94 * 0.06)
    needed = (deviation / 0.04) ** 2
    assert certificate.num_more == ceil((needed / 50 - 1) * 1000)
    assert "right on 94.0% of 50 kept images" in certificate.reason


@pytest.mark.filterwarnings("error")
def test_a_handful_of_right_ones_is_no_keep_set_that_reaches_the_target():
    certificate = explain([9, 20, 50, 800], [9, 17, 45, 400], [0, 0, 0, 0.05])
    assert certificate.num_more is None
    assert certificate.reason.endswith("the best is right on 90.0% of 50 kept images")


def test_at_least_one_more_image_is_said_to_be_needed():
    assert explain([1000], [950], [0.05]).num_more == 1


def test_a_start_that_kept_nothing_says_nothing():
    certificate = explain([0, 800], [0, 400], [0.025, 0.025])
    assert certificate.reason.endswith("the best is right on 50.0% of 800 kept images")


def test_too_few_images_for_the_whole_set_say_how_many_would_do():
    scores, correct = {"a": np.arange(40, dtype=float)}, np.ones(40, bool)
    certificate = certify(scores, correct, DIRECTIONS, 1, 0.95)
    # 36 of 40 are tested, and log(0.05) / log(0.95) = 58.4 would do
    assert certificate.num_more == ceil((log(0.05) / log(0.95) / 36 - 1) * 40)
    assert certificate.reason.startswith("too few judged images: right on 100.0% of 36 kept")


def test_with_as_many_more_images_as_are_said_to_be_needed_four_of_five_runs_certify():
    rng = np.random.default_rng(9)
    outcomes = []
    while len(outcomes) < 100:
        scores, correct = draw(150, rng, lambda q: np.full(len(q), 0.87))
        first = certify(scores, correct, DIRECTIONS, 2, 0.8)
        whole = correct[split(150, 0)[1]].mean()
        # the whole set is what needs fewest, and its observed accuracy is near the true one
        if f"{whole:.1%} of 135 kept" in str(first.reason) and abs(whole - 0.87) < 0.008:
            scores, correct = draw(150 + first.num_more, rng, lambda q: np.full(len(q), 0.87))
            outcomes.append(certify(scores, correct, DIRECTIONS, 2, 0.8).cutoffs is not None)
    assert 0.7 < np.mean(outcomes) < 0.9


def test_images_without_a_score_are_never_kept_and_count_in_the_share():
    scores = {"a": np.arange(1000, dtype=float), "b": np.arange(1000, dtype=float)}
    scores["b"][::2] = np.nan
    certificate = certify(scores, np.arange(1000) % 2 == 1, DIRECTIONS, 2, 0.95)
    tested = split(1000, 0)[1]
    assert certificate.accuracy_kept == 1
    assert certificate.share_kept == (tested % 2).mean()


@pytest.mark.parametrize("num_images", [0, 1, 2, 30])
def test_without_enough_scores_that_is_the_reason(num_images):
    scores = {"a": np.full(num_images, np.nan), "b": np.arange(num_images, dtype=float)}
    certificate = certify(scores, np.ones(num_images, bool), DIRECTIONS, 1, 0.9)
    assert certificate.reason == "too few judged images have a score of every voter"
    assert certificate.cutoffs is certificate.num_more is None


def test_one_judged_image_is_too_few_to_learn_a_path_and_to_test_it():
    certificate = certify({"a": np.ones(1)}, np.ones(1, bool), DIRECTIONS, 1, 0.9)
    assert certificate.reason == "too few judged images have a score of every voter"
    assert certificate.num_images == 0


def test_equal_scores_keep_all_or_nothing():
    scores = {"a": np.full(400, 3.0)}
    good = certify(scores, np.arange(400) % 10 > 0, DIRECTIONS, 1, 0.8)
    assert good.cutoffs == {"a": 3.0}
    assert good.share_kept == 1
    assert certify(scores, np.arange(400) % 2 > 0, DIRECTIONS, 1, 0.8).cutoffs is None


def test_p_values_that_vanish_are_held_against_an_error_that_was_given():
    assert guarantee._walk(np.zeros(3), np.array([0.0, 0.0, 0.05])) == 2
    assert guarantee._walk(np.array([0.0, 0.0, 0.5]), np.array([0.0, 0.0, 0.05])) is None


@pytest.mark.parametrize(
    ("target", "confidence", "name"),
    [(0, 0.95, "target accuracy"), (1, 0.95, "target accuracy"), (95, 0.95, "target accuracy"),
     (0.9, 0, "confidence"), (0.9, 1.0, "confidence"), (0.9, float("nan"), "confidence")],
)  # fmt: skip
def test_targets_and_confidences_out_of_range(target, confidence, name):
    scores, correct = draw(50, np.random.default_rng(0))
    with pytest.raises(UsageError, match=f"the {name} must be above 0 and below 1, not"):
        certify(scores, correct, DIRECTIONS, 2, target, confidence)
