from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import SeedSequence

from iqa_ray.errors import UsageError
from iqa_ray.experiments.splits import (
    find_leaks,
    join_seeds,
    rank_quality,
    split_quality,
    split_varying,
)

SHARES = (0, 10, 20, 30, 40, 50)


def make_images(kept: dict[str, int], rejected: dict[str, int] | None = None) -> pd.DataFrame:
    """Images of different content, `kept` and `rejected` of each label."""
    rows = [
        {"label": label, "keep": keep}
        for keep, counts in ((True, kept), (False, rejected or {}))
        for label, count in counts.items()
        for _ in range(count)
    ]
    images = pd.DataFrame(rows)
    images["image_id"] = [f"i{row:04d}" for row in range(len(images))]
    images["path"] = "/data/" + images["image_id"]
    images["content_hash"] = "c" + images["image_id"]
    images["status"] = "ok"
    return images


def make_quality(images: pd.DataFrame, seed: int = 0) -> pd.Series:
    values = np.random.default_rng(seed).permutation(len(images)).astype(float)
    return pd.Series(values, index=images["image_id"].to_numpy())


def ids_of(table: pd.DataFrame, arm: str, part: str) -> set[str]:
    found = table.loc[(table["arm"] == arm) & (table["part"] == part), "image_id"]
    assert found.is_unique
    return set(found)


def labels_of(table: pd.DataFrame, arm: str, part: str) -> pd.Series:
    return table.loc[(table["arm"] == arm) & (table["part"] == part), "label"].value_counts()


def test_high_quality_images_are_split_80_10_10_in_each_class():
    table = split_quality(make_images({"a": 40, "b": 25, "c": 10}, {"a": 30, "b": 5}), 0).table
    assert list(table) == ["arm", "part", "image_id", "path", "label"]
    assert table.index.equals(pd.RangeIndex(len(table)))
    for part, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        counts = labels_of(table, "high", part)
        for label, size in {"a": 40, "b": 25, "c": 10}.items():
            assert counts[label] >= 1
            assert abs(counts[label] - share * size) <= 1
    sizes = table.groupby(["arm", "part"]).size().to_dict()
    assert sizes == {
        ("high", "train"): 61, ("high", "validation"): 7, ("high", "test"): 7,
        ("all", "train"): 61, ("all", "validation"): 7, ("all", "test"): 7,
    }  # fmt: skip


def test_arms_share_validation_and_test_of_high_quality_only():
    images = make_images({"a": 20, "b": 20}, {"a": 60, "b": 60})
    table = split_quality(images, 3).table
    kept = set(images.loc[images["keep"], "image_id"])
    for part in ("validation", "test"):
        assert ids_of(table, "high", part) == ids_of(table, "all", part)
        assert ids_of(table, "high", part) <= kept
    assert ids_of(table, "high", "train") <= kept
    assert ids_of(table, "all", "train") & kept
    assert ids_of(table, "all", "train") - kept


def test_all_quality_arm_draws_from_rejected_as_from_kept():
    images = make_images({"a": 1000, "b": 1000}, {"a": 1000, "b": 1000})
    rejected = set(images.loc[~images["keep"], "image_id"])
    drawn = ids_of(split_quality(images, 0).table, "all", "train")
    assert len(drawn) == 1600
    # 2,000 of the 3,600 in the pool are rejected; the share's standard deviation is 0.01
    assert len(drawn & rejected) / 1600 == pytest.approx(2000 / 3600, abs=0.04)


def test_a_split_depends_on_its_seed_and_not_on_the_order_of_rows():
    images = make_images({"a": 30, "b": 30}, {"a": 10, "b": 40})
    first = split_quality(images, 5).table
    pd.testing.assert_frame_equal(first, split_quality(images.sample(frac=1), 5).table)
    assert not first.equals(split_quality(images, 6).table)
    quality = make_quality(images)
    pd.testing.assert_frame_equal(
        split_varying(images, quality, 5).table,
        split_varying(images.sample(frac=1), quality.sample(frac=1), 5).table,
    )


