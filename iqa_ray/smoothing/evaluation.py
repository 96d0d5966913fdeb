"""What came of the strategies: Table 2 of Chen et al., differences, calibration, confidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from iqa_ray.experiments.statistics import measure_difference, tabulate
from iqa_ray.selection.significance import adjust_holm
from iqa_ray.smoothing.strategies import (
    BASELINE,
    KINDS,
    TEST_SETS,
    Strategy,
    pair_strategies,
)
from iqa_ray.training.evaluation import bin_reliability

RESULTS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("strategy", "method", "training_set")),
        ("seed", pa.int64()),
        ("test_set", pa.string()),
        ("num_images", pa.int64()),
        *((name, pa.float64()) for name in ("accuracy", "calibration_error", "confidence")),
    ]
)
TABLE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("strategy", "method", "training_set", "test_set")),
        *(
            (f"{name}_{of}", pa.float64())
            for name in ("accuracy", "calibration_error", "confidence")
            for of in ("mean", "sd")
        ),
        ("num_seeds", pa.int64()),
        ("is_best", pa.bool_()),
    ]
)
DIFFERENCES_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("better", "worse", "training_set", "test_set")),
        ("num_pairs", pa.int64()),
        *((name, pa.float64()) for name in ("difference", "low", "high", "t_p", "t_p_holm")),
    ]
)
RELIABILITY_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("strategy", "method", "training_set", "test_set")),
        ("bin", pa.int64()),
        ("num_images", pa.int64()),
        *((name, pa.float64()) for name in ("confidence", "accuracy")),
    ]
)
CONFIDENCE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("image_id", "path", "label")),
        *((name, pa.string()) for name in ("strategy", "method", "training_set", "test_set")),
        ("confidence", pa.float64()),
    ]
)
_LEVEL = 0.95  # of all intervals together


@dataclass(frozen=True)
class Answers:
    """What the run of a strategy and a seed says of all versions of the test images.

    `probabilities` are (V, n, C).
    """

    strategy: Strategy
    seed: int
    probabilities: NDArray[np.float64]


def to_probabilities(logits: NDArray[np.floating], num_images: int) -> NDArray[np.float64]:
    """(V, n, C) softmax probabilities of (V · n, C) logits, version by version; fp64."""
    values = logits.astype(np.float64)
    values = np.exp(values - np.logaddexp.reduce(values, axis=1, keepdims=True))
    return values.reshape(len(TEST_SETS), num_images, -1)


def measure_results(answers: Sequence[Answers], labels: NDArray[np.int64]) -> pd.DataFrame:
    """One row a strategy, seed and test set (RESULTS_SCHEMA).

    `accuracy` is that of the most probable class, `calibration_error` the expected one (Guo et
    al.), and `confidence` the mean probability of the true class.
    """
    rows = []
    for each in answers:
        for test_set, probabilities in zip(TEST_SETS, each.probabilities, strict=True):
            counts, confidences, right = bin_reliability(probabilities, labels)
            rows.append(
                {
                    **_name(each.strategy),
                    "seed": each.seed,
                    "test_set": test_set,
                    "num_images": len(labels),
                    "accuracy": right.sum() / counts.sum(),
                    "calibration_error": np.abs(confidences - right).sum() / counts.sum(),
                    "confidence": probabilities[np.arange(len(labels)), labels].mean(),
                }
            )
    return pd.DataFrame(rows, columns=RESULTS_SCHEMA.names)


def summarise_results(results: pd.DataFrame) -> pd.DataFrame:
    """Means and standard deviations (ddof 1) over the seeds (TABLE_SCHEMA), in the order of rows.

    `is_best` marks the highest mean accuracy of a test set, among all strategies.
    """
    keys = ["strategy", "method", "training_set", "test_set"]
    rows = []
    for key, group in results.groupby(keys, sort=False):
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        for name in ("accuracy", "calibration_error", "confidence"):
            row[f"{name}_mean"], row[f"{name}_sd"] = group[name].mean(), group[name].std(ddof=1)
        rows.append({**row, "num_seeds": len(group)})
    table = pd.DataFrame(rows, columns=TABLE_SCHEMA.names)
    best = table.groupby("test_set")["accuracy_mean"].transform("max")
    table["is_best"] = table["accuracy_mean"] == best
    return table


def compare_strategies(results: pd.DataFrame, strategies: list[Strategy]) -> pd.DataFrame:
    """IQA-LS less what it is held against, paired by seed, for every test set.

    Returns:
        DIFFERENCES_SCHEMA. The t intervals hold together at 95% (Bonferroni: each at 1 - 0.05 / m
        of m comparisons), and p is adjusted by Holm's method; both are null with fewer than two
        seeds, or with differences that are all the same.
    """
    values = results.assign(
        title=results[["strategy", "method", "training_set"]].agg(" ".join, axis=1)
    )
    table = values.pivot(index=["test_set", "seed"], columns="title", values="accuracy")
    pairs = [
        (better, worse)
        for better, worse in pair_strategies(strategies)
        if {better.title, worse.title} <= set(table.columns)
    ]
    level = 1 - (1 - _LEVEL) / max(1, len(pairs) * len(TEST_SETS))
    rows = []
    for better, worse in pairs:
        for test_set in TEST_SETS:
            paired = table.loc[test_set, [better.title, worse.title]].dropna()
            values_of = (paired[better.title] - paired[worse.title]).to_numpy(np.float64)
            found = measure_difference(values_of, level)
            rows.append(
                {
                    "better": f"{better.name} {better.method}",
                    "worse": f"{worse.name} {worse.method}",
                    "training_set": better.training_set,
                    "test_set": test_set,
                    "num_pairs": len(paired),
                    "difference": found.difference,
                    "low": found.low,
                    "high": found.high,
                    "t_p": found.t_p,
                }
            )
    differences = pd.DataFrame(rows, columns=DIFFERENCES_SCHEMA.names)
    differences["t_p_holm"] = adjust_holm(differences["t_p"].to_numpy(np.float64))
    return differences


def tabulate_reliability(answers: Sequence[Answers], labels: NDArray[np.int64]) -> pd.DataFrame:
    """Reliability diagrams of every strategy and test set, all seeds together (15 bins)."""
    rows = []
    for strategy, group in _by_strategy(answers).items():
        for place, test_set in enumerate(TEST_SETS):
            found = [bin_reliability(each.probabilities[place], labels) for each in group]
            counts, confidences, right = (np.sum(part, axis=0) for part in zip(*found, strict=True))
            for number in np.flatnonzero(counts):
                rows.append(
                    {
                        **_name(strategy),
                        "test_set": test_set,
                        "bin": number,
                        "num_images": counts[number],
                        "confidence": confidences[number] / counts[number],
                        "accuracy": right[number] / counts[number],
                    }
                )
    return pd.DataFrame(rows, columns=RELIABILITY_SCHEMA.names)


def choose_images(labels: NDArray[np.int64], num_images: int, seed: int) -> NDArray[np.int64]:
    """Places of test images that are shown one by one: by chance, of different classes first."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = pd.Series(labels[order]).groupby(labels[order]).cumcount().to_numpy()
    return order[np.argsort(rank, kind="stable")][:num_images]


