"""Figures of a test, held against numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from iqa_ray.distortion_types.evaluation import (
    compute_probabilities,
    count_confusions,
    evaluate_outputs,
    find_none_below,
    fit_temperature,
    format_evaluation,
    measure_classes,
)
from iqa_ray.training.evaluation import measure_calibration_error


def test_sensitivity_and_specificity_by_hand():
    confusion = np.array([[4, 1, 0], [2, 3, 1], [0, 0, 9]])
    rows = measure_classes(confusion)
    assert [row["sensitivity"] for row in rows] == pytest.approx([4 / 5, 3 / 6, 9 / 9])
    assert [row["specificity"] for row in rows] == pytest.approx([13 / 15, 13 / 14, 10 / 11])
    absent = measure_classes(np.array([[3, 0], [0, 0]]))
    assert absent[0] == {"sensitivity": 1.0, "specificity": None}
    assert absent[1] == {"sensitivity": None, "specificity": 1.0}


def test_confusions_have_the_true_class_by_row():
    counts = count_confusions(np.array([0, 0, 2, 1]), np.array([0, 2, 2, 0]), 3)
    assert counts.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("outputs", ["softmax", "sigmoid"])
def test_a_temperature_mends_answers_that_are_too_sure(outputs):
    rng = np.random.default_rng(0)
    true_logits = rng.normal(0, 2, (4000, 4))
    chances = compute_probabilities(true_logits, 1.0, outputs)
    labels = np.array([rng.choice(4, p=row) for row in chances])
    temperature = fit_temperature(3 * true_logits, labels, outputs)
    assert temperature == pytest.approx(3, rel=0.1)
    after = compute_probabilities(3 * true_logits, temperature, outputs)
    before = compute_probabilities(3 * true_logits, 1.0, outputs)
    assert measure_calibration_error(after, labels) < 0.03
    assert measure_calibration_error(before, labels) > 0.1


def test_probabilities_are_those_of_the_outputs():
    logits = np.log([[1.0, 2.0, 5.0]])
    np.testing.assert_allclose(compute_probabilities(logits, 1, "softmax"), [[0.125, 0.25, 0.625]])
    shares = np.array([1 / 2, 2 / 3, 5 / 6])
    expected = [shares / shares.sum()]
    np.testing.assert_allclose(compute_probabilities(logits, 1, "sigmoid"), expected)
    extreme = compute_probabilities(np.array([[-900.0, -1000.0]]), 1, "sigmoid")
    np.testing.assert_allclose(extreme, [[1, 0]], atol=1e-9)


def test_one_in_a_hundred_is_like_none():
    top = np.linspace(0.5, 1, 101)
    limit = find_none_below(np.stack([top, 1 - top], axis=1))
    assert limit == pytest.approx(0.505)


def test_all_figures_of_a_test():
    logits = np.array([[9.0, 0], [9, 0], [0, 9], [0.1, 0]])
    figures = evaluate_outputs(
        logits, np.array([1.0, 3, 2, 0]), np.array([0, 0, 1, 1]), np.array([1.0, 5, 3, 0]),
        ("wn", "refimgs"), 1.0, 0.6, "softmax",
    )  # fmt: skip
    assert figures["accuracy"] == 0.75
    assert figures["share_none"] == 0.25
    assert figures["severity_srcc"] == 1.0
    assert figures["confusion"] == [[2, 0], [1, 1]]
    assert figures["classes"][1] == {
        "name": "refimgs", "num_images": 2, "sensitivity": 0.5, "specificity": 1.0,
    }  # fmt: skip
    text = format_evaluation(figures)
    assert "accuracy 75.0% of 4 images; like none: 25.0%" in text
    assert text.splitlines()[1].split() == ["wn", "2", "0", "1.00", "0.50"]
