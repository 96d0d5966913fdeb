"""Which classes lose more images than others, and what keeps some of each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from iqa_ray.selection.balance import (
    CLASS_BALANCE_SCHEMA,
    describe_imbalance,
    keep_best,
    measure_balance,
)
from iqa_ray.selection.cutoffs import Cutoff
from iqa_ray.selection.significance import adjust_holm
from iqa_ray.selection.votes import cast_votes, rank_images


def make_selection(**rejected: tuple[int, int]) -> pd.DataFrame:
    """Of each class so many images, the first of which are rejected."""
    rows = [
        (label, image >= num_rejected)
        for label, (num_rejected, num_images) in rejected.items()
        for image in range(num_images)
    ]
    return pd.DataFrame(rows, columns=["label", "keep"])


# --- the table ----------------------------------------------------------------------------------


def test_each_class_is_held_against_all_by_an_exact_test():
    balance = measure_balance(make_selection(b=(2, 10), a=(9, 10), c=(4, 20)))
    assert list(balance.columns) == CLASS_BALANCE_SCHEMA.names
    assert balance["label"].tolist() == ["a", "b", "c"]
    assert balance["num_images"].tolist() == [10, 10, 20]
    assert balance["num_rejected"].tolist() == [9, 2, 4]
    assert balance["share"].tolist() == [0.9, 0.2, 0.2]
    # Fisher's test of the class against the others has the same two tails
    alone = []
    for rejected, total in ((9, 10), (2, 10), (4, 20)):
        table = [[rejected, total - rejected], [15 - rejected, 25 - total + rejected]]
        tails = [stats.fisher_exact(table, side).pvalue for side in ("less", "greater")]
        alone.append(min(1, 2 * min(tails)))
    assert balance["p_value"].tolist() == pytest.approx(adjust_holm(np.array(alone)))
    assert balance["p_value"][0] < 0.001


def test_images_without_a_label_are_of_no_class():
    selection = make_selection(a=(1, 4), b=(3, 4))
    extra = pd.DataFrame({"label": [None, None], "keep": [False, True]})
    with_extra = measure_balance(pd.concat([selection, extra], ignore_index=True))
    pd.testing.assert_frame_equal(with_extra, measure_balance(selection))


@pytest.mark.parametrize("num_rejected", [0, 5])
def test_nothing_or_everything_rejected_is_no_imbalance(num_rejected):
    balance = measure_balance(make_selection(a=(num_rejected, 5), b=(num_rejected, 5)))
    assert balance["p_value"].tolist() == [1, 1]


def test_no_image_has_a_label():
    balance = measure_balance(pd.DataFrame({"label": [None, None], "keep": [False, True]}))
    assert balance.empty
    assert list(balance.columns) == CLASS_BALANCE_SCHEMA.names
    assert describe_imbalance(balance) == []


# --- how often it warns -------------------------------------------------------------------------


def draw_selection(rng: np.random.Generator, sizes: list[int], slope: float) -> pd.DataFrame:
    """Blurred images are rejected; the first class is blurred `slope` deviations more."""
    labels = np.repeat([f"class {number}" for number in range(len(sizes))], sizes)
    blur = rng.normal(0, 1, len(labels)) + slope * (labels == "class 0")
    return pd.DataFrame({"label": labels, "keep": blur < 0.5})


def test_a_class_that_is_blurred_more_is_named_in_at_least_95_percent_of_runs():
    rng = np.random.default_rng(0)
    sizes = [60] * 10
    found = 0
    for _ in range(200):
        warnings = describe_imbalance(measure_balance(draw_selection(rng, sizes, 1.0)))
        found += any("class 0 (" in warning for warning in warnings)
    assert found >= 0.95 * 200


@pytest.mark.parametrize("sizes", [[60] * 10, [500, 20, 20, 20], [300, 300], [12] * 100])
def test_without_a_relation_at_most_5_percent_of_runs_warn(sizes):
    rng = np.random.default_rng(1)
    num_runs = 200
    alarms = sum(
        bool(describe_imbalance(measure_balance(draw_selection(rng, sizes, 0.0))))
        for _ in range(num_runs)
    )
    assert alarms / num_runs <= 0.05


def test_the_warning_names_who_lost_more_and_not_who_lost_less():
    balance = measure_balance(make_selection(a=(40, 50), b=(2, 50), c=(20, 50), d=(21, 50)))
    assert (balance.set_index("label")["p_value"][["a", "b"]] < 0.05).all()
    (warning,) = describe_imbalance(balance)
    assert warning.startswith(
        "rejected more often than the other classes (all: 41.5%): a (40 of 50): "
    )


def test_an_emptied_class_is_named_however_small_it_is():
    warnings = describe_imbalance(measure_balance(make_selection(a=(1, 1), b=(5, 50), c=(5, 50))))
    assert warnings == ["no image is kept of a (1 of 1): --min-per-class N keeps the best ones"]


def test_an_emptied_class_is_not_named_twice():
    warnings = describe_imbalance(measure_balance(make_selection(a=(40, 40), b=(5, 90))))
    assert [warning.count("a (40 of 40)") for warning in warnings] == [1]


def test_the_classes_that_lost_most_come_first_and_not_more_than_five():
    classes = {f"c{number}": (60 + 5 * number, 100) for number in range(7)}
    (warning,) = describe_imbalance(measure_balance(make_selection(**classes, rest=(10, 900))))
    named = warning.split("%): ")[1].split(": their")[0]
    assert (
        named
        == ", ".join(f"c{number} ({60 + 5 * number} of 100)" for number in (6, 5, 4, 3, 2))
        + " and 2 more classes"
    )


# --- keeping some of each class -----------------------------------------------------------------

CUTOFFS = {
    "lapm": Cutoff(10.0, "higher_is_better"),
    "niqe": Cutoff(5.0, "lower_is_better"),
}


def vote(*images: tuple[str | None, float, float]) -> pd.DataFrame:
    """The votes on images with label, lapm and niqe; either of them alone rejects none."""
    frame = pd.DataFrame(images, columns=["label", "lapm", "niqe"])
    frame["image_id"] = [f"id{number}" for number in range(len(frame))]
    frame["path"] = frame["image_id"] + ".jpg"
    for name in CUTOFFS:
        frame[f"{name}_error"] = ["no score" if gap else "" for gap in frame[name].isna()]
    return cast_votes(frame, CUTOFFS, "majority")


def test_ranks_are_averaged_over_voters_each_in_its_direction():
    selection = vote(("a", 1, 2), ("a", 2, 9), ("a", 3, 1), ("a", 3, np.nan), ("a", 3, 9))
    ranks = rank_images(selection, CUTOFFS)
    # of the four scored: lapm 1 2 3.5 – 3.5, niqe 3 1.5 4 – 1.5
    np.testing.assert_array_equal(ranks, [2, 1.75, 3.75, np.nan, 2.5])


def test_a_class_keeps_its_best_ones_though_outvoted():
    selection = vote(
        ("good", 20, 1), ("good", 30, 2), ("bad", 1, 9), ("bad", 3, 7), ("bad", 2, 8),
        ("good", 1, 9),
    )  # fmt: skip
    assert selection["keep"].tolist() == [True, True, False, False, False, False]
    kept = keep_best(selection, rank_images(selection, CUTOFFS), 2)
    assert kept["keep"].tolist() == [True, True, False, True, True, False]
    assert selection["keep"].sum() == 2  # as it was
    assert kept["reason"][3] == (
        "kept for --min-per-class 2, though low in 2 of 2: lapm 3 < 10, niqe 7 > 5"
    )
    untouched = kept.index.difference([3, 4])
    assert kept.loc[untouched, "reason"].equals(selection.loc[untouched, "reason"])
    votes = ["low_lapm", "low_niqe", "num_low"]
    pd.testing.assert_frame_equal(kept[votes], selection[votes])


def test_a_class_with_enough_kept_images_gets_no_more():
    selection = vote(("a", 20, 9), ("a", 1, 1), ("a", 2, 9), ("a", 9, 9))
    assert selection["keep"].sum() == 2
    assert keep_best(selection, rank_images(selection, CUTOFFS), 2).equals(selection)
    filled = keep_best(selection, rank_images(selection, CUTOFFS), 3)
    assert filled["keep"].tolist() == [True, True, False, True]


def test_an_unscored_image_is_never_kept():
    selection = vote(("a", np.nan, 1), ("a", 1, 9), ("b", np.nan, np.nan))
    kept = keep_best(selection, rank_images(selection, CUTOFFS), 5)
    assert kept["keep"].tolist() == [False, True, False]
    assert kept["reason"][0] == "unscored (lapm: no score)"


def test_an_image_without_a_label_is_of_no_class_to_keep():
    selection = vote((None, 1, 9), (None, 1, 9), ("a", 20, 1))
    assert keep_best(selection, rank_images(selection, CUTOFFS), 1).equals(selection)


def test_of_equal_ranks_the_first_is_kept():
    selection = vote(("a", 1, 9), ("a", 1, 9), ("a", 1, 9))
    kept = keep_best(selection, rank_images(selection, CUTOFFS), 2)
    assert kept["keep"].tolist() == [True, True, False]