def tabulate_confidence(
    answers: Sequence[Answers], images: pd.DataFrame, labels: NDArray[np.int64], seed: int
) -> pd.DataFrame:
    """The probability of the true class of a few images in every version (Figure 4).

    Args:
        answers: of all runs.
        images: the test images: image_id, path, label.
        labels: (n,) their class indices.
        seed: by which four of them are drawn.

    Returns:
        CONFIDENCE_SCHEMA; the mean over the seeds of a strategy.
    """
    rows = []
    for place in choose_images(labels, 4, seed):
        image = images.iloc[place][["image_id", "path", "label"]].to_dict()
        for strategy, group in _by_strategy(answers).items():
            for version, test_set in enumerate(TEST_SETS):
                own = [each.probabilities[version, place, labels[place]] for each in group]
                row = {**image, **_name(strategy), "test_set": test_set}
                rows.append({**row, "confidence": float(np.mean(own))})
    return pd.DataFrame(rows, columns=CONFIDENCE_SCHEMA.names)


def measure_leads(table: pd.DataFrame) -> dict[str, float]:
    """How far each strategy is ahead of strategy 1 on the strongest level of its own kind.

    Args:
        table: of `summarise_results`.

    Returns:
        By method and training set, the difference of mean accuracies; of MIX_all3 the mean of the
        three kinds'. Empty without strategy 1.
    """
    means = {
        title: dict(zip(group["test_set"], group["accuracy_mean"], strict=True))
        for title, group in _by_title(table)
    }
    base = means.pop(BASELINE.title, None)
    if base is None:
        return {}
    leads = {}
    for title, own in means.items():
        kind = title.rpartition("MIX_")[2].lower()
        kinds = KINDS if kind == "all3" else (kind,)
        leads[title] = float(np.mean([own[f"{each}-3"] - base[f"{each}-3"] for each in kinds]))
    return leads


