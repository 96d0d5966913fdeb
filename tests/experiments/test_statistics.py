from __future__ import annotations

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from iqa_ray.experiments.statistics import (
    compare_arms,
    compare_shares,
    format_comparison,
    format_varying,
    measure_difference,
    summarise_arms,
)
from iqa_ray.selection.significance import adjust_holm

T_4 = 2.7764451051977987  # 97.5% quantile of Student's t with four degrees of freedom


def make_runs(accuracies: dict[tuple[str, str], list[float | None]]) -> pd.DataFrame:
    """One run a (backbone, arm) and seed; None has failed. The area is half the accuracy plus .5"""
    return pd.DataFrame(
        [
            {
                "backbone": backbone,
                "arm": arm,
                "seed": seed,
                "accuracy": np.nan if accuracy is None else accuracy,
                "auc": np.nan if accuracy is None else 0.5 + accuracy / 2,
                "status": "nan_loss" if accuracy is None else "ok",
            }
            for (backbone, arm), values in accuracies.items()
            for seed, accuracy in enumerate(values)
        ]
    )


def compare(high: list[float | None], everything: list[float | None]) -> pd.Series:
    runs = make_runs({("net", "high"): high, ("net", "all"): everything})
    return compare_arms(runs).iloc[0]


def test_difference_by_hand():
    """Mean 0.03, squares sum to 0.001: variance 0.00025, standard error 0.01/√2, t = 3√2.

    With four degrees of freedom P(|T| > t) = 1 - 3/4 s (1 - s²/3), s² = t² / (4 + t²).
    """
    found = measure_difference(np.array([0.02, 0.05, 0.01, 0.04, 0.03]))
    assert found.difference == pytest.approx(0.03)
    assert found.low == pytest.approx(0.03 - T_4 * 0.01 / 2**0.5)
    assert found.high == pytest.approx(0.03 + T_4 * 0.01 / 2**0.5)
    s = (18 / 22) ** 0.5
    assert found.t_p == pytest.approx(1 - 1.5 * s * (1 - s**2 / 3))
    assert found.t_p == pytest.approx(0.01324, abs=1e-5)
    assert found.wilcoxon_p == 2 / 32


def enumerate_signed_ranks(differences: list[float]) -> float:
    values = np.array([value for value in differences if value])
    ranks = stats.rankdata(np.abs(values))
    observed = abs(float(ranks @ np.sign(values)))
    signs = itertools.product([-1, 1], repeat=len(values))
    return float(np.mean([abs(ranks @ np.array(choice)) >= observed for choice in signs]))


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5], 2 / 32),
        # rank sums of at most 1 are {} and {1}, on either side
        ([-0.1, 0.2, 0.3, 0.4, 0.5], 4 / 32),
        # at most 3: {}, {1}, {2}, {3}, {1, 2}
        ([-0.1, -0.2, 0.3, 0.4, 0.5], 10 / 32),
        # the zero is left out
        ([0.0, 0.2, 0.3, 0.4, 0.5], 2 / 16),
        # ranks 2.5, 2.5, 1, 4, 5; sums of at most 2.5: {}, {1}, {2.5}, {2.5}
        ([-0.2, 0.2, 0.1, 0.4, 0.5], 8 / 32),
    ],
)
def test_wilcoxon_by_enumeration(differences, p):
    assert measure_difference(np.array(differences)).wilcoxon_p == pytest.approx(p)
    assert enumerate_signed_ranks(differences) == pytest.approx(p)


@settings(max_examples=50)
@given(st.lists(st.integers(-6, 6), min_size=2, max_size=8))
def test_differences_agree_with_enumeration_and_scipy(values):
    differences = np.array(values) / 100
    found = measure_difference(differences)
    if any(values):
        assert found.wilcoxon_p == pytest.approx(enumerate_signed_ranks(values))
    else:
        assert np.isnan(found.wilcoxon_p)
    if len(set(values)) > 1:
        expected = stats.ttest_1samp(differences, 0)
        assert found.t_p == pytest.approx(expected.pvalue)
        interval = expected.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_wilcoxon_of_many_runs_is_scipys():
    differences = np.random.default_rng(0).normal(0.1, 1, 30)
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert measure_difference(differences).wilcoxon_p == pytest.approx(expected)


