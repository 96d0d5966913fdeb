"""What the benchmark of cut-offs counts: parts without overlap, errors, damage, intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.bench_cutoffs import balance_error, bound_difference, shares_damage, split_parts
from benchmarks.damaged import draw_damage

SETS = {"packages, blur", "packages, mixed", "cifar, blur", "cifar, mixed", "codes"}


def test_the_parts_of_a_split_share_no_image_and_halve_each_class_of_their_side():
    labels = np.repeat(np.arange(3), 8)
    is_train = np.tile([True, True, True, False], 6)
    parts = split_parts(labels, is_train, seed=0)
    together = np.concatenate(list(parts.values()))
    assert sorted(together) == list(range(24))
    assert is_train[parts["judge"]].all()
    assert is_train[parts["pool"]].all()
    assert not is_train[parts["judged"]].any()
    assert not is_train[parts["test"]].any()
    for part, of_each_class in {"judge": 3, "pool": 3, "judged": 1, "test": 1}.items():
        assert np.bincount(labels[parts[part]]).tolist() == [of_each_class] * 3
    assert not np.array_equal(split_parts(labels, is_train, seed=1)["pool"], parts["pool"])


def test_the_balanced_error_weights_clean_and_damaged_alike():
    is_damaged = np.array([True, True, False, False, False, False, False, False])
    keep = np.array([True, False, False, True, True, True, True, True])
    assert balance_error(keep, is_damaged) == pytest.approx((1 / 2 + 1 / 6) / 2)


def test_damage_is_drawn_from_the_content_of_an_image_alone():
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 3)).astype(np.uint8)
    drawn = [draw_damage(image, ["noise", "jpeg"], [2, 3]) for image in images]
    again = [draw_damage(image, ["noise", "jpeg"], [2, 3]) for image in images[::-1]]
    assert again[::-1] == drawn
    counts = pd.Series(drawn).value_counts()
    assert set(counts.index) == {("", 0), *((k, n) for k in ("noise", "jpeg") for n in (2, 3))}
    assert 170 <= counts["", 0] <= 230


def test_differences_have_the_interval_of_a_t_test():
    # mean 2, standard error 1/sqrt(3), t with two degrees of freedom 4.3027
    assert bound_difference(pd.Series([1.0, 2.0, 3.0, np.nan])) == [2.0, -0.4841, 4.4841]
    assert bound_difference(pd.Series([1.0])) is None


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("codes", {"packages, blur", "cifar, blur"}),
        ("packages, blur", {"codes", "cifar, blur"}),
        ("packages, mixed, sides at random", {"codes", "cifar, mixed"}),
    ],
)
def test_constants_come_from_other_images_with_like_damage(name, others):
    assert {other for other in SETS if shares_damage(name, other)} == others