def _by_title(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each strategy, called as its runs are, in the order of the table."""
    for key, group in table.groupby(["strategy", "method", "training_set"], sort=False):
        assert isinstance(key, tuple)
        yield " ".join(map(str, key)), group


def _by_strategy(answers: Sequence[Answers]) -> Mapping[Strategy, list[Answers]]:
    groups: dict[Strategy, list[Answers]] = {}
    for each in answers:
        groups.setdefault(each.strategy, []).append(each)
    return groups


def _name(strategy: Strategy) -> dict[str, str]:
    return {
        "strategy": strategy.name,
        "method": strategy.method,
        "training_set": strategy.training_set,
    }


# --- for people -----------------------------------------------------------------------------------


def format_table(table: pd.DataFrame, leads: Mapping[str, float]) -> str:
    """Table 2 of Chen et al.: accuracies as shares of 1, the best of a test set with a star."""
    rows, errors = [], []
    for title, group in _by_title(table):
        cells = {row["test_set"]: row for _, row in group.iterrows()}
        first = group.iloc[0]
        names = [first["strategy"], first["method"], first["training_set"]]
        rows.append([*names, *(_format_accuracy(cells[name]) for name in TEST_SETS)])
        found = [cells[name]["calibration_error_mean"] for name in TEST_SETS]
        errors.append(f"{title}: {found[0]:.3f}, {np.mean(found[1:]):.3f}")
    lines = [
        tabulate(["", "Method", "Training set", *map(_head, TEST_SETS)], rows),
        "mean±standard deviation over seeds of the accuracy; * best of the test set",
        "",
        "expected calibration error: pristine, mean of the distorted sets",
        *errors,
    ]
    if leads:
        lines += ["", "on level 3 of the own kind, less strategy 1:"]
        lines += [f"{name}: {100 * lead:+.1f} points" for name, lead in leads.items()]
    return "\n".join(lines)


def _head(test_set: str) -> str:
    kind, _, level = test_set.partition("-")
    return f"{'JPEG' if kind == 'jpeg' else kind.capitalize()} {level}".rstrip()


def _format_accuracy(row: pd.Series[Any]) -> str:
    spread = "" if np.isnan(row["accuracy_sd"]) else f"±{row['accuracy_sd']:.3f}"
    return f"{row['accuracy_mean']:.3f}{spread}{'*' if row['is_best'] else ''}"


def format_differences(differences: pd.DataFrame) -> str:
    """Each comparison in points with its interval; a star where that excludes zero."""
    lines = []
    for _, group in differences.groupby(["better", "worse", "training_set"], sort=False):
        cells = []
        for _, row in group.iterrows():
            cell = f"{_head(row['test_set'])} {100 * row['difference']:+.1f}"
            if row["num_pairs"] > 2 and not np.isnan(row["low"]):
                star = "*" if row["low"] > 0 or row["high"] < 0 else ""
                cell += f" ({100 * row['low']:+.1f} to {100 * row['high']:+.1f}){star}"
            cells.append(cell)
        first = group.iloc[0]
        pair = f"{first['better']} − {first['worse']}, {first['training_set']}"
        lines.append(f"{pair}: {', '.join(cells)}")
    if lines:
        lines.insert(
            0, "differences in points; intervals hold together at 95% (Bonferroni), * not 0"
        )
    return "\n".join(lines)