def test_several_backbones_are_several_tests():
    """The first row's p of 0.01324 doubles; its Wilcoxon p too; the other's are larger."""
    runs = make_runs(
        {
            ("alexnet", "high"): [0.82, 0.85, 0.81, 0.84, 0.83],
            ("alexnet", "all"): [0.8] * 5,
            ("vgg19", "high"): [0.86, 0.79, 0.85, 0.78, 0.82],
            ("vgg19", "all"): [0.8] * 5,
            ("resnet18", "high"): [0.7, None, None, None, None],
            ("resnet18", "all"): [0.7] * 5,
        }
    )
    comparison = compare_arms(runs).set_index("backbone")
    for measure in ("accuracy", "auc"):
        t_p, holm = comparison[f"{measure}_t_p"], comparison[f"{measure}_t_p_holm"]
        assert t_p["alexnet"] == pytest.approx(0.01324, abs=1e-5)
        assert holm["alexnet"] == 2 * t_p["alexnet"]
        assert holm["vgg19"] == t_p["vgg19"]
        assert np.isnan(holm["resnet18"])
        ranks_p = comparison[f"{measure}_wilcoxon_p_holm"]
        assert ranks_p["alexnet"] == 2 * 0.0625
    text = format_comparison(summarise_arms(runs), compare_arms(runs))
    assert "p 0.0132 (paired t; Holm 0.0265), 0.0625 (Wilcoxon; Holm 0.125)" in text
    assert text.splitlines()[-1] == "Holm: p adjusted for testing several models."
    alone = runs[runs["backbone"] == "alexnet"]
    assert "Holm" not in format_comparison(summarise_arms(alone), compare_arms(alone))


def test_summary_by_hand():
    runs = make_runs(
        {
            ("net", "high"): [0.8, 0.9, 1.0],
            ("net", "all"): [0.5, None, 0.7],
            ("vgg", "high"): [0.4, None, None],
            ("vgg", "all"): [None, None, None],
        }
    )
    summary = summarise_arms(runs).set_index(["backbone", "arm"])
    assert list(summary.index) == [
        ("net", "high"), ("net", "all"), ("vgg", "high"), ("vgg", "all"),
    ]  # fmt: skip
    assert summary["num_seeds"].tolist() == [3, 2, 1, 0]
    assert summary["num_failed"].tolist() == [0, 1, 2, 3]
    expected = [0.9, 0.6, 0.4, np.nan]
    assert summary["accuracy_mean"].tolist() == pytest.approx(expected, nan_ok=True)
    expected = [0.1, 0.02**0.5, np.nan, np.nan]
    assert summary["accuracy_std"].tolist() == pytest.approx(expected, nan_ok=True)
    expected = [0.95, 0.8, 0.7, np.nan]
    assert summary["auc_mean"].tolist() == pytest.approx(expected, nan_ok=True)


def test_only_seeds_that_finished_in_both_arms_are_paired():
    row = compare([0.9, None, 0.8, 0.7, 0.6], [0.5, 0.9, None, 0.6, 0.7])
    assert (row["num_pairs"], row["num_seeds_agree"]) == (3, 2)
    assert row["accuracy_difference"] == pytest.approx((0.4 + 0.1 - 0.1) / 3)
    assert row["auc_difference"] == pytest.approx((0.4 + 0.1 - 0.1) / 6)


def test_seeds_are_paired_by_their_number():
    runs = make_runs({("net", "high"): [0.5, 0.6, 0.8], ("net", "all"): [0.4, 0.6, 0.7]})
    shuffled = runs.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(compare_arms(runs), compare_arms(shuffled))
    assert compare_arms(runs).loc[0, "num_seeds_agree"] == 2