def test_fewer_training_images_leave_the_other_parts_alone():
    images = make_images({"a": 30, "b": 30}, {"a": 30, "b": 30})
    whole, small = split_quality(images, 1).table, split_quality(images, 1, num_train=12).table
    for arm in ("high", "all"):
        assert len(ids_of(small, arm, "train")) == 12
        assert ids_of(small, arm, "train") <= ids_of(whole, arm, "train")
        assert ids_of(small, arm, "test") == ids_of(whole, arm, "test")


@pytest.mark.parametrize("seed", range(8))
def test_every_class_of_the_test_part_is_trained_on(seed):
    images = make_images({"a": 200, "b": 10, "c": 10}, {"a": 2000})
    table = split_quality(images, seed, num_train=5).table
    for arm in ("high", "all"):
        assert set(labels_of(table, arm, "train").index) == {"a", "b", "c"}


def test_test_on_all_adds_a_tenth_of_the_rejected():
    images = make_images({"a": 30, "b": 20}, {"a": 50, "b": 10, "c": 90})
    high, everything = (split_quality(images, 2, test_on=on).table for on in ("high", "all"))
    assert labels_of(everything, "high", "test").to_dict() == {"a": 3 + 5, "b": 2 + 1}
    assert ids_of(high, "high", "test") < ids_of(everything, "high", "test")
    for part in ("train", "validation"):
        assert ids_of(high, "high", part) == ids_of(everything, "high", part)
    assert ids_of(everything, "high", "test") == ids_of(everything, "all", "test")


def test_copies_stay_together():
    """Ten contents a class, one of them of twenty copies: they are trained on, or left out."""
    images = make_images({"a": 29, "b": 10})
    images.loc[:19, "content_hash"] = "same"
    for seed in range(4):
        table = split_quality(images, seed).table
        copies = set(images.loc[:19, "image_id"])
        assert copies <= ids_of(table, "high", "train")
        assert labels_of(table, "high", "test").to_dict() == {"a": 1, "b": 1}


def test_ten_contents_of_equal_copies_are_split_by_content():
    images = make_images({"a": 50, "b": 10})
    images.loc[:49, "content_hash"] = [f"a{row // 5}" for row in range(50)]
    table = split_quality(images, 0).table
    assert labels_of(table, "high", "test").to_dict() == {"a": 5, "b": 1}
    assert labels_of(table, "high", "validation").to_dict() == {"a": 5, "b": 1}


def test_a_part_is_never_empty_for_want_of_small_contents():
    """One single and nine contents of ten copies, more than a tenth of the 91 images each."""
    images = make_images({"a": 91, "b": 10})
    images.loc[:90, "content_hash"] = [f"a{(row + 9) // 10}" for row in range(91)]
    table = split_quality(images, 0).table
    assert labels_of(table, "high", "test")["a"] == 1
    assert labels_of(table, "high", "validation")["a"] == 10


def test_copies_of_test_images_are_not_trained_on_though_rejected():
    images = make_images({"a": 20, "b": 20}, {"a": 20, "b": 20})
    images.loc[40:, "content_hash"] = images.loc[:39, "content_hash"].to_numpy()
    table = split_quality(images, 0).table
    contents = images.set_index("image_id")["content_hash"]
    trained = {contents[name] for name in ids_of(table, "all", "train")}
    assert not trained & {contents[name] for name in ids_of(table, "all", "test")}


copies = st.lists(
    st.tuples(
        st.integers(0, 63),
        st.sampled_from(["own"] * 8 + ["c", None]),
        st.booleans(),
        st.sampled_from([0.2, 0.5, 0.8, np.nan]),
    ),
    max_size=40,
)


