"""Tables of strategies, held against numbers by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from iqa_ray.experiments.statistics import measure_difference
from iqa_ray.smoothing.evaluation import (
    Answers,
    compare_strategies,
    format_differences,
    format_table,
    measure_leads,
    measure_results,
    summarise_results,
    tabulate_confidence,
    tabulate_reliability,
    to_probabilities,
)
from iqa_ray.smoothing.strategies import TEST_SETS, list_strategies

STRATEGIES = list_strategies(("1", "2", "3", "3-shuffled"), ("ssim",))
LABELS = np.array([0, 1, 0, 1, 0])


def answer(strategy, seed, right):
    """Sure of 0.8, and right on so many of the five images: one number for each test set."""
    probabilities = np.zeros((len(TEST_SETS), 5, 2))
    for place, number in enumerate(right):
        is_right = np.arange(5) < number
        own = np.where(is_right, 0.8, 0.2)
        probabilities[place, np.arange(5), LABELS] = own
        probabilities[place, np.arange(5), 1 - LABELS] = 1 - own
    return Answers(strategy, seed, probabilities)


RIGHT = {"1": [4, *[1] * 9], "2": [3, *[3] * 9], "3": [5, *[4] * 9], "3-shuffled": [3, *[2] * 9]}
ANSWERS = [
    answer(strategy, seed, [min(5, n + (seed == 2 and strategy.name != "2")) for n in numbers])
    for strategy in STRATEGIES
    for numbers in (RIGHT[strategy.name],)
    for seed in range(3)
]
RESULTS = measure_results(ANSWERS, LABELS)
TABLE = summarise_results(RESULTS)


def cell(table, strategy, test_set, name):
    rows = table[(table["strategy"] == strategy) & (table["test_set"] == test_set)]
    return rows[name].item()


def test_probabilities_come_version_by_version():
    logits = np.log(np.arange(1.0, 1 + 10 * 2 * 3)).reshape(20, 3)
    found = to_probabilities(logits, 2)
    assert found.shape == (10, 2, 3)
    assert found[9, 1] == pytest.approx(np.array([58, 59, 60]) / 177)


def test_accuracy_calibration_and_confidence_by_hand():
    row = RESULTS[(RESULTS["strategy"] == "1") & (RESULTS["seed"] == 0)].iloc[0]
    assert (row["test_set"], row["num_images"]) == ("pristine", 5)
    assert row["accuracy"] == pytest.approx(0.8)
    assert row["calibration_error"] == pytest.approx(0.0)
    assert row["confidence"] == pytest.approx((4 * 0.8 + 0.2) / 5)
    assert cell(RESULTS[RESULTS["seed"] == 0], "1", "jpeg-3", "calibration_error") == pytest.approx(
        0.6
    )


def test_the_table_has_means_deviations_and_the_best():
    assert len(TABLE) == 40
    assert cell(TABLE, "1", "blur-2", "accuracy_mean") == pytest.approx((0.2 + 0.2 + 0.4) / 3)
    assert cell(TABLE, "1", "blur-2", "accuracy_sd") == pytest.approx(np.std([1, 1, 2], ddof=1) / 5)
    assert TABLE[TABLE["is_best"]]["strategy"].tolist() == ["3"] * 10
    assert (TABLE["num_seeds"] == 3).all()
    text = format_table(TABLE, measure_leads(TABLE))
    head, first, *_ = text.splitlines()
    assert head.split()[2:] == "set Pristine Blur 1 Blur 2 Blur 3 Noise 1 Noise 2 Noise 3 JPEG 1 "\
        "JPEG 2 JPEG 3".split()  # fmt: skip
    assert first.split()[:4] == ["1", "Original", "Pristine", "0.867±0.115"]
    assert "1.000±0.000*" in text


def test_leads_are_on_the_strongest_level_of_the_own_kind():
    leads = measure_leads(TABLE)
    assert leads == {
        "2 Original MIX_blur": pytest.approx(0.6 - 4 / 15),
        "3 IQA-LS ssim MIX_blur": pytest.approx(13 / 15 - 4 / 15),
        "3-shuffled shuffled LS ssim MIX_blur": pytest.approx(7 / 15 - 4 / 15),
    }
    assert measure_leads(TABLE[TABLE["strategy"] != "1"]) == {}


def test_a_lead_is_on_the_sets_of_that_kind_alone():
    strategies = list_strategies(("1", "4", "8"), ("ssim",))
    right = ([1] * 10, [1, *[2] * 3, *[3] * 3, *[5] * 3], [1, 2, 2, 2, 2, 2, 3, 2, 2, 5])
    pairs = zip(strategies, right, strict=True)
    answers = [answer(strategy, 0, numbers) for strategy, numbers in pairs]
    leads = measure_leads(summarise_results(measure_results(answers, LABELS)))
    assert leads == {
        "4 Original MIX_noise": pytest.approx((3 - 1) / 5),
        "8 Original MIX_all3": pytest.approx((1 + 2 + 4) / 3 / 5),
    }


def test_differences_are_paired_and_adjusted_for_all_of_them():
    found = compare_strategies(RESULTS, STRATEGIES)
    assert found["worse"].unique().tolist() == ["2 Original", "3-shuffled shuffled LS ssim"]
    assert len(found) == 20
    row = found[(found["worse"] == "2 Original") & (found["test_set"] == "noise-1")].iloc[0]
    expected = measure_difference(np.array([0.2, 0.2, 0.4]), 1 - 0.05 / 20)
    assert row["difference"] == pytest.approx(4 / 15)
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    plain = measure_difference(np.array([0.2, 0.2, 0.4]))
    assert row["low"] < plain.low
    assert row["t_p"] == pytest.approx(plain.t_p)
    assert row["t_p_holm"] > row["t_p"]
    text = format_differences(found)
    assert "3 IQA-LS ssim − 2 Original, MIX_blur: Pristine +40.0, Blur 1 +26.7 (" in text


def test_without_pairs_there_are_no_differences():
    alone = measure_results([each for each in ANSWERS if each.strategy.name == "1"], LABELS)
    found = compare_strategies(alone, STRATEGIES)
    assert found.empty
    assert format_differences(found) == ""


def test_reliability_bins_hold_all_seeds():
    found = tabulate_reliability(ANSWERS, LABELS)
    rows = found[(found["strategy"] == "1") & (found["test_set"] == "blur-1")]
    assert rows["bin"].tolist() == [12]
    assert rows["num_images"].item() == 15
    assert rows["confidence"].item() == pytest.approx(0.8)
    assert rows["accuracy"].item() == pytest.approx(4 / 15)


def test_confidence_is_the_probability_of_the_true_class_of_a_few_images():
    names = [f"i{place}" for place in range(5)]
    images = pd.DataFrame({"image_id": names, "path": names, "label": LABELS.astype(str)})
    found = tabulate_confidence(ANSWERS, images, LABELS, seed=0)
    assert found["image_id"].nunique() == 4
    assert sorted(found.drop_duplicates("image_id")["label"]) == ["0", "0", "1", "1"]
    assert len(found) == 4 * 4 * 10
    for row in found[found["strategy"] == "2"].itertuples():
        assert row.confidence == pytest.approx(0.8 if int(row.image_id[1:]) < 3 else 0.2)
