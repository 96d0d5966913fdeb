from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqa_ray.selection.cutoffs import Cutoff
from iqa_ray.selection.votes import add_looks, cast_votes, votes_to_reject

UP = Cutoff(0.5, "higher_is_better")
DOWN = Cutoff(0.5, "lower_is_better")


def make_frame(scores: dict[str, list[float]]) -> pd.DataFrame:
    size = len(next(iter(scores.values())))
    frame = pd.DataFrame({"image_id": [f"i{n}" for n in range(size)]})
    frame["path"] = frame["label"] = frame["image_id"]
    for name, values in scores.items():
        frame[name] = np.array(values, dtype=float)
        frame[f"{name}_error"] = ["too_small" if np.isnan(v) else None for v in values]
    return frame


@pytest.mark.parametrize(
    ("rule", "num_metrics", "needed"),
    [
        ("majority", 1, 1), ("majority", 2, 2), ("majority", 3, 2), ("majority", 4, 3),
        ("majority", 5, 3), ("any", 3, 1), ("all", 3, 3), (2, 3, 2), (1, 3, 1), (3, 3, 3),
    ],
)  # fmt: skip
def test_votes_to_reject(rule, num_metrics, needed):
    assert votes_to_reject(rule, num_metrics) == needed


@pytest.mark.parametrize("rule", [0, 4, -1])
def test_impossible_rules(rule):
    with pytest.raises(ValueError, match="3 metrics vote, give 1 to 3"):
        votes_to_reject(rule, 3)


def test_a_vote_without_a_score_is_neither_yes_nor_no():
    selection = cast_votes(make_frame({"a": [0.0, 1.0, np.nan]}), {"a": UP}, "any")
    assert selection["low_a"].dtype == "boolean"  # of which null is a third value
    assert selection["low_a"].tolist() == [True, False, pd.NA]


def test_rows_of_a_larger_table_keep_their_votes():
    frame = make_frame({"a": [0.0, 1.0, np.nan, 0.2]}).iloc[[3, 1, 2]]
    selection = cast_votes(frame, {"a": UP}, "any")
    assert selection["keep"].to_dict() == {3: False, 1: True, 2: False}
    assert selection["low_a"].tolist() == [True, False, pd.NA]
    assert [reason.split()[0] for reason in selection["reason"] if reason] == ["low", "unscored"]


def test_truth_table_of_three_voters():
    """All eight combinations; the second voter is one where lower is better."""
    rows = list(itertools.product([False, True], repeat=3))
    frame = make_frame(
        {
            "a": [0.0 if low[0] else 1.0 for low in rows],
            "b": [1.0 if low[1] else 0.0 for low in rows],
            "c": [0.0 if low[2] else 1.0 for low in rows],
        }
    )
    cutoffs = {"a": UP, "b": DOWN, "c": UP}
    expected = {"majority": 2, "any": 1, "all": 3, 2: 2}
    for rule, needed in expected.items():
        selection = cast_votes(frame, cutoffs, rule)
        for low, row in zip(rows, selection.to_dict("records"), strict=True):
            assert [row["low_a"], row["low_b"], row["low_c"]] == list(low)
            assert row["num_low"] == sum(low)
            assert row["keep"] == (sum(low) < needed)
            assert bool(row["reason"]) == (not row["keep"])


def test_a_score_on_the_cutoff_is_not_low():
    selection = cast_votes(make_frame({"a": [0.5], "b": [0.5]}), {"a": UP, "b": DOWN}, "any")
    assert selection["keep"].all()


def test_unscored_images_are_rejected_with_that_reason():
    frame = make_frame({"a": [np.nan, 1.0, 0.0], "b": [1.0, 1.0, 1.0]})
    selection = cast_votes(frame, {"a": UP, "b": UP}, "all")
    assert selection["keep"].tolist() == [False, True, True]
    assert selection["reason"].tolist() == ["unscored (a: too_small)", "", ""]
    assert selection["low_a"].isna().tolist() == [True, False, False]
    assert selection["num_low"].tolist() == [0, 0, 1]


def test_reason_names_the_votes():
    selection = cast_votes(make_frame({"a": [0.25], "b": [0.75]}), {"a": UP, "b": DOWN})
    assert selection["reason"][0] == "low in 2 of 2: a 0.25 < 0.5, b 0.75 > 0.5"


def test_columns_are_those_of_the_contract():
    selection = cast_votes(make_frame({"a": [1.0], "b": [1.0]}), {"a": UP, "b": UP})
    assert list(selection) == [
        "image_id", "path", "label", "a", "low_a", "b", "low_b", "num_low", "keep", "reason",
    ]  # fmt: skip


scores = st.one_of(st.floats(0, 1), st.just(float("nan")))


@given(
    st.lists(st.tuples(scores, scores, scores), min_size=1, max_size=20),
    st.sampled_from(["majority", "any", "all", 1, 2, 3]),
)
def test_properties(rows, rule):
    frame = make_frame({name: [row[n] for row in rows] for n, name in enumerate("abc")})
    cutoffs = dict.fromkeys("abc", UP)
    selection = cast_votes(frame, cutoffs, rule)
    unscored = frame[list("abc")].isna().any(axis=1)
    assert not (selection["keep"] & unscored).any()
    assert ((selection["reason"] == "") == selection["keep"]).all()
    order = ["c", "a", "b"]
    shuffled = cast_votes(frame, {name: cutoffs[name] for name in order}, rule)
    assert (shuffled["keep"] == selection["keep"]).all()
    strict = cast_votes(frame, cutoffs, "any")["keep"]
    lenient = cast_votes(frame, cutoffs, "all")["keep"]
    assert not (strict & ~selection["keep"]).any()
    assert not (selection["keep"] & ~lenient).any()
    better = frame.assign(**{name: frame[name] + 0.1 for name in "abc"})
    assert not (selection["keep"] & ~cast_votes(better, cutoffs, rule)["keep"]).any()


def test_what_an_image_looks_like_is_added_to_the_reasons_of_rejected_ones():
    reasons = {"a": "low lapm", "b": "", "c": "low wavs", "d": "no lapm score"}
    selection = pd.DataFrame({"image_id": list(reasons), "reason": list(reasons.values())})
    looks = pd.Series({"b": "looks like white noise", "c": "", "a": "looks like gaussian blur"})
    expected = ["low lapm; looks like gaussian blur", "", "low wavs", "no lapm score"]
    assert add_looks(selection, looks) == expected