def add_copies(images: pd.DataFrame, rows: list[tuple]) -> pd.DataFrame:
    """Add images of the contents 0, 1, … under the content's own label, another or none."""
    extra = pd.DataFrame(rows, columns=["content", "label", "keep", "score"])
    own = ["a" if content < len(images) // 2 else "b" for content in extra["content"]]
    extra["label"] = extra["label"].where(extra["label"] != "own", own).astype(object)
    extra["content_hash"] = [f"c{content}" for content in extra["content"]]
    extra["image_id"] = extra["path"] = [f"x{row:02d}" for row in range(len(extra))]
    extra["status"] = np.where(extra["score"].isna(), "undefined", "ok")
    first = images.assign(content_hash=[f"c{row}" for row in range(len(images))], score=0.5)
    return pd.concat([first, extra[list(first)].astype({"keep": bool})], ignore_index=True)


@settings(max_examples=20)
@given(copies, st.integers(0, 1000), st.sampled_from(["high", "all"]))
def test_nothing_leaks(rows, seed, test_on):
    images = add_copies(make_images({"a": 30, "b": 30}), rows).set_index("image_id", drop=False)
    try:
        high = split_quality(images, seed, test_on=test_on).table
        varying = split_varying(images, images["score"], seed, shares=[0, 40]).table
    except UsageError:
        assert len(rows) > 20  # so many contradictions that a class is lost
        return
    content, label = images["content_hash"].to_dict(), images["label"].to_dict()
    for table, arms in ((high, ["high", "all"]), (varying, ["removed-0", "removed-40"])):
        assert not find_leaks(table, content)
        trained = [ids_of(table, arm, "train") for arm in arms]
        validated, tested = (ids_of(table, arms[0], part) for part in ("validation", "test"))
        assert validated == ids_of(table, arms[1], "validation")
        assert tested == ids_of(table, arms[1], "test")
        assert len(trained[0]) == len(trained[1])
        for first, second in itertools.combinations([set.union(*trained), validated, tested], 2):
            assert not first & second
            assert not {content[name] for name in first} & {content[name] for name in second}
        for names in trained:
            assert {label[name] for name in names} == {"a", "b"}
    if test_on == "high":
        assert ids_of(varying, "removed-0", "test") == ids_of(high, "high", "test")


def test_find_leaks_names_images_and_contents():
    table = pd.DataFrame(
        [
            ("high", "train", "i1"), ("high", "test", "i2"), ("high", "validation", "i3"),
            ("all", "train", "i2"), ("all", "test", "i2"), ("all", "validation", "i3"),
        ],
        columns=["arm", "part", "image_id"],
    )  # fmt: skip
    hashes = {"i1": "c1", "i2": "c2", "i3": "c1"}
    assert find_leaks(table, hashes) == [
        "image i2 is in test and train",
        "content c1 is in train and validation",
        "content c2 is in test and train",
    ]
    assert find_leaks(table[table["arm"] == "high"], {"i1": "c1"}) == []


def test_seeds_with_their_own_parts_are_told_apart():
    images = make_images({"a": 30, "b": 30, "c": 3}, {"a": 20})
    images.loc[0, "status"] = "unreadable"
    each = {seed: split_quality(images, SeedSequence(7, spawn_key=(seed,))) for seed in (3, 1)}
    joined = join_seeds(each)
    for seed, splits in each.items():
        rows = joined.table[joined.table["seed"] == seed].drop(columns="seed")
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), splits.table)
        assert joined.notes == splits.notes
    assert joined.num_unusable == 1
    tested = [ids_of(splits.table, "high", "test") for splits in each.values()]
    assert tested[0] != tested[1]
    again = split_quality(images, SeedSequence(7, spawn_key=(3,))).table
    pd.testing.assert_frame_equal(again, each[3].table)


def test_what_one_seed_tests_another_may_train_on():
    images = make_images({"a": 30, "b": 30})
    table = join_seeds({seed: split_quality(images, seed) for seed in range(4)}).table
    hashes = images.set_index("image_id")["content_hash"]
    assert find_leaks(table, hashes) == []
    assert find_leaks(table.drop(columns="seed"), hashes)
    last = table[table["seed"] == 3]
    torn = last[last["part"] == "test"].head(1).assign(part="train")
    (leak,) = torn["image_id"]
    assert find_leaks(pd.concat([table, torn]), hashes) == [
        f"image {leak} is in test and train",
        f"content c{leak} is in test and train",
    ]
    shared = pd.concat([last, torn]).assign(seed=pd.NA)
    assert len(find_leaks(shared, hashes)) == 2


