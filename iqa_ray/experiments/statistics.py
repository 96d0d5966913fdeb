"""Results over seeds: means, paired differences, tests, and both experiments' tables as text.

The experiments and the layout of the tables are those of Smith et al. (sections 3.2, 3.3, 4.3 and
4.4, Tables 2 and 3); the differences and tests are ours. Accuracies, areas and differences are
shares of 1 in tables and per cent in text. Pure: tables in, tables out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import stats

from iqa_ray.experiments.splits import (
    EVERYTHING,
    HIGH,
    KEEPING,
    REMOVED,
    SMOOTHED,
    WEIGHTED,
)
from iqa_ray.selection.significance import Floats, adjust_holm

MEASURES = ("accuracy", "auc")
_TESTS = {"t": "paired t", "wilcoxon": "Wilcoxon"}

SUMMARY_FILE, DIFFERENCES_FILE = "summary.parquet", "differences.parquet"
# what `summarise_arms` returns
SUMMARY_SCHEMA = pa.schema(
    [
        ("backbone", pa.string()),
        ("arm", pa.string()),
        *((f"{name}_{of}", pa.float64()) for name in MEASURES for of in ("mean", "std")),
        ("num_seeds", pa.int64()),
        ("num_failed", pa.int64()),
    ]
)
# what `compare_arms` and `compare_shares` return
COMPARISON_SCHEMA = pa.schema(
    [
        ("backbone", pa.string()),
        ("better", pa.string()),
        ("worse", pa.string()),
        ("num_pairs", pa.int64()),
        ("num_seeds_agree", pa.int64()),
        *(
            (f"{name}_{of}", pa.float64())
            for name in MEASURES
            for of in ("difference", "low", "high", *(f"{test}_p" for test in _TESTS))
        ),
        ("verdict", pa.string()),
        *((f"{name}_{test}_p_holm", pa.float64()) for name in MEASURES for test in _TESTS),
    ]
)

_QUALITIES = {
    HIGH: "High-quality",
    "all": "All-quality",
    EVERYTHING: "Every image",
    SMOOTHED: "Every image, smoothed",
    WEIGHTED: "Every image, weighted",
}
_LEVEL = 0.95  # of the intervals
_ON_THIS_SPLIT = " on this split"  # ends a verdict where all seeds share their images
# differences that agree to this many decimals are equal: 0.82 - 0.80 is not quite 0.84 - 0.82
_DECIMALS = 9


@dataclass(frozen=True)
class Difference:
    """A mean difference between paired runs; NaN where undefined.

    Attributes:
        difference: the mean.
        low, high: ends of its t interval, of 95% unless another level is asked for.
        t_p: two-sided p of the paired t-test.
        wilcoxon_p: two-sided exact p of Wilcoxon's signed-rank test, zero differences left out.
    """

    difference: float = np.nan
    low: float = np.nan
    high: float = np.nan
    t_p: float = np.nan
    wilcoxon_p: float = np.nan


def measure_difference(differences: Floats, level: float = _LEVEL) -> Difference:
    """The mean of (n,) paired differences, and whether it could be zero.

    `level` is that of the interval. Interval and t-test need two differences that are not all the
    same: without a spread there is nothing to judge the mean by.
    """
    if not len(differences):
        return Difference()
    mean, wilcoxon_p = float(differences.mean()), _test_signed_ranks(differences)
    if np.ptp(differences) == 0:
        return Difference(mean, wilcoxon_p=wilcoxon_p)
    freedom = len(differences) - 1
    error = float(differences.std(ddof=1)) / np.sqrt(len(differences))
    margin = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    t_p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - margin, mean + margin, t_p, wilcoxon_p)


def _test_signed_ranks(differences: Floats) -> float:
    """Wilcoxon's p over all 2^n choices of signs; ties too, where tables would not be exact."""
    differences = differences[differences != 0]
    if not len(differences):
        return float("nan")
    # ties have half ranks: doubled, all are integers
    ranks = np.rint(2 * stats.rankdata(np.abs(differences))).astype(np.int64)
    probabilities = np.zeros(ranks.sum() + 1)  # of each sum of the ranks of positive differences
    probabilities[0] = 1.0
    for rank in ranks:
        probabilities[rank:] = probabilities[rank:] + probabilities[:-rank]
        probabilities /= 2
    positive = int(ranks[differences > 0].sum())
    smaller = min(positive, int(ranks.sum()) - positive)
    return min(1.0, 2 * float(probabilities[: smaller + 1].sum()))


