"""Which metrics can be trusted: correlations, verdicts and ranks on series made by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from iqa_ray.study import verdicts
from iqa_ray.study.effects import summarise_effects
from iqa_ray.study.settings import Thresholds
from iqa_ray.study.verdicts import correlate, judge_metrics

TEN = np.arange(10)


def make_series(metric, configuration, lines):
    """Long rows of one metric and configuration: one line of scores a sample."""
    return pd.DataFrame(
        [
            (metric, configuration, f"s{number}", index, score)
            for number, line in enumerate(lines)
            for index, score in enumerate(line)
        ],
        columns=["metric", "configuration", "sample", "index", "score"],
    )


def judge(*series, higher=True, thresholds=None, agreement=None, log_metrics=()):
    frame = pd.concat(series)
    metrics = list(frame["metric"].unique())
    directions = dict.fromkeys(metrics, higher) if isinstance(higher, bool) else higher
    table = verdicts.summarise(frame, directions)
    table = table.merge(summarise_effects(frame, log_metrics), on=["metric", "configuration"])
    if agreement is None:
        agreement = pd.DataFrame(np.eye(len(metrics)), metrics, metrics)
    return judge_metrics(table, agreement, thresholds or Thresholds())


FALLING = [np.arange(10)[::-1] + number for number in range(3)]
UNMOVED = [[5, 7, 4, 6, 5, 6, 4, 7, 5, 6.0]] * 3


def good(metric="m"):
    return [
        make_series(metric, "cropping", UNMOVED),
        make_series(metric, "rotating", UNMOVED),
        make_series(metric, "blurring", FALLING),
    ]


# --- correlations -----------------------------------------------------------------------------


def test_correlations_by_hand():
    # x = 0..3, y = 1, 3, 2, 4: covariance 1.25 · 4/3 …: Σ(x−x̄)(y−ȳ) = 4, Σ(x−x̄)² = Σ(y−ȳ)² = 5
    found = correlate([0, 1, 2, 3], [1, 3, 2, 4])
    assert found.pcc == pytest.approx(0.8, abs=1e-12)
    assert found.srcc == pytest.approx(0.8, abs=1e-12)
    assert not found.is_monotone
    # squares: ranks agree, values less: 1 − 0.0392…
    found = correlate(TEN, -(TEN**2.0))
    assert found.srcc == -1
    assert found.pcc == pytest.approx(-0.9626907371, abs=1e-9)
    assert found.is_monotone


@pytest.mark.parametrize(
    ("scores", "is_monotone"),
    [([1, 2, 4], True), ([4, 2, 1], True), ([1, 2, 2], False), ([2, 2, 1], False)],
)
def test_a_series_is_monotone_only_where_every_step_is(scores, is_monotone):
    found = correlate([0, 1, 2], scores)
    assert found is not None
    assert found.is_monotone == is_monotone


def test_ties_share_their_rank():
    # ranks of y: 1.5 1.5 3 4; Σ(rx−2.5)(ry−2.5) = 4.5, Σ(rx−2.5)² = 5, Σ(ry−2.5)² = 4.5
    found = correlate([0, 1, 2, 3], [1, 1, 2, 3])
    assert found.srcc == pytest.approx(4.5 / np.sqrt(5 * 4.5), abs=1e-12)
    assert not found.is_monotone


def test_the_order_of_rows_does_not_matter():
    index = np.array([3, 0, 2, 1])
    assert correlate(index, 10.0 - index).is_monotone


@pytest.mark.parametrize(
    "scores",
    [[2.0] * 10, [1e6 + 1e-5 * (n % 2) for n in range(10)], [np.nan] * 8 + [1, 2], [np.nan] * 10],
)
def test_undefined_correlations_are_none(scores):
    assert correlate(TEN, scores) is None


def test_missing_scores_are_left_out():
    scores = [0, 1, np.nan, 3, 4, np.nan, 6, 7, 8, 9]
    assert correlate(TEN, scores).srcc == 1


def test_summary_is_that_of_table_1():
    """|r| of every sample, averaged; two samples of correlations 1 and −0.8."""
    lines = [[0, 1, 2, 3], [4, 2, 3, 1]]
    table = verdicts.summarise(make_series("m", "blurring", lines), {"m": False})
    (row,) = table.to_dict("records")
    assert row["srcc"] == row["pcc"] == pytest.approx(0.9)
    assert row["srcc_std"] == pytest.approx(np.std([1, 0.8], ddof=1))
    assert row["srcc_quality"] == pytest.approx(-0.1)  # lower is better, so 1 and −0.8 change sign
    assert row["monotone_share"] == 0.5
    # the means are 2, 1.5, 2.5, 2: Σ(x−x̄)(y−ȳ) = 0.5, Σ(x−x̄)² = 5, Σ(y−ȳ)² = 0.5
    assert row["pcc_of_mean"] == pytest.approx(0.5 / np.sqrt(2.5))
    assert row["srcc_of_mean"] == pytest.approx(1.5 / np.sqrt(5 * 4.5))
    # resamples of two values: (1, 1), (1, 0.8), (0.8, 0.8)
    assert (row["srcc_low"], row["srcc_high"]) == pytest.approx((0.8, 1.0))
    assert (row["num_samples"], row["num_undefined"], row["num_failed"]) == (2, 0, 0)


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        values = rng.beta(4, 2, 30)
        row = verdicts._average("srcc", values, seed=1)
        covered += row["srcc_low"] <= 4 / 6 <= row["srcc_high"]
    assert 0.89 <= covered / 200 <= 0.985  # 95% less what a bootstrap of 30 lacks; ±2.6 s.e.


def test_constant_series_are_counted_and_never_zero_or_nan_in_words():
    series = make_series("m", "blurring", [[1.0] * 10] * 3)
    table = verdicts.summarise(series, {"m": True})
    assert np.isnan(table["srcc"][0])
    assert (table["num_samples"][0], table["num_undefined"][0]) == (0, 3)
    verdict = judge(series)["m"]
    assert verdict.verdict == "undefined"
    assert "undefined for 3 samples" in verdict.reason
    assert "nan" not in verdict.reason.lower()


def test_missing_scores_are_not_called_constant():
    """One sample has two scores, another three equal ones, and a third all of them."""
    few = np.where(TEN > 1, np.nan, FALLING[0])
    constant = np.where(TEN > 2, np.nan, 1.0)
    table = verdicts.summarise(
        make_series("m", "blurring", [few, constant, FALLING[0]]), {"m": True}
    )
    assert (table["num_undefined"][0], table["num_too_few"][0]) == (2, 1)
    verdict = judge(make_series("m", "blurring", [few, few, FALLING[0]]))["m"]
    assert verdict.reason.startswith(
        "the correlation with blurring is undefined for 2 samples (2 of them for fewer than 3 "
        "images with a score; 16 of 30 images have no score)"
    )
    verdict = judge(make_series("m", "blurring", [few, constant]))["m"]
    assert verdict.reason.startswith(
        "the correlation with blurring is undefined for 2 samples (1 of them for fewer than 3 "
        "images with a score, 1 of them for constant scores; 15 of 20 images have no score)"
    )
    verdict = judge(make_series("m", "blurring", [[1.0] * 10] * 2))["m"]
    assert verdict.reason.startswith(
        "the correlation with blurring is undefined for 2 samples (2 of them for constant scores)"
    )


def test_one_constant_series_is_left_out_and_said():
    blurring = make_series("m", "blurring", [*FALLING, [3.0] * 10])
    verdict = judge(*good()[:2], blurring)["m"]
    assert verdict.verdict == "qualified"
    assert "blurring: undefined for 1 samples, left out" in verdict.reason


# --- verdicts ---------------------------------------------------------------------------------


def test_a_good_metric_qualifies_and_says_why():
    verdict = judge(*good())["m"]
    assert (verdict.verdict, verdict.rank) == ("qualified", 1)
    assert "blurring SRCC 1.000 (≥ 0.8)" in verdict.reason
    assert "cropping SRCC 0.0" in verdict.reason


def test_a_metric_that_follows_cropping_is_rejected():
    verdict = judge(good()[1], good()[2], make_series("m", "cropping", FALLING))["m"]
    assert (verdict.verdict, verdict.rank) == ("rejected", None)
    assert verdict.reason.startswith("cropping SRCC 1.000 (above 0.5), effect 1.000 (above 0.2)")


@pytest.mark.parametrize(
    ("step", "verdict"), [(0.2, "qualified"), (0.21, "rejected"), (-0.2, "qualified")]
)
def test_a_metric_that_follows_cropping_by_a_fifth_of_blurring_qualifies(step, verdict):
    """FALLING has steps of 1 and ten images, as these have."""
    steady = make_series("m", "cropping", [50 + step * TEN] * 3)
    entry = judge(steady, *good()[1:])["m"]
    assert entry.verdict == verdict
    said = f"cropping SRCC 1.000 (above 0.5), effect {abs(step):.3f} "
    assert said + ("(≤ 0.2)" if verdict == "qualified" else "(above 0.2)") in entry.reason
    by_srcc = judge(steady, *good()[1:], thresholds=Thresholds(judge="srcc"))["m"]
    assert by_srcc.verdict == "rejected"


def test_a_metric_that_moves_far_without_an_order_qualifies():
    wild = make_series("m", "cropping", [10 * np.array(UNMOVED[0])] * 3)
    entry = judge(wild, *good()[1:])["m"]
    assert entry.verdict == "qualified"
    effect = 10 * np.std(UNMOVED[0]) / np.std(TEN)
    assert f"(≤ 0.5), effect {effect:.3f} (above 0.2)" in entry.reason


def test_both_cropping_and_rotating_must_be_ignored():
    steady = make_series("m", "cropping", [50 + 0.1 * TEN] * 3)
    follows = make_series("m", "rotating", FALLING)
    entry = judge(steady, follows, good()[2])["m"]
    assert entry.verdict == "rejected"
    assert entry.reason == "rotating SRCC 1.000 (above 0.5), effect 1.000 (above 0.2)"


@pytest.mark.parametrize("judge_by", ["effect", "srcc"])
@pytest.mark.parametrize("configuration", verdicts.ROBUST)
def test_constant_scores_are_robust(configuration, judge_by):
    flat = make_series("m", configuration, [[3.0] * 6] * 2)
    series = [*(entry for entry in good() if entry["configuration"][0] != configuration), flat]
    row = verdicts.summarise(pd.concat(series), {"m": True}).set_index("configuration")
    row = row.loc[configuration]
    assert row[["srcc", "pcc", "srcc_quality", "monotone_share"]].tolist() == [0, 0, 0, 0]
    assert row[["num_samples", "num_undefined", "num_constant"]].tolist() == [2, 0, 2]
    entry = judge(*series, thresholds=Thresholds(judge=judge_by))["m"]
    assert (entry.verdict, entry.rank) == ("qualified", 1)
    assert f"{configuration}: constant scores of 2 samples, counted as 0" in entry.reason


def test_a_constant_sample_counts_as_0_among_others():
    lines = [[3.0] * 10, *FALLING]
    table = verdicts.summarise(make_series("m", "cropping", lines), {"m": True})
    assert table["srcc"][0] == pytest.approx(0.75)
    assert (table["num_samples"][0], table["num_constant"][0]) == (4, 1)
    table = verdicts.summarise(make_series("m", "noise", lines), {"m": True})
    assert table["srcc"][0] == pytest.approx(1)
    assert (table["num_undefined"][0], table["num_constant"][0]) == (1, 1)


def test_a_metric_that_ignores_blur_is_rejected():
    verdict = judge(*good()[:2], make_series("m", "blurring", UNMOVED))["m"]
    assert verdict.verdict == "rejected"
    assert "(below 0.8)" in verdict.reason


def test_a_metric_that_rises_with_blur_is_rejected():
    verdict = judge(*good(), higher=False)["m"]
    assert verdict.verdict == "rejected"
    assert "blurring SRCC 1.000, but +1.00 with its sign: quality does not fall" in verdict.reason
    mixed = [FALLING[0], FALLING[0][::-1], FALLING[1]]
    assert judge(*good()[:2], make_series("m", "blurring", mixed))["m"].verdict == "rejected"


def test_thresholds_are_inclusive_and_settable():
    # correlation 0.8 exactly, by hand above
    blurring = make_series("m", "blurring", [[4, 2, 3, 1]] * 3)
    assert judge(*good()[:2], blurring)["m"].verdict == "qualified"
    strict = Thresholds(min_sensitive=0.81)
    assert judge(*good()[:2], blurring, thresholds=strict)["m"].verdict == "rejected"


def test_rising_with_noise_is_said():
    noise = make_series("m", "noise", [line[::-1] for line in FALLING])
    verdict = judge(*good(), noise)["m"]
    assert verdict.verdict == "qualified"
    assert "not to be trusted where these occur, since it rises with them" in verdict.reason
    assert verdict.reason.endswith("noise (SRCC +1.00)")


def test_configurations_that_were_not_studied():
    verdict = judge(good()[2])["m"]
    assert verdict.verdict == "qualified"
    assert "cropping was not studied" in verdict.reason
    verdict = judge(*good()[:2])["m"]
    assert verdict.verdict == "undefined"
    assert "blurring was not studied" in verdict.reason


def test_failures_on_part_of_a_series_are_said():
    lines = [np.where(TEN > 7, np.nan, line) for line in UNMOVED]
    verdict = judge(make_series("m", "cropping", lines), *good()[1:])["m"]
    assert verdict.verdict == "qualified"
    assert "cropping: 6 of 30 images have no score" in verdict.reason
    nothing = make_series("m", "cropping", [[np.nan] * 10] * 3)
    verdict = judge(nothing, *good()[1:])["m"]
    assert verdict.verdict == "undefined"
    assert "no image of the cropping series has a score" in verdict.reason


def test_ranks_put_copies_behind_and_voters_are_the_best():
    rising = np.linspace(0, 1, 10)
    worse = [UNMOVED[0] + rising] * 3  # follows cropping a little
    metrics = {"a": UNMOVED, "b": UNMOVED, "c": worse, "d": FALLING}
    series = []
    for name, cropping in metrics.items():
        series += [make_series(name, "cropping", cropping), *good(name)[1:]]
    names = list(metrics)
    agreement = pd.DataFrame(np.full((4, 4), 0.5), names, names)
    agreement.loc["a", "b"] = agreement.loc["b", "a"] = 0.99
    judgements = judge(*series, agreement=agreement)
    assert {name: entry.rank for name, entry in judgements.items()} == {
        "a": 1, "c": 2, "b": 3, "d": None,
    }  # fmt: skip
    assert "ranks images as a does (SRCC 0.99)" in judgements["b"].reason
    assert verdicts.choose_voters(judgements, 2) == ("a", "c")
    assert verdicts.choose_voters(judgements, 9) == ("a", "c", "b")


def test_table_1_of_smith_et_al_judged_by_its_correlations():
    """Smith et al. vote with MUSIQ too, though it follows cropping."""
    names = ["lapv", "lapm", "wavs", "brisque", "niqe", "musiq", "maniqa", "hyperiqa"]
    srcc = {
        "cropping": [0.358, 0.152, 0.164, 0.406, 0.969, 0.952, 0.927, 0.333],
        "rotating": [0.486, 0.486, 0.086, 0.200, 0.200, 0.143, 0.200, 0.314],
        "blurring": [1.000, 0.996, 0.973, 0.965, 0.165, 0.885, 0.626, 0.194],
    }
    pcc = {
        "cropping": [0.337, 0.322, 0.345, 0.599, 0.774, 0.954, 0.937, 0.150],
        "rotating": [0.406, 0.570, 0.050, 0.336, 0.279, 0.316, 0.062, 0.133],
        "blurring": [0.770, 0.878, 0.845, 0.855, 0.053, 0.907, 0.695, 0.169],
    }
    rows = [
        {
            "metric": name, "configuration": configuration, "srcc": value, "srcc_quality": -value,
            "pcc": other, "num_undefined": 0, "num_too_few": 0, "num_failed": 0, "num_images": 140,
            "num_constant": 0,
        }
        for configuration, values in srcc.items()
        for name, value, other in zip(names, values, pcc[configuration], strict=True)
    ]  # fmt: skip
    judgements = judge_metrics(
        pd.DataFrame(rows), pd.DataFrame(np.eye(8), names, names), Thresholds(judge="srcc")
    )
    qualified = {name for name, entry in judgements.items() if entry.verdict == "qualified"}
    assert qualified == {"lapv", "lapm", "wavs", "brisque"}
    assert verdicts.choose_voters(judgements, 3) == ("wavs", "lapm", "brisque")
    # they vote with LAPM, whose PCC with rotation is above 0.5: it is said and decides nothing
    assert "rotating SRCC 0.486 (≤ 0.5), PCC 0.570" in judgements["lapm"].reason


def test_ranks_go_by_what_the_judge_goes_by():
    """`a` follows cropping steadily and a little, `b` far and without an order."""
    series = [
        *(make_series("a", name, [50 + 0.1 * TEN] * 3) for name in verdicts.ROBUST),
        *(make_series("b", name, UNMOVED) for name in verdicts.ROBUST),
        *(make_series(name, "blurring", FALLING) for name in "ab"),
    ]
    assert verdicts.choose_voters(judge(*series), 2) == ("a", "b")
    lenient = Thresholds(judge="srcc", max_robust=1)
    assert verdicts.choose_voters(judge(*series, thresholds=lenient), 2) == ("b", "a")


def test_samples_that_were_not_blurred_are_judged_and_ranked_by_srcc():
    def sampled(metric, configuration, lines, first):
        rows = make_series(metric, configuration, lines)
        return rows.assign(sample=rows["sample"].map(lambda name: f"{first}-{name}"))

    turned = np.array(UNMOVED[0]) + np.linspace(0, 1, 10)
    series = []
    for metric, line in (("a", turned), ("b", UNMOVED[0])):
        series.append(sampled(metric, "cropping", [line] * 3, "cropped"))
        series.append(sampled(metric, "blurring", FALLING, "blurred"))
    entries = judge(*series)
    assert {name: entry.rank for name, entry in entries.items()} == {"a": 2, "b": 1}
    assert "(≤ 0.5), effect undefined" in entries["a"].reason


def test_agreement_is_of_quality():
    scores = pd.DataFrame({"a": [1, 2, 3, 4.0], "b": [9, 7, -50, np.nan], "c": [1.0] * 4})
    agreement = verdicts.measure_agreement(scores, {"a": True, "b": False, "c": True})
    assert agreement.loc["a", "b"] == 1
    assert np.isnan(agreement.loc["a", "c"])
