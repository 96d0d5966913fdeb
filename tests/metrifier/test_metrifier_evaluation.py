"""The figures of `metrify evaluate`, against hand-computed ones and other libraries'."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iqa_ray.metrifier.evaluation import (
    draw_resamples,
    evaluate,
    evaluate_groups,
    format_evaluation,
    measure_agreement,
    measure_ranking,
    say_whether_it_beats_confidence,
)
from iqa_ray.selection.coverage import trace_coverage


def make_values(seed=0, number=200):
    rng = np.random.default_rng(seed)
    target = rng.uniform(0, 1, number)
    predicted = np.round(np.clip(target + rng.normal(0, 0.2, number), 0, 1), 1)  # with ties
    return predicted, target, rng


def test_agreement_is_scipys_and_weights_are_repetitions():
    predicted, target, rng = make_values()
    found = measure_agreement(predicted, target, np.ones(200))
    assert found["plcc"] == pytest.approx(stats.pearsonr(predicted, target)[0])
    assert found["srocc"] == pytest.approx(stats.spearmanr(predicted, target)[0])
    assert found["krocc"] == pytest.approx(stats.kendalltau(predicted, target)[0])
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((predicted - target) ** 2)))
    weights = rng.integers(0, 3, 200).astype(float)
    rows = np.repeat(np.arange(200), weights.astype(int))
    again = measure_agreement(predicted[rows], target[rows], np.ones(len(rows)))
    assert measure_agreement(predicted, target, weights) == pytest.approx(again)


def test_a_constant_prediction_has_no_correlation():
    found = measure_agreement(np.full(4, 0.5), np.array([0.0, 0.2, 0.4, 1.0]), np.ones(4))
    assert np.isnan([found["plcc"], found["srocc"], found["krocc"]]).all()
    assert found["rmse"] == pytest.approx(np.sqrt((0.25 + 0.09 + 0.01 + 0.25) / 4))


def test_the_auc_by_hand():
    """Of 2 x 2 pairs of a right and a wrong answer, one is in order, two are tied, one reversed."""
    quality, correct = np.array([0.3, 0.9, 0.3, 0.5]), np.array([True, True, False, False])
    # 0.9 over 0.3 and over 0.5; 0.3 ties with 0.3 and is below 0.5
    found = measure_ranking(quality, correct, np.ones(4))
    assert found["auc"] == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    perfect = measure_ranking(np.array([2.0, 3.0, 0.0, 1.0]), correct, np.ones(4))
    assert perfect == pytest.approx({"auc": 1, "augrc": 0.5**2 / 2})
    reverse = measure_ranking(np.array([0.0, 1.0, 2.0, 3.0]), correct, np.ones(4))
    assert reverse == pytest.approx({"auc": 0, "augrc": 0.5 - 0.5**2 / 2})


def test_the_augrc_is_that_of_the_curve():
    predicted, target, rng = make_values(1)
    predicted[::9] = np.nan
    correct = rng.uniform(0, 1, 200) < target
    weights = rng.integers(0, 3, 200).astype(float)
    rows = np.repeat(np.arange(200), weights.astype(int))
    _, areas = trace_coverage({"v": predicted}, correct)
    assert measure_ranking(predicted, correct, np.ones(200))["augrc"] == pytest.approx(areas["v"])
    _, areas = trace_coverage({"v": predicted[rows]}, correct[rows])
    assert measure_ranking(predicted, correct, weights)["augrc"] == pytest.approx(areas["v"])


def test_where_all_answers_are_right_or_wrong_there_is_no_auc():
    ones = np.ones(3)
    right = measure_ranking(np.arange(3.0), np.full(3, True), ones)
    assert np.isnan(right["auc"])
    assert right["augrc"] == 0
    assert measure_ranking(np.arange(3.0), np.full(3, False), ones)["augrc"] == 0.5


def test_images_are_drawn_with_all_of_their_rows():
    weights = draw_resamples(["a", "a", "b", "c", "c", "c"])
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert len(np.unique(weights[:, 0])) == 4


def make_frame(seed=0, num_images=60, per_image=4):
    rng = np.random.default_rng(seed)
    number = num_images * per_image
    target = rng.uniform(0, 1, number)
    return pd.DataFrame(
        {
            "image_id": np.repeat([f"i{n}" for n in range(num_images)], per_image),
            "distortion": np.tile(["", "noise", "jpeg", "jpeg"], num_images),
            "target": target,
            "predicted": np.clip(target + rng.normal(0, 0.1, number), 0, 1),
            "correct": rng.uniform(0, 1, number) < target,
            "confidence": rng.uniform(0.5, 1, number),
        }
    )


def test_all_voters_are_held_against_each_other():
    frame = make_frame()
    qualities = {"good": frame["target"].to_numpy(), "bad": -frame["target"].to_numpy()}
    figures = evaluate(frame, qualities)
    assert (figures["num_rows"], figures["num_images"]) == (240, 60)
    assert set(figures["voters"]) == {"metrifier", "good", "bad", "confidence", "random"}
    areas = {name: row["augrc"][0] for name, row in figures["voters"].items()}
    assert areas["good"] < areas["random"] < areas["bad"]
    for row in figures["voters"].values():
        assert row["augrc"][1] <= row["augrc"][0] <= row["augrc"][2]
    assert figures["voters"]["random"]["auc"] == [0.5, 0.5, 0.5]
    best = figures["differences"]["augrc less that of good, the best metric"]
    assert best[0] == pytest.approx(areas["metrifier"] - areas["good"], abs=1e-4)
    text = format_evaluation(figures)
    assert "240 rows of 60 images" in text
    assert text.index("good") < text.index("random") < text.index("bad")


def test_the_verdict_says_where_it_wins_and_where_it_loses():
    frame = make_frame()
    frame.loc[frame["distortion"] == "jpeg", "confidence"] = frame["correct"] * 1.0
    groups = evaluate_groups(frame, {}, ["distortion"])
    assert [row["distortion"] for row in groups] == ["", "noise", "jpeg"]
    assert [row["num_rows"] for row in groups] == [60, 60, 120]
    text = say_whether_it_beats_confidence(evaluate(frame, {}), groups)
    assert text.endswith("; smaller on none, noise; larger on jpeg")
    won = say_whether_it_beats_confidence(evaluate(make_frame(), {}), [])
    assert won.startswith("the metrifier has a smaller AUGRC than the networks' own confidence")
    alike = make_frame().assign(predicted=lambda rows: rows["confidence"])
    assert "does not differ from" in say_whether_it_beats_confidence(evaluate(alike, {}), [])


def test_a_few_rows_are_not_judged():
    figures = evaluate(make_frame(num_images=2), {})
    assert figures["reason"] == "fewer than 10 rows"
    assert "fewer than 10 rows" in format_evaluation(figures)
    assert "too few rows" in say_whether_it_beats_confidence(figures, [])
