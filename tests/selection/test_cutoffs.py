from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import optimize, stats

from iqa_ray import metrics
from iqa_ray.cli import COMMANDS
from iqa_ray.errors import UsageError
from iqa_ray.selection import cutoffs
from iqa_ray.selection.cutoffs import Cutoff, fit_cutoff, measure_separation
from iqa_ray.selection.settings import CutoffsJob
from iqa_ray.synthetic.dotcodes import make_dataset


def normal_sample(mean: float, deviation: float, size: int) -> np.ndarray:
    """The quantiles of a normal: a sample without luck."""
    return mean + deviation * stats.norm.ppf((np.arange(size) + 0.5) / size)


def join(right: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([right, wrong])
    return scores, np.arange(len(scores)) < len(right)


def crossing_of_normals(mean_a, var_a, mean_b, var_b, weight_a=1.0, weight_b=1.0) -> np.ndarray:
    """Where two weighted normal densities are equal: the roots of a quadratic."""
    a = 0.5 / var_b - 0.5 / var_a
    b = mean_a / var_a - mean_b / var_b
    c = 0.5 * (mean_b**2 / var_b - mean_a**2 / var_a)
    c += 0.5 * np.log(var_b / var_a) + np.log(weight_a / weight_b)
    return np.sort(np.roots([a, b, c] if a else [b, c]).real)


def smoothed_variance(sample: np.ndarray, width: float) -> float:
    return sample.var() + width**2


def test_equal_spreads_cross_half_way():
    right, wrong = normal_sample(5, 1, 4000), normal_sample(2, 1, 4000)
    cutoff = fit_cutoff(*join(right, wrong), True, num_resamples=20)
    assert cutoff.value == pytest.approx(3.5, abs=1e-3)
    assert len(cutoff.crossings) == 1


@pytest.mark.parametrize(("spread_right", "spread_wrong"), [(1.0, 2.0), (2.0, 1.0), (0.5, 1.5)])
@pytest.mark.parametrize("weighting", ["equal", "prior"])
def test_unequal_spreads_cross_where_the_quadratic_says(spread_right, spread_wrong, weighting):
    right, wrong = normal_sample(6, spread_right, 6000), normal_sample(2, spread_wrong, 2000)
    cutoff = fit_cutoff(*join(right, wrong), True, weighting=weighting, num_resamples=10)
    widths = cutoff.bandwidths
    # a Gaussian kernel makes a normal a wider normal, so the crossing is known exactly
    expected = crossing_of_normals(
        6, smoothed_variance(right, widths["correct"]),
        2, smoothed_variance(wrong, widths["incorrect"]),
        *((6000, 2000) if weighting == "prior" else (1, 1)),
    )  # fmt: skip
    between = expected[(expected > 2) & (expected < 6)]
    assert cutoff.value == pytest.approx(float(between[0]), abs=5e-3)


def test_densities_are_scipy_s():
    rng = np.random.default_rng(3)
    right, wrong = rng.gamma(6, 1, 300), rng.gamma(2, 1, 80)
    cutoff = fit_cutoff(*join(right, wrong), True, bandwidth="silverman", num_resamples=10)
    kde_right = stats.gaussian_kde(right, "silverman")
    kde_wrong = stats.gaussian_kde(wrong, "silverman")
    width = kde_right.factor * right.std(ddof=1)
    assert cutoff.bandwidths["correct"] == pytest.approx(width, rel=1e-12)
    exact = optimize.brentq(
        lambda x: kde_right(x)[0] - kde_wrong(x)[0],
        cutoff.medians["incorrect"],
        cutoff.medians["correct"],
    )
    assert cutoff.value == pytest.approx(exact, abs=1e-4)


def test_bandwidth_factor():
    right, wrong = normal_sample(5, 1, 500), normal_sample(2, 1, 500)
    cutoff = fit_cutoff(*join(right, wrong), True, bandwidth=0.25, num_resamples=10)
    assert cutoff.bandwidths["correct"] == pytest.approx(0.25 * right.std(ddof=1))
    scott = fit_cutoff(*join(right, wrong), True, num_resamples=10)
    assert scott.bandwidths["correct"] == pytest.approx(500 ** (-0.2) * right.std(ddof=1))


def test_direction_mirrors_everything():
    rng = np.random.default_rng(0)
    scores, correct = join(rng.normal(5, 1, 300), rng.normal(3, 1.5, 90))
    up = fit_cutoff(scores, correct, True, num_resamples=50)
    down = fit_cutoff(-scores, correct, False, num_resamples=50)
    assert down.value == pytest.approx(-up.value)
    assert down.ci == pytest.approx((-up.ci[1], -up.ci[0]))
    assert down.medians["correct"] == pytest.approx(-up.medians["correct"])
    assert down.separation == pytest.approx(up.separation)
    assert down.direction == "lower_is_better"
    assert up.is_low(np.array([up.value - 1, up.value, up.value + 1])).tolist() == [
        True,
        False,
        False,
    ]
    assert down.is_low(np.array([down.value - 1, down.value, down.value + 1])).tolist() == [
        False, False, True,
    ]  # fmt: skip


def test_two_crossings_are_reported_and_the_one_between_the_medians_is_taken():
    # wrong images far below and, a few, far above: the curves cross on both sides of `right`
    right = normal_sample(5, 0.7, 800)
    wrong = np.concatenate([normal_sample(2, 0.7, 300), normal_sample(8, 0.7, 100)])
    cutoff = fit_cutoff(*join(right, wrong), True, num_resamples=10)
    assert len(cutoff.crossings) == 2
    assert cutoff.value == cutoff.crossings[0]
    assert 3 < cutoff.value < 4


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize(
    ("wrong_high", "right_low", "best"),
    [
        (0.35, 0.1, 5.0),  # at 1 it parts 0.65 from 0, at 5 all from 0.1
        (0.1, 0.35, 1.0),
    ],
)
def test_the_best_of_several_crossings_is_taken(wrong_high, right_low, best, higher_is_better):
    """Wrong, right, wrong, right as quality rises, all between the medians at 0 and 6."""

    def mix(low: float, high: float, share_high: float) -> np.ndarray:
        num_high = round(1000 * share_high)
        return np.concatenate(
            [normal_sample(low, 0.4, 1000 - num_high), normal_sample(high, 0.4, num_high)]
        )

    right, wrong = mix(2, 6, 1 - right_low), mix(0, 4, wrong_high)
    sign = 1 if higher_is_better else -1
    scores, correct = join(right, wrong)
    cutoff = fit_cutoff(sign * scores, correct, higher_is_better, bandwidth=0.1, num_resamples=20)
    crossings = sorted(sign * crossing for crossing in cutoff.crossings)
    medians = {name: sign * value for name, value in cutoff.medians.items()}
    assert medians["incorrect"] < crossings[0] < crossings[-1] < medians["correct"]
    assert crossings == pytest.approx([1, 3, 5], abs=0.5)
    parted = [(wrong < crossing).mean() - (right < crossing).mean() for crossing in crossings]
    assert sign * cutoff.value == crossings[int(np.argmax(parted))]
    assert sign * cutoff.value == pytest.approx(best, abs=0.5)


def test_cutoffs_of_the_examples_mean_something_for_the_demo_s_images(tmp_path):
    """Some are low and some are not; of the same images at half the size they part others."""
    texts = [COMMANDS["cutoffs"].examples, CutoffsJob.model_fields["cutoff"].description]
    texts.append(Path(__file__).parents[2].joinpath("README.md").read_text())
    values = {match for text in texts for match in re.findall(r"(?<=lapm=)[\d.]*\d", text)}
    assert len(values) == 1
    cutoff = Cutoff(float(values.pop()), "higher_is_better", source="manual")
    lapm = metrics.create("lapm")
    scores, halves = [], []
    for path in make_dataset(tmp_path, num_images=40)["path"]:
        with Image.open(tmp_path / path) as image:
            scores.append(lapm(np.asarray(image.convert("RGB"))))
            halves.append(lapm(np.asarray(image.convert("RGB").reduce(2))))
    assert 0.2 < cutoff.is_low(np.array(scores)).mean() < 0.8
    assert not (np.array(scores) < 0.206).any()  # of Smith et al., on another scale
    assert np.median(halves) > 1.8 * np.median(scores)


def test_where_incorrect_takes_over_there_is_no_cutoff():
    """Wrong mostly at -3 and 3, its median at 0; right mostly at 0 and 6, its median at 3."""
    wrong, right = (
        np.concatenate(
            [
                normal_sample(mean + shift, 0.3, size)
                for mean, size in ((-3, 490), (0, 20), (3, 490))
            ]
        )
        for shift in (0, 3)
    )
    cutoff = fit_cutoff(*join(right, wrong), True, bandwidth=0.1, num_resamples=0)
    assert np.allclose(cutoff.crossings, [-1.5, 1.5, 4.5], atol=0.2)
    assert cutoff.value is None
    assert cutoff.reason.endswith("do not cross between the medians from incorrect to correct")


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_interval_holds_95_per_cent_of_those_resamples_that_have_a_cutoff(
    monkeypatch, higher_is_better
):
    found = iter([*range(1001), *[None] * 999])
    monkeypatch.setattr(cutoffs._Curves, "resample", lambda *_: next(found))
    sign = 1 if higher_is_better else -1
    scores, correct = join(normal_sample(5, 1, 100), normal_sample(2, 1, 50))
    cutoff = fit_cutoff(sign * scores, correct, higher_is_better, num_resamples=2000)
    assert cutoff.ci == ((25, 975) if higher_is_better else (-975, -25))
    assert cutoff.valid_share == 1001 / 2000


def test_few_images_that_hardly_differ_often_have_no_cutoff():
    rng = np.random.default_rng(4)
    data = join(rng.normal(0.4, 1, 12), rng.normal(0, 1, 12))
    cutoff = fit_cutoff(*data, True, num_resamples=200)
    assert cutoff.value is not None
    assert 0.3 < cutoff.valid_share < 0.95


def test_the_bootstrap_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        scores, correct = join(rng.normal(4, 1, 200), rng.normal(2, 1, 60))
        cutoff = fit_cutoff(scores, correct, True, num_resamples=200)
        covered += cutoff.ci[0] <= 3.0 <= cutoff.ci[1]
        assert cutoff.ci[0] < cutoff.value < cutoff.ci[1]
        assert cutoff.valid_share > 0.95
    assert covered >= 34  # of 38 expected; 33 or fewer has a chance below 2%


def test_seed_decides():
    rng = np.random.default_rng(1)
    data = join(rng.normal(4, 1, 200), rng.normal(2, 1, 60))
    first, again, other = (fit_cutoff(*data, True, num_resamples=50, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first.ci != other.ci
    assert first.value == other.value


@pytest.mark.parametrize(
    ("right", "wrong", "reason"),
    [
        (normal_sample(5, 1, 100), normal_sample(2, 1, 9), "only 9 incorrectly"),
        (normal_sample(5, 1, 4), normal_sample(2, 1, 50), "only 4 correctly"),
        (normal_sample(5, 1, 100), np.empty(0), "only 0 incorrectly"),
        (normal_sample(2, 1, 100), normal_sample(5, 1, 50), "wrong side"),
        (normal_sample(5, 1, 100), np.full(50, 2.0), "all incorrectly .* same score"),
        (np.full(100, 5.0), normal_sample(2, 1, 50), "all correctly .* same score"),
        (normal_sample(0.1, 1, 500), normal_sample(0, 10, 500), "do not cross between"),
    ],
)
def test_no_cutoff_has_a_reason(right, wrong, reason):
    cutoff = fit_cutoff(*join(right, wrong), True, num_resamples=10)
    assert cutoff.value is None
    import re

    assert re.search(reason, cutoff.reason), cutoff.reason


def test_an_outlier_far_away_changes_nothing():
    right, wrong = normal_sample(5, 1, 500), normal_sample(2, 1, 500)
    plain = fit_cutoff(*join(right, wrong), True, num_resamples=10)
    far = fit_cutoff(*join(np.append(right, 60.0), wrong), True, bandwidth=0.25, num_resamples=10)
    assert far.value == pytest.approx(plain.value, abs=0.5)
    assert np.isfinite(far.ci).all()


def test_scale_of_the_scores_does_not_matter():
    rng = np.random.default_rng(2)
    scores, correct = join(rng.normal(4, 1, 200), rng.normal(2, 1, 60))
    small = fit_cutoff(scores * 1e-6, correct, True, num_resamples=50)
    large = fit_cutoff(scores * 1e6, correct, True, num_resamples=50)
    assert large.value == pytest.approx(small.value * 1e12, rel=1e-9)


def test_separation_is_the_area_under_the_roc_curve():
    assert measure_separation(np.array([3.0, 4]), np.array([1.0, 2])) == 1.0
    assert measure_separation(np.array([1.0, 2]), np.array([1.0, 2])) == 0.5
    # of the four pairs three are in order and one is a tie
    assert measure_separation(np.array([2.0, 3]), np.array([1.0, 2])) == 3.5 / 4


def test_json_round_trip():
    rng = np.random.default_rng(1)
    cutoff = fit_cutoff(*join(rng.normal(4, 1, 200), rng.normal(2, 1, 60)), True, num_resamples=50)
    text = json.dumps(cutoff.to_json(), allow_nan=False)
    assert Cutoff.from_json(json.loads(text)) == cutoff
    assert {"value", "direction", "bandwidths", "crossings", "ci", "counts"} <= set(
        json.loads(text)
    )


GOOD = {"value": 0.5, "direction": "higher_is_better"}


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("0.5", "it"),
        (None, "it"),
        ([], "it"),
        ({}, "value"),
        ({"value": 0.5}, "direction"),
        ({**GOOD, "value": "low"}, "value"),
        ({**GOOD, "value": float("nan")}, "value"),
        ({**GOOD, "value": float("inf")}, "value"),
        ({**GOOD, "direction": "up"}, "direction"),
        ({**GOOD, "threshold": 1}, "threshold"),
        ({**GOOD, "ci": [1]}, "ci"),
        ({**GOOD, "crossings": 3}, "crossings"),
        ({**GOOD, "counts": {"correct": "many"}}, "counts.correct"),
    ],
)
def test_malformed_entries_are_refused_in_one_line(entry, field):
    assert Cutoff.from_json(GOOD) == Cutoff(0.5, "higher_is_better")
    with pytest.raises(
        UsageError, match=rf"malformed \({field}.*: run `iqa-ray cutoffs` again"
    ) as error:
        Cutoff.from_json(entry)
    assert "\n" not in str(error.value)
