from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iqa_ray.selection.crossfit import NUM_FOLDS, assign_folds, keep_by_folds, measure_accuracy
from iqa_ray.selection.cutoffs import Cutoff

UP = "higher_is_better"


def test_folds_are_even_and_keep_units_together():
    units = pd.Series([f"object {number % 23}" for number in range(230)])
    folds = assign_folds(units, seed=0)
    assert pd.Series(folds).groupby(units).nunique().eq(1).all()
    sizes = np.bincount(folds)
    assert len(sizes) == NUM_FOLDS
    assert sorted(sizes) == [40, 40, 50, 50, 50]  # 4 or 5 units of ten
    assert (assign_folds(units, 0) == folds).all()
    assert (assign_folds(units, 1) != folds).any()
    # which fold an image is in does not depend on the order of rows
    order = np.random.default_rng(0).permutation(230)
    assert (assign_folds(units[order], 0) == folds[order]).all()


def test_each_image_is_voted_on_with_the_cutoffs_of_its_fold():
    cutoff = Cutoff(50.0, UP, fold_values=(10.0, 20.0, 30.0, 40.0, None))
    frame = pd.DataFrame({"lapm": [15.0, 15, 25, 25, 5, 45, np.nan, 55]})
    folds = np.array([0, 1, 1, 2, 4, np.nan, 0, np.nan])
    keep = keep_by_folds(frame, {"lapm": cutoff}, "majority", folds)
    # 5 is kept where no cut-off was found without its fold; 45 and 55 are held against 50
    assert keep.tolist() == [True, False, True, False, True, False, False, True]


def test_the_rule_and_the_direction_count_in_every_fold():
    cutoffs = {
        "lapm": Cutoff(50.0, UP, fold_values=(10.0,) * 5),
        "niqe": Cutoff(5.0, "lower_is_better", fold_values=(7.0,) * 5),
        "wavs": Cutoff(3.0, UP, source="manual"),
    }
    frame = pd.DataFrame({"lapm": [5.0, 5, 20, 20], "niqe": [8.0, 6, 8, 6], "wavs": [4.0, 2, 4, 4]})
    folds = np.zeros(4)
    assert keep_by_folds(frame, cutoffs, "majority", folds).tolist() == [False, False, True, True]
    assert keep_by_folds(frame, cutoffs, "any", folds).tolist() == [False, False, False, True]
    assert keep_by_folds(frame, cutoffs, 3, folds).tolist() == [True] * 4


def test_without_the_folds_cutoffs_nothing_is_measured():
    frame = pd.DataFrame({"lapm": [1.0]})
    assert keep_by_folds(frame, {"lapm": Cutoff(5.0, UP)}, "any", np.array([0.0])) is None


def test_accuracies_of_what_is_kept_and_rejected():
    correct = np.array([True] * 9 + [False] + [True] * 3 + [False] * 7)
    keep = np.arange(20) < 10
    found = measure_accuracy(correct, keep, pd.Series(range(20)))
    assert [found[f"num_{part}"] for part in ("kept", "rejected", "all")] == [10, 10, 20]
    assert [found[f"accuracy_{part}"] for part in ("kept", "rejected", "all")] == [0.9, 0.3, 0.6]
    wilson = stats.binomtest(9, 10).proportion_ci(method="wilson")
    assert found["accuracy_kept_ci"] == pytest.approx([wilson.low, wilson.high])
    nothing = measure_accuracy(correct, np.ones(20, bool), pd.Series(range(20)))
    assert nothing["accuracy_rejected"] is None
    assert nothing["accuracy_rejected_ci"] is None


def test_images_of_one_unit_count_as_hardly_more_than_one():
    """Ten shots of each of 20 objects, all right or all wrong: 20 images' worth."""
    units = pd.Series(np.repeat(np.arange(20), 10))
    correct = np.repeat(np.arange(20) < 15, 10)
    keep = np.ones(200, bool)
    low, high = measure_accuracy(correct, keep, units)["accuracy_all_ci"]
    alone = measure_accuracy(correct[::10], keep[::10], pd.Series(range(20)))["accuracy_all_ci"]
    assert [low, high] == pytest.approx(alone, abs=0.01)
    # all right: nothing tells the spread, and a unit counts as one image
    perfect = measure_accuracy(keep, keep, units)["accuracy_all_ci"]
    assert perfect == pytest.approx([0.8389, 1.0], abs=1e-3)


def test_intervals_cover_the_truth_with_groups():
    """Objects of accuracy Beta(2, 1), ten shots each."""
    rng = np.random.default_rng(0)
    units = pd.Series(np.repeat(np.arange(40), 10))
    covered = 0
    for _ in range(300):
        correct = rng.random(400) < np.repeat(rng.beta(2, 1, 40), 10)
        low, high = measure_accuracy(correct, np.ones(400, bool), units)["accuracy_all_ci"]
        covered += low <= 2 / 3 <= high
    assert 0.91 < covered / 300 < 0.99