def summarise_arms(runs: pd.DataFrame) -> pd.DataFrame:
    """Average each arm over its seeds.

    Args:
        runs: one row a run: arm, backbone, seed, accuracy, auc, status (`ok` or what went wrong).

    Returns:
        One row a backbone and arm, in the order of first appearance: backbone, arm, accuracy_mean,
        accuracy_std, auc_mean, auc_std (over seeds, ddof 1; NaN without a mean or a spread),
        num_seeds (runs that are ok), num_failed.
    """
    rows = []
    for (backbone, arm), group in runs.groupby(["backbone", "arm"], sort=False):
        finished = group[group["status"] == "ok"]
        row: dict[str, Any] = {"backbone": backbone, "arm": arm}
        for name in MEASURES:
            row[f"{name}_mean"] = finished[name].mean()
            row[f"{name}_std"] = finished[name].std(ddof=1)
        row["num_seeds"] = len(finished)
        row["num_failed"] = len(group) - len(finished)
        rows.append(row)
    return pd.DataFrame(rows)


def pair_arms(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Which arms of `compare` are compared: high with all, and what keeps every image with others.

    An arm that keeps every image loses nowhere if it is not worse than `high` on high-quality test
    images and not worse than `all` on those of all qualities.
    """
    keeping = [arm for arm in arms if arm in KEEPING]
    pairs = [(HIGH, "all"), *((arm, other) for arm in keeping for other in (HIGH, "all"))]
    plain = [arm for arm in keeping if arm == EVERYTHING]
    return [*pairs, *((arm, other) for other in plain for arm in keeping if arm != other)]


def compare_arms(
    runs: pd.DataFrame,
    pairs: Sequence[tuple[str, str]] = ((HIGH, "all"),),
    *,
    split_per_seed: bool = False,
) -> pd.DataFrame:
    """Compare pairs of arms of each backbone, paired by seed.

    The intervals are over what the seed decides: initial head and order of images and, with
    `split_per_seed`, which images train, validate and test. Those are draws from the same images,
    so that the interval is still narrower than one over new images (Nadeau and Bengio 2003).

    Args:
        runs: as for `summarise_arms`, each arm, backbone and seed at most once.
        pairs: the arm that is expected to be the better one, and the other.
        split_per_seed: whether every seed has its own split; else a verdict is on that split.

    Returns:
        One row a backbone and pair: backbone, better, worse, num_pairs (seeds that are ok in both
        arms), num_seeds_agree (of those, where `better` has the higher accuracy), for accuracy and
        auc (better - worse) the fields of `Difference` with the prefix accuracy_ or auc_, each p
        also with the suffix _holm, adjusted over all rows (see `adjust_holm`), and verdict:
        `higher` or `lower` where the 95% interval of the difference in accuracy excludes zero,
        `within noise` where it does not, each with ` on this split` where all seeds share one, or
        why there is none.
    """
    return _compare(runs, pairs, "" if split_per_seed else _ON_THIS_SPLIT)


def compare_shares(runs: pd.DataFrame) -> pd.DataFrame:
    """Compare what `split_varying` gives: removing a share with removing nothing, and with `high`.

    Smith et al. (abstract, sections 4.3 and 4.4) set the best share beside the high-quality arm.

    Returns:
        As `compare_arms` does, one row a pair of arms that were trained: each share as `better`
        with 0% as `worse`; then `high` as `better` with each share as `worse`, where the difference
        is what the share sacrifices. p is adjusted over all rows.
    """
    arms = list(runs["arm"].unique())
    shares = [arm for arm in arms if arm.startswith(REMOVED)]
    nothing = f"{REMOVED}0"
    pairs = [(share, nothing) for share in shares if share != nothing and nothing in shares]
    pairs += [(HIGH, share) for share in shares if HIGH in arms]
    return _compare(runs, pairs, _ON_THIS_SPLIT)


def _compare(runs: pd.DataFrame, pairs: Sequence[tuple[str, str]], where: str) -> pd.DataFrame:
    rows = []
    for backbone, group in runs.groupby("backbone", sort=False):
        finished = group[group["status"] == "ok"]
        for better, worse in pairs:
            row: dict[str, Any] = {"backbone": backbone, "better": better, "worse": worse}
            differences = {name: _pair(finished, name, better, worse) for name in MEASURES}
            row["num_pairs"] = len(differences["accuracy"])
            row["num_seeds_agree"] = int((differences["accuracy"] > 0).sum())
            measured = {name: measure_difference(values) for name, values in differences.items()}
            for name, found in measured.items():
                row |= {f"{name}_{field}": value for field, value in asdict(found).items()}
            row["verdict"] = _judge(measured["accuracy"], row["num_pairs"], where)
            rows.append(row)
    comparison = pd.DataFrame(rows, columns=COMPARISON_SCHEMA.names)
    for name in (f"{measure}_{test}_p" for measure in MEASURES for test in _TESTS):
        comparison[f"{name}_holm"] = adjust_holm(comparison[name].to_numpy(np.float64))
    return comparison


def _pair(runs: pd.DataFrame, name: str, better: str, worse: str) -> Floats:
    """(n,) differences in a measure, one a seed that has both."""
    values = runs.pivot(index="seed", columns="arm", values=name).reindex(columns=[better, worse])
    values = values.dropna()
    return (values[better] - values[worse]).to_numpy(np.float64).round(_DECIMALS)


def _judge(accuracy: Difference, num_pairs: int, where: str) -> str:
    if num_pairs == 0:
        return "undecided: no seed finished in both arms"
    if num_pairs == 1:
        return "undecided: one seed has no spread to judge the difference by"
    if np.isnan(accuracy.low):
        if accuracy.difference == 0:
            return f"equal in every seed{where}"
        return "undecided: the same difference in every seed, no spread to judge it by"
    if accuracy.low > 0:
        return f"higher{where}"
    return f"lower{where}" if accuracy.high < 0 else f"within noise{where}"


def format_comparison(summary: pd.DataFrame, comparison: pd.DataFrame) -> str:
    """Table 2 of Smith et al. in per cent, and what the comparison says of each backbone.

    Args:
        summary: what `summarise_arms` returns.
        comparison: what `compare_arms` returns.
    """
    rows = []
    for backbone, group in summary.groupby("backbone", sort=False):
        best = _find_best(group)
        for place, (_, row) in enumerate(group.iterrows()):
            name = "" if place else str(backbone)
            quality = _QUALITIES.get(row["arm"], row["arm"])
            rows.append([name, quality, *_format_results(row, best)])
    table = tabulate(["Model", "Quality", "Accuracy (%)", "AUC (%)", ""], rows)
    lines = [table, "mean±standard deviation over seeds; * best accuracy of the model", ""]
    for _, row in comparison.iterrows():
        arms = f"{row['better']} − {row['worse']}"
        lines.append(_describe(f"{row['backbone']}: accuracy, {arms}", row, comparison))
    tested = "models" if len(comparison) == comparison["backbone"].nunique() else "differences"
    return "\n".join([*lines, *_explain_power(comparison), *_explain_holm(comparison, tested)])


def format_varying(summary: pd.DataFrame, differences: pd.DataFrame) -> str:
    """Table 3 of Smith et al. in per cent, and what each share gains and sacrifices.

    Args:
        summary: what `summarise_arms` returns of what `split_varying` gives.
        differences: what `compare_shares` returns.
    """
    best = _find_best(summary[summary["arm"] != HIGH])
    rows = [
        [_QUALITIES.get(row["arm"], _name_share(row["arm"], "")), *_format_results(row, best)]
        for _, row in summary.iterrows()
    ]
    table = tabulate(["Percent removed (%)", "Accuracy (%)", "AUC (%)", ""], rows)
    lines = [table, "mean±standard deviation over seeds; * best accuracy of a share"]
    if len(differences):
        lines.append("")
    for _, row in differences.iterrows():
        arms = f"{_name_share(row['better'])} − {_name_share(row['worse'])}"
        lines.append(_describe(f"accuracy, {arms}", row, differences))
    power, holm = _explain_power(differences), _explain_holm(differences, "differences")
    return "\n".join([*lines, *power, *holm])


def _name_share(arm: str, unit: str = "% removed") -> str:
    return arm.removeprefix(REMOVED) + unit if arm.startswith(REMOVED) else arm


def _find_best(rows: pd.DataFrame) -> float:
    """The best mean accuracy; NaN, which equals nothing, where there is no choice."""
    means = rows["accuracy_mean"].dropna()
    return float(means.max()) if len(means) > 1 else float("nan")


def _format_results(row: pd.Series[Any], best: float) -> list[str]:
    mark = "*" if row["accuracy_mean"] == best else " "
    accuracy = _format_mean(row["accuracy_mean"], row["accuracy_std"]) + mark
    total = row["num_seeds"] + row["num_failed"]
    failed = f"{row['num_seeds']} of {total} seeds finished" if row["num_failed"] else ""
    return [accuracy, _format_mean(row["auc_mean"], row["auc_std"]), failed]


def _format_mean(mean: float, std: float) -> str:
    if np.isnan(mean):
        return "–"
    return f"{100 * mean:.1f}" + ("" if np.isnan(std) else f"±{100 * std:.1f}")


def tabulate(header: list[str], rows: list[list[str]]) -> str:
    """A table of texts for people: columns as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    )
    return "\n".join(lines)


