"""How well targets are predicted, beside other ways to tell which images a network gets wrong.

Rows of one image are not independent, so intervals are 95% percentile intervals over resamples of
the images, each with all of its rows. A resample is a weight a row: how often its image was drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from iqa_ray.metrifier.targets import Floats
from iqa_ray.selection.coverage import CONFIDENCE, RANDOM

METRIFIER = "metrifier"
_NUM_RESAMPLES = 300
_MIN_ROWS = 10


def measure_agreement(predicted: Floats, target: Floats, weights: Floats) -> dict[str, float]:
    """Agreement of (n,) predicted and true targets, whose rows count `weights` times (whole ones).

    Returns:
        plcc and srocc (Pearson's and Spearman's correlation), krocc (Kendall's tau b), rmse. PLCC
        is of the predictions as they are: they are meant to be targets, so no curve is fitted
        between them first. Correlations with a constant are NaN.
    """
    ranks = _rank(predicted, weights), _rank(target, weights)
    rows = np.repeat(np.arange(len(target)), weights.astype(int))
    tau = stats.kendalltau(predicted[rows], target[rows])[0]
    error = np.average((predicted - target) ** 2, weights=weights)
    return {
        "plcc": _correlate(predicted, target, weights),
        "srocc": _correlate(*ranks, weights),
        "krocc": float(tau),
        "rmse": float(np.sqrt(error)),
    }


def _rank(values: Floats, weights: Floats) -> Floats:
    """(n,) mean ranks of weighted rows; equal values share theirs."""
    _, places = np.unique(values, return_inverse=True)
    counts = np.bincount(places, weights)
    return (np.cumsum(counts) - counts / 2)[places]


def _correlate(x: Floats, y: Floats, weights: Floats) -> float:
    x = x - np.average(x, weights=weights)
    y = y - np.average(y, weights=weights)
    scale = np.sqrt(np.sum(weights * x**2) * np.sum(weights * y**2))
    return float(np.sum(weights * x * y) / scale) if scale > 0 else float("nan")


def measure_ranking(
    quality: Floats, correct: NDArray[np.bool_], weights: Floats
) -> dict[str, float]:
    """How well qualities tell right from wrong answers, rows counting `weights` times.

    Args:
        quality: (n,), higher is better; those without one (NaN) are one tie behind all others.
        correct: (n,) whether the task networks are right.
        weights: (n,).

    Returns:
        auc for "will be wrong" (Mann-Whitney, ties count half; NaN where all are right or wrong),
        and augrc, the area under the generalised risk-coverage curve (Traub et al. 2024), by its
        relation to the AUC (see `selection.coverage`).
    """
    _, places = np.unique(np.where(np.isnan(quality), -np.inf, quality), return_inverse=True)
    right = np.bincount(places, weights * correct)
    wrong = np.bincount(places, weights * ~correct)
    num_right, num_wrong = right.sum(), wrong.sum()
    error = num_wrong / (num_right + num_wrong)
    auc = float("nan")
    if num_right and num_wrong:
        auc = float(np.sum(right * (np.cumsum(wrong) - wrong / 2)) / (num_right * num_wrong))
    lost = 0.0 if np.isnan(auc) else (1 - auc) * (1 - error) * error
    return {"auc": auc, "augrc": float(lost + error**2 / 2)}


def draw_resamples(image_ids: Sequence[str], seed: int = 0) -> Floats:
    """(300, n) weights of rows: how often each row's image is drawn."""
    _, images = np.unique(np.asarray(image_ids), return_inverse=True)
    number = images.max() + 1
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(number, np.full(number, 1 / number), _NUM_RESAMPLES)
    return np.asarray(draws[:, images], np.float64)


def evaluate(frame: pd.DataFrame, qualities: Mapping[str, Floats]) -> dict[str, Any]:
    """All figures of the rows of a frame.

    Args:
        frame: image_id, target, correct, confidence, and predicted by the metrifier.
        qualities: of each other metric, (n,), higher is better; NaN without one.

    Returns:
        num_rows, num_images, accuracy; `agreement`: plcc, srocc, krocc, rmse; `voters`: auc and
        augrc of the metrifier, of every metric, of the confidence and at random; `differences`:
        the metrifier's augrc less that of the confidence, and less that of the best metric (the
        one of least augrc on these rows). Each figure is [value, low, high]; None is undefined.
    """
    correct = frame["correct"].to_numpy(bool)
    figures: dict[str, Any] = {
        "num_rows": len(frame),
        "num_images": int(frame["image_id"].nunique()),
        "accuracy": round(float(correct.mean()), 4) if len(frame) else None,
    }
    if len(frame) < _MIN_ROWS:
        return {**figures, "reason": f"fewer than {_MIN_ROWS} rows"}
    predicted, target = (frame[name].to_numpy(float) for name in ("predicted", "target"))
    voters = {
        METRIFIER: predicted,
        **qualities,
        CONFIDENCE: frame["confidence"].to_numpy(float),
        RANDOM: np.zeros(len(frame)),
    }
    resamples = draw_resamples(frame["image_id"].tolist())
    once = np.ones((1, len(frame)))
    agreements = [measure_agreement(predicted, target, w) for w in (*once, *resamples)]
    rankings = {
        name: [measure_ranking(quality, correct, w) for w in (*once, *resamples)]
        for name, quality in voters.items()
    }
    areas = {name: np.array([row["augrc"] for row in rows]) for name, rows in rankings.items()}
    differences = {f"augrc less that of {CONFIDENCE}": areas[METRIFIER] - areas[CONFIDENCE]}
    if qualities:
        best = min(qualities, key=lambda name: areas[name][0])
        differences[f"augrc less that of {best}, the best metric"] = areas[METRIFIER] - areas[best]
    return {
        **figures,
        "agreement": _bound_each(agreements),
        "voters": {name: _bound_each(rows) for name, rows in rankings.items()},
        "differences": {name: _bound(values) for name, values in differences.items()},
    }


def _bound_each(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float] | None]:
    return {name: _bound(np.array([row[name] for row in rows])) for name in rows[0]}