@pytest.mark.parametrize(
    ("high", "everything", "verdict"),
    [
        ([0.82, 0.85, 0.81, 0.84, 0.83], [0.8] * 5, "higher on this split"),
        ([0.8] * 5, [0.82, 0.85, 0.81, 0.84, 0.83], "lower on this split"),
        ([0.86, 0.79, 0.85, 0.78, 0.82], [0.8] * 5, "within noise on this split"),
        # in floating point the three differences are not the same
        ([0.82, 0.84, 0.32], [0.80, 0.82, 0.30], "undecided: the same difference"),
        ([0.8, 0.7], [0.8, 0.7], "equal in every seed on this split"),
        ([0.8, None], [0.7, None], "undecided: one seed"),
        ([0.8, None], [None, 0.7], "undecided: no seed finished in both arms"),
        ([None, None], [None, None], "undecided: no seed finished in both arms"),
    ],
)
def test_verdicts(high, everything, verdict):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = make_runs({("net", "high"): high, ("net", "all"): everything})
        comparison = compare_arms(runs)
        text = format_comparison(summarise_arms(runs), comparison)
    assert comparison.loc[0, "verdict"].startswith(verdict)
    assert verdict in text
    assert "nan" not in text.lower()
    anew = compare_arms(runs, split_per_seed=True)
    before = comparison.loc[0, "verdict"]
    assert anew.loc[0, "verdict"] == before.removesuffix(" on this split")
    assert before.startswith("undecided") != before.endswith(" on this split")
    pd.testing.assert_frame_equal(anew.drop(columns="verdict"), comparison.drop(columns="verdict"))


def test_one_arm_alone():
    runs = make_runs({("net", "high"): [0.8, 0.9]})
    assert compare_arms(runs).loc[0, "verdict"] == "undecided: no seed finished in both arms"


def test_other_arms_can_be_compared():
    runs = make_runs(
        {("net", "removed-0"): [0.5, 0.5, 0.5], ("net", "removed-30"): [0.6, 0.7, 0.8]}
    )
    row = compare_arms(runs, [("removed-30", "removed-0")]).iloc[0]
    assert (row["better"], row["worse"]) == ("removed-30", "removed-0")
    assert row["accuracy_difference"] == pytest.approx(0.2)


def test_table_2():
    runs = make_runs(
        {
            ("alexnet", "high"): [0.82, 0.85, 0.81, 0.84, 0.83],
            ("alexnet", "all"): [0.8] * 5,
            ("vgg19", "high"): [0.7, None],
            ("vgg19", "all"): [None, None],
        }
    )
    text = format_comparison(summarise_arms(runs), compare_arms(runs))
    assert text.splitlines() == [
        "Model    Quality       Accuracy (%)  AUC (%)",
        "alexnet  High-quality  83.0±1.6*     91.5±0.8",
        "         All-quality   80.0±0.0      90.0±0.0",
        "vgg19    High-quality  70.0          85.0      1 of 2 seeds finished",
        "         All-quality   –             –         0 of 2 seeds finished",
        "mean±standard deviation over seeds; * best accuracy of the model",
        "",
        "alexnet: accuracy, high − all: +3.0 points (95% interval +1.0 to +5.0), "
        "p 0.0132 (paired t), 0.0625 (Wilcoxon), higher in 5 of 5 seeds: higher on this split",
        "vgg19: accuracy, high − all: undecided: no seed finished in both arms",
        "With 5 seeds Wilcoxon's smallest two-sided p is 0.0625.",
    ]


def test_models_keep_their_order():
    runs = make_runs({(net, arm): [0.5] for net in ("vgg19", "alexnet") for arm in ("high", "all")})
    lines = format_comparison(summarise_arms(runs), compare_arms(runs)).splitlines()
    assert [lines[1].split()[0], lines[3].split()[0]] == ["vgg19", "alexnet"]
    assert [line.partition(":")[0] for line in lines[-2:]] == ["vgg19", "alexnet"]


