"""How far scores move beside blurring, in closed form."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from iqa_ray.study.effects import measure_effects, summarise_effects

STEPS = np.arange(5.0)


def make_series(**lines):
    """Of the metric m: for each configuration a list of scores a sample."""
    return pd.DataFrame(
        [
            ("m", configuration, f"s{number}", index, score)
            for configuration, of_samples in lines.items()
            for number, line in enumerate(of_samples)
            for index, score in enumerate(line)
        ],
        columns=["metric", "configuration", "sample", "index", "score"],
    )


def measure(series, log_metrics=()):
    """Effects of each sample, by configuration."""
    table = measure_effects(series, log_metrics)
    return {name: list(rows["effect"]) for name, rows in table.groupby("configuration")}


def test_the_effect_is_a_ratio_of_standard_deviations_of_the_same_sample():
    # steps of 1, 2 and 3 beside steps of 10, 5 and 4; three images have 1, five 2.5 as variance
    cropping = [50 + step * STEPS[:3] for step in (1, 2, 3)]
    blurring = [50 - step * STEPS for step in (10, 5, 4)]
    effects = measure(make_series(cropping=cropping, blurring=blurring))
    expected = [0.1 / 2.5**0.5, 0.4 / 2.5**0.5, 0.75 / 2.5**0.5]
    assert effects["cropping"] == pytest.approx(expected, rel=1e-12)
    assert effects["blurring"] == [1, 1, 1]
    swapped = make_series(cropping=cropping, blurring=blurring).iloc[::-1]
    np.testing.assert_allclose(sorted(measure(swapped)["cropping"]), expected)


def test_metrics_of_ratios_are_compared_by_logarithms():
    series = make_series(cropping=[1.1**STEPS] * 2, blurring=[2.0**-STEPS] * 2)
    assert measure(series, ["m"])["cropping"] == pytest.approx([np.log(1.1) / np.log(2)] * 2)
    raw = np.std(1.1**STEPS) / np.std(2.0**-STEPS)
    assert measure(series, ["other"])["cropping"] == pytest.approx([raw] * 2)


def test_a_score_of_0_counts_as_the_smallest_above_it():
    """1/16 and, next to nothing beside 8, 1e-12 are on one step with 0."""
    blurring = [[8, 1, 1 / 8, 1 / 16], [8, 1, 1 / 8, 0.0], [8, 1, 1 / 8, 1e-12]]
    effects = measure(make_series(cropping=[[1, 2, 4]] * 3, blurring=blurring), ["m"])
    assert effects["cropping"] == pytest.approx([1 / np.std([3, 0, -3, -4], ddof=1)] * 3)


def test_scores_below_0_are_compared_as_they_are():
    series = make_series(cropping=[[-1, 0, 1]], blurring=[[-4, 0, 4]])
    assert measure(series, ["m"])["cropping"] == [0.25]


def test_constant_scores_have_no_effect_and_a_constant_blurring_an_infinite_one():
    constant = [7.0, 7.0, 7 + 1e-12]
    moving = [1.0, 2.0, 3.0]
    series = make_series(
        cropping=[constant, moving, constant, constant],
        blurring=[moving, constant, constant, [1.0, np.nan, np.nan]],
    )
    assert measure(series)["cropping"] == [0, np.inf, 0, 0]


def test_too_few_scores_or_no_blurring_have_no_effect():
    nan = np.nan
    moving = [1.0, 2.0, 3.0]
    series = make_series(cropping=[[1, 2, nan], moving, moving], blurring=[moving, [1, nan, 3]])
    np.testing.assert_array_equal(measure(series)["cropping"], [nan, nan, nan])
    np.testing.assert_array_equal(
        measure(make_series(cropping=[[1, 2, 3, nan]], blurring=[[3, 2, nan, 1]]))["cropping"], [1]
    )


def summarise(cropping, blurring, **given):
    series = make_series(cropping=cropping, blurring=blurring)
    table = summarise_effects(series, (), **given).set_index(["metric", "configuration"])
    return table.loc[("m", "cropping")]


def test_the_summary_is_the_median_over_samples():
    blurring = [10 * STEPS] * 5
    cropping = [step * STEPS for step in (1, 2, 4, 30)]
    row = summarise([*cropping, [1, 2]], blurring)  # the fifth sample has too few scores
    assert row["effect"] == pytest.approx(0.3)
    assert row["num_effects"] == 4
    # the ends are medians of resamples: among the samples' own values and their means
    assert row["effect_low"] == pytest.approx(0.1)
    assert row["effect_high"] == pytest.approx(3)
    assert row["effect_low"] == summarise([*cropping, [1, 2]], blurring, seed=0)["effect_low"]


def test_infinite_effects_are_the_largest():
    constant, moving = [1.0] * 5, list(STEPS)
    few = summarise([moving] * 5, [moving, moving, moving, constant, constant])
    assert (few["effect"], few["effect_low"], few["effect_high"]) == (1, 1, np.inf)
    most = summarise([moving] * 5, [moving, moving, constant, constant, constant])
    assert (most["effect"], most["effect_low"], most["effect_high"]) == (np.inf, 1, np.inf)


def test_one_sample_has_no_median():
    row = summarise([STEPS, [1, 2]], [STEPS, STEPS])
    assert np.isnan(row["effect"])
    assert np.isnan(row["effect_low"])
    assert row["num_effects"] == 1


def test_two_samples_have_a_median():
    row = summarise([STEPS, 2 * STEPS], [10 * STEPS] * 2)
    assert row["effect"] == pytest.approx(0.15)
    assert (row["effect_low"], row["effect_high"]) == pytest.approx((0.1, 0.2))