def test_what_is_left_out_is_said():
    images = make_images({"a": 20, "b": 20, "c": 9, "d": 11}, {"e": 30})
    images.loc[0, "label"] = None
    images.loc[1, "label"] = ""
    images.loc[[2, 40, 41], "status"] = ["unreadable", "undefined", "unreadable"]
    images.loc[[2, 41], "label"] = ["", None]
    images.loc[2, "content_hash"] = None
    images.loc[[3, 20], "content_hash"] = "torn"
    images.loc[images["label"] == "d", "content_hash"] = "one"
    splits = split_quality(images, 0)
    assert splits.notes == [
        "3 images left out: without a score of every voter (1 undefined, 2 unreadable)",
        "2 images left out: without a label",
        "2 images left out: copies of them have other labels (a, b)",
        "3 classes left out: fewer than 10 different high-quality images: c (7), d (1), e (0)",
        "no rejected image is left to train on: both arms draw from the same images",
    ]
    assert splits.num_unusable == 3
    assert set(splits.table["label"]) == {"a", "b"}
    assert not {"i0000", "i0001", "i0002", "i0003", "i0020"} & set(splits.table["image_id"])


@pytest.mark.parametrize("kept", [{"a": 100}, {"a": 100, "b": 9}, {"a": 5, "b": 5}])
def test_fewer_than_two_classes(kept):
    with pytest.raises(UsageError, match="classes have 10 different high-quality images.*needed"):
        split_quality(make_images(kept, {"c": 50}), 0)


def test_nothing_is_labelled():
    images = make_images({"a": 30})
    images["label"] = None
    with pytest.raises(UsageError, match="0 classes .* 30 images left out: without a label"):
        split_quality(images, 0)


def test_a_number_of_training_images_that_cannot_be():
    images = make_images({"a": 20, "b": 20}, {"a": 100})
    with pytest.raises(UsageError, match="33 training images asked for, 32 are there"):
        split_quality(images, 0, num_train=33)
    with pytest.raises(UsageError, match="1 training images are too few for 2 classes"):
        split_quality(images, 0, num_train=1)
    assert len(ids_of(split_quality(images, 0, num_train=32).table, "all", "train")) == 32


def test_varying_shares_the_test_set_and_the_size():
    """112 images less 6 and 6 make 100: a half is 50, but of the kept only 48 are left."""
    images = make_images({"a": 30, "b": 30}, {"a": 30, "b": 22})
    compared = split_quality(images, 7).table
    table = split_varying(images, make_quality(images), 7).table
    arms = [*(f"removed-{share}" for share in SHARES), "high"]
    assert list(table["arm"].unique()) == arms
    for arm in arms:
        for part in ("validation", "test"):
            assert ids_of(table, arm, part) == ids_of(compared, "high", part)
        assert len(ids_of(table, arm, "train")) == 48


def test_the_high_quality_arm_of_varying_has_kept_images_alone():
    images = make_images({"a": 200, "b": 10, "c": 10}, {"a": 300, "b": 300, "c": 300})
    kept = set(images.loc[images["keep"], "image_id"])
    for seed in range(8):
        table = split_varying(images, make_quality(images), seed, num_train=20).table
        trained = ids_of(table, "high", "train")
        assert len(trained) == 20
        assert trained <= kept
        assert set(labels_of(table, "high", "train").index) == {"a", "b", "c"}
    other = split_varying(images, make_quality(images), 99, num_train=20).table
    assert ids_of(other, "high", "train") != trained


def test_more_images_than_are_of_high_quality_leave_that_arm_out():
    images = make_images({"a": 30, "b": 30}, {"a": 30, "b": 22})
    quality = make_quality(images)
    with_high, without = (split_varying(images, quality, 7, size) for size in (48, 49))
    assert "high" in set(with_high.table["arm"])
    assert with_high.notes == []
    assert list(without.table["arm"].unique()) == [f"removed-{share}" for share in SHARES]
    assert without.notes == [
        "no high-quality arm: 49 training images asked for, 48 of high quality are there"
    ]


def test_varying_removes_the_lowest_of_nested_draws():
    images = make_images({"a": 30, "b": 30}, {"a": 30, "b": 22})
    quality = make_quality(images)
    splits = split_varying(images, quality, 7, 50)
    # a draw is what remains after removing nothing, from as many images
    draws = {
        share: ids_of(
            split_varying(images, quality, 7, round(5000 / (100 - share)), [0]).table,
            "removed-0",
            "train",
        )
        for share in SHARES
    }
    assert [len(draw) for draw in draws.values()] == [50, 56, 62, 71, 83, 100]
    for share, wider in itertools.pairwise(SHARES):
        assert draws[share] < draws[wider]
    for share, draw in draws.items():
        best = sorted(draw, key=lambda name: -quality[name])[:50]
        assert ids_of(splits.table, f"removed-{share}", "train") == set(best)
    assert splits.notes == [
        "no high-quality arm: 50 training images asked for, 48 of high quality are there"
    ]