def test_table_3():
    runs = make_runs(
        {
            ("resnet34", "removed-0"): [0.80, 0.82],
            ("resnet34", "removed-10"): [0.84, 0.86],
            ("resnet34", "removed-20"): [None, 0.83],
            ("resnet34", "high"): [0.87, 0.91],
        }
    )
    assert format_varying(summarise_arms(runs), compare_shares(runs)).splitlines() == [
        "Percent removed (%)  Accuracy (%)  AUC (%)",
        "0                    81.0±1.4      90.5±0.7",
        "10                   85.0±1.4*     92.5±0.7",
        "20                   83.0          91.5      1 of 2 seeds finished",
        "High-quality         89.0±2.8      94.5±1.4",
        "mean±standard deviation over seeds; * best accuracy of a share",
        "",
        "accuracy, 10% removed − 0% removed: +4.0 points, p 0.5 (Wilcoxon; Holm 1), higher in 2 of "
        "2 seeds: undecided: the same difference in every seed, no spread to judge it by",
        "accuracy, 20% removed − 0% removed: +1.0 points, higher in 1 of 1 seeds: undecided: "
        "one seed has no spread to judge the difference by",
        # 7 and 9, then 3 and 5: the error is 1, and with one degree of freedom
        # p is 2/π arctan(1/t) and the 97.5% quantile 12.7062
        "accuracy, high − 0% removed: +8.0 points (95% interval -4.7 to +20.7), p 0.0792 "
        "(paired t; Holm 0.158), 0.5 (Wilcoxon; Holm 1), higher in 2 of 2 seeds: "
        "within noise on this split",
        "accuracy, high − 10% removed: +4.0 points (95% interval -8.7 to +16.7), p 0.156 "
        "(paired t; Holm 0.158), 0.5 (Wilcoxon; Holm 1), higher in 2 of 2 seeds: "
        "within noise on this split",
        "accuracy, high − 20% removed: +8.0 points, higher in 1 of 1 seeds: undecided: "
        "one seed has no spread to judge the difference by",
        "With 2 seeds Wilcoxon's smallest two-sided p is 0.5.",
        "Holm: p adjusted for testing several differences.",
    ]


def test_shares_are_compared_with_nothing_removed_and_with_high_quality():
    runs = make_runs(
        {
            ("net", "removed-0"): [0.5, 0.6, 0.7],
            ("net", "removed-30"): [0.6, 0.8, 0.7],
            ("net", "removed-50"): [0.7, 0.7, 0.9],
            ("net", "high"): [0.9, 0.9, 0.8],
        }
    )
    table = compare_shares(runs).set_index(["better", "worse"])
    expected = {
        ("removed-30", "removed-0"): [0.1, 0.2, 0.0],
        ("removed-50", "removed-0"): [0.2, 0.1, 0.2],
        ("high", "removed-0"): [0.4, 0.3, 0.1],
        ("high", "removed-30"): [0.3, 0.1, 0.1],
        ("high", "removed-50"): [0.2, 0.2, -0.1],
    }
    assert list(table.index) == list(expected)
    for pair, differences in expected.items():
        found, row = measure_difference(np.array(differences)), table.loc[pair]
        for name in ("difference", "low", "high", "t_p", "wilcoxon_p"):
            assert row[f"accuracy_{name}"] == pytest.approx(getattr(found, name)), (pair, name)
        assert row["auc_difference"] == pytest.approx(np.mean(differences) / 2)
        assert row["num_pairs"] == 3
        assert row["num_seeds_agree"] == sum(value > 0 for value in differences)
    for test in ("t", "wilcoxon"):
        adjusted = adjust_holm(table[f"accuracy_{test}_p"].to_numpy())
        assert table[f"accuracy_{test}_p_holm"].tolist() == pytest.approx(list(adjusted))
    assert table["accuracy_t_p_holm"].min() == pytest.approx(5 * table["accuracy_t_p"].min())


@pytest.mark.parametrize(
    ("arms", "pairs"),
    [
        (["removed-10", "removed-20"], []),
        (["removed-0"], []),
        (["removed-0", "removed-10"], [("removed-10", "removed-0")]),
        (["removed-10", "high"], [("high", "removed-10")]),
    ],
)
def test_only_arms_that_were_trained_are_compared(arms, pairs):
    runs = make_runs({("net", arm): [0.8, 0.9] for arm in arms})
    table = compare_shares(runs)
    assert list(zip(table["better"], table["worse"], strict=True)) == pairs
    whole = compare_shares(make_runs({("net", arm): [0.8] for arm in ("removed-0", "high")}))
    assert list(table.columns) == list(whole.columns)
    text = format_varying(summarise_arms(runs), table)
    assert text.count("accuracy, ") == len(pairs)