def _describe(name: str, row: pd.Series[Any], comparison: pd.DataFrame) -> str:
    """One row of `comparison` in words; `name` says of what."""
    if not row["num_pairs"]:
        return f"{name}: {row['verdict']}"
    facts = [f"{100 * row['accuracy_difference']:+.1f} points"]
    if not np.isnan(row["accuracy_low"]):
        low, high = 100 * row["accuracy_low"], 100 * row["accuracy_high"]
        facts[0] += f" (95% interval {low:+.1f} to {high:+.1f})"
    p_values = []
    for test, title in _TESTS.items():
        column = f"accuracy_{test}_p"
        if row["num_pairs"] > 1 and not np.isnan(row[column]):
            several = comparison[column].count() > 1
            holm = f"; Holm {row[f'{column}_holm']:.3g}" if several else ""
            p_values.append(f"{row[column]:.3g} ({title}{holm})")
    if p_values:
        facts.append(f"p {', '.join(p_values)}")
    facts.append(f"higher in {row['num_seeds_agree']} of {row['num_pairs']} seeds")
    return f"{name}: {', '.join(facts)}: {row['verdict']}"


def _explain_power(comparison: pd.DataFrame) -> list[str]:
    """Where Wilcoxon's test cannot reach 5%, however clear the runs are."""
    smallest = {num: 2 * 0.5**num for num in sorted(set(comparison["num_pairs"])) if num > 1}
    return [
        f"With {num} seeds Wilcoxon's smallest two-sided p is {p:g}."
        for num, p in smallest.items()
        if p > 1 - _LEVEL
    ]


def _explain_holm(comparison: pd.DataFrame, tested: str) -> list[str]:
    num_tested = max(int(comparison[f"accuracy_{test}_p"].count()) for test in _TESTS)
    return [f"Holm: p adjusted for testing several {tested}."] if num_tested > 1 else []