def test_varying_spares_the_best_of_a_class_that_would_vanish():
    images = make_images({"a": 40, "b": 40, "c": 10})
    quality = pd.Series(np.arange(90.0), index=images["image_id"].to_numpy())
    quality[images.loc[images["label"] == "c", "image_id"]] = -np.arange(10.0)
    splits = split_varying(images, quality, 0, shares=[50])
    trained = ids_of(splits.table, "removed-50", "train")
    assert len(trained) == 36
    ranked = quality.sort_values(ascending=False).index
    parts = [ids_of(splits.table, "removed-50", part) for part in ("validation", "test")]
    outside = [name for name in ranked if name not in set.union(*parts)]
    rare = [name for name in outside if name >= "i0080"]
    assert trained == {*outside[:35], rare[0]}
    assert splits.notes == ["50% removed: the best image of c was spared"]


@pytest.mark.parametrize(("num_rejected", "most"), [(0, 14), (2, 16), (5, 19), (6, 20)])
def test_varying_takes_as_many_as_suffice(num_rejected, most):
    """Of pools of 16, 18, 21 and 22 images, n for which n / 0.9, rounded, still fits.

    By default they are not more than the 16 of high quality.
    """
    images = make_images({"a": 10, "b": 10}, {"a": num_rejected})
    table = split_varying(images, make_quality(images), 0, shares=[10]).table
    assert len(ids_of(table, "removed-10", "train")) == min(most, 16)
    table = split_varying(images, make_quality(images), 0, most, shares=[10]).table
    assert len(ids_of(table, "removed-10", "train")) == most
    with pytest.raises(UsageError, match=f"{most + 1} training images asked for, {most} are"):
        split_varying(images, make_quality(images), 0, most + 1, [10])


def test_images_without_a_score_are_left_out_before_anything_is_drawn():
    """The splits are those of a data set that lacks them, in whichever rows they stand."""
    images = make_images({"a": 20, "b": 20}, {"a": 20, "b": 20})
    images.loc[[0, 13, 25, 41, 79], "status"] = "undefined"
    lacking = images.drop([0, 13, 25, 41, 79])
    quality = make_quality(images)
    quality[images.loc[images["status"] != "ok", "image_id"]] = np.nan
    for test_on in ("high", "all"):
        splits = split_quality(images, 4, test_on=test_on)
        pd.testing.assert_frame_equal(
            splits.table, split_quality(lacking, 4, test_on=test_on).table
        )
        assert splits.num_unusable == 5
    splits = split_varying(images, quality, 4)
    pd.testing.assert_frame_equal(splits.table, split_varying(lacking, quality, 4).table)
    assert splits.num_unusable == 5
    assert splits.notes == [
        "5 images left out: without a score of every voter (5 undefined)",
    ]


@pytest.mark.parametrize("shares", [[], [-10], [0, 100]])
def test_impossible_shares(shares):
    images = make_images({"a": 20, "b": 20})
    with pytest.raises(UsageError, match="at least 0 and below 100"):
        split_varying(images, make_quality(images), 0, shares=shares)


def test_rank_quality_by_hand():
    """Ranks of `up`: 1, 3, 2, 4; of `down`, where 1.0 is best: 2.5, 2.5, 4, 1; i4 has no score."""
    scores = pd.DataFrame(
        {"up": [0.1, 0.7, 0.5, 0.9, 0.2], "down": [5.0, 5.0, 1.0, 9.0, np.nan]},
        index=["i0", "i1", "i2", "i3", "i4"],
    )
    ranks = rank_quality(scores, {"up": True, "down": False})
    assert ranks.iloc[:4].to_dict() == {"i0": 1.75, "i1": 2.75, "i2": 3.0, "i3": 2.5}
    assert np.isnan(ranks["i4"])
