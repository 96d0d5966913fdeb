"""The target, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from iqa_ray.metrifier.targets import judge_outputs, transform_loss


def test_the_target_is_1_without_loss_and_0_at_infinite_loss():
    found = transform_loss(np.array([0.0, np.log(2), np.log(4), np.inf]))
    assert found == pytest.approx([1, 1 / 2, 1 / 4, 0])


def test_one_network_is_judged_by_its_own_probabilities():
    probabilities = np.array([[[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [1.0, 0.0, 0.0]]])
    with np.errstate(divide="ignore"):
        outcome = judge_outputs(np.log(probabilities), np.array([0, 2, 1]))
    assert outcome.target == pytest.approx([0.8, 0.3, 0])
    assert outcome.probability_true == pytest.approx([0.8, 0.3, 0])
    assert outcome.loss == pytest.approx([-np.log(0.8), -np.log(0.3), np.inf])
    assert outcome.correct.tolist() == [True, False, False]
    assert outcome.confidence == pytest.approx([0.8, 0.5, 1])


def test_several_networks_are_averaged_and_none_pulls_the_target_to_0():
    probabilities = np.array([[[0.9, 0.1]], [[1e-30, 1 - 1e-30]], [[0.6, 0.4]]])
    outcome = judge_outputs(np.log(probabilities), np.array([0]))
    assert outcome.target == pytest.approx([0.5])
    assert outcome.loss == pytest.approx([-(np.log(0.9) + np.log(1e-30) + np.log(0.6)) / 3])
    assert outcome.loss[0] > 20
    assert outcome.confidence == pytest.approx([0.5])