def _bound(values: Floats) -> list[float] | None:
    """The first value, and the 95% interval of the others; None where it is not defined."""
    if not np.isfinite(values[0]):
        return None
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return [round(float(value), 4) for value in (values[0], low, high)]


def evaluate_groups(
    frame: pd.DataFrame, qualities: Mapping[str, Floats], columns: Sequence[str]
) -> list[dict[str, Any]]:
    """The figures of the rows of each group, such as those of one distortion; `columns` name it."""
    rows = []
    for name, places in frame.groupby(list(columns), sort=False).indices.items():
        own = {voter: quality[places] for voter, quality in qualities.items()}
        group = dict(zip(columns, name if isinstance(name, tuple) else (name,), strict=True))
        found = evaluate(frame.iloc[places], own)
        rows.append({**{key: _to_plain(value) for key, value in group.items()}, **found})
    return rows


def _to_plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def say_whether_it_beats_confidence(
    figures: Mapping[str, Any], by_distortion: Sequence[Mapping[str, Any]]
) -> str:
    """One sentence: does the metrifier tell wrong answers better than the networks' confidence?"""
    name = f"augrc less that of {CONFIDENCE}"
    difference = figures.get("differences", {}).get(name)
    if difference is None:
        return "too few rows to compare it with the confidence"
    words = {
        -1: "has a smaller AUGRC than",
        0: "does not differ from",
        1: "has a larger AUGRC than",
    }
    better, worse = (
        [
            row["distortion"] or "none"
            for row in by_distortion
            if row.get("differences") and _sign(row["differences"][name]) == sign
        ]
        for sign in (-1, 1)
    )
    value, low, high = difference
    sentence = (
        f"the metrifier {words[_sign(difference)]} the networks' own confidence (AUGRC less that "
        f"{value:+.4f} [{low:+.4f}, {high:+.4f}])"
    )
    for what, names in (("smaller", better), ("larger", worse)):
        if names:
            sentence += f"; {what} on {', '.join(names)}"
    return sentence


def _sign(interval: Sequence[float] | None) -> int:
    """-1 or 1 where an interval excludes 0, else 0."""
    if interval is None:
        return 0
    return int(interval[1] > 0) - int(interval[2] < 0)


def format_evaluation(figures: Mapping[str, Any]) -> str:
    """The figures as lines for people."""
    head = (
        f"{figures['num_rows']:,} rows of {figures['num_images']:,} images, of which the task "
        "networks get "
    )
    if figures["accuracy"] is None or "agreement" not in figures:
        return f"{figures['num_rows']:,} rows: {figures.get('reason', 'none')}"
    lines = [f"{head}{figures['accuracy']:.1%} right"]
    agreement = figures["agreement"]
    lines.append(
        "predicted and true target: "
        + ", ".join(f"{name.upper()} {_format(agreement[name])}" for name in agreement)
    )
    lines.append(f"{'voter':12} {'AUC for wrong':>24} {'AUGRC':>27}")
    voters = figures["voters"]
    for name in sorted(voters, key=lambda voter: voters[voter]["augrc"][0]):
        auc, augrc = (
            _format(voters[name][key], digits) for key, digits in (("auc", 3), ("augrc", 4))
        )
        lines.append(f"{name:12} {auc:>24} {augrc:>27}")
    return "\n".join(lines)


def _format(interval: Sequence[float] | None, digits: int = 3) -> str:
    if interval is None:
        return "–"
    value, low, high = interval
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
