"""Which metrics can be trusted: correlations over series of images, verdicts, redundancy.

A series is one sample under one configuration at rising indices: cropped further and further,
rotated, blurred more and more. A metric that is to vote must follow the blurring and ignore the
others (Smith et al., sections 2.1, 3.1.1, 4.1 and Table 1). To ignore is to have no correlation
with the index or, beyond Smith et al., hardly to move (see `study.effects`). Pure: tables in,
tables out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from iqa_ray.study.settings import SMALLEST_STUDY, Judge, Thresholds

Verdict = Literal["qualified", "rejected", "undefined"]
Floats = NDArray[np.float64]
Rows = dict[str, Mapping[Any, Any]]  # of one metric, by configuration

STUDY_FOLDER = "study"
VERDICTS_FILE = f"{STUDY_FOLDER}/verdicts.json"
# what a voter must answer to, and what it must not
SENSITIVE: tuple[str, ...] = ("blurring",)
ROBUST: tuple[str, ...] = ("cropping", "rotating")
SMALLEST_SERIES = 3  # images; two correlate perfectly, whatever they show
_NUM_RESAMPLES = 2000
NOISE = 1e-9  # scores that differ by less, relative to their size, are taken for equal


@dataclass(frozen=True)
class Correlation:
    """Pearson and Spearman correlation in [-1, 1] of a series' index and its scores."""

    pcc: float
    srcc: float
    is_monotone: bool  # strictly


def is_constant(scores: Floats) -> bool:
    """Whether (n,) scores are all the same, but for rounding."""
    return bool(np.ptp(scores) <= NOISE * np.abs(scores).max())


def correlate(index: ArrayLike, scores: ArrayLike) -> Correlation | None:
    """Correlate a series (Smith et al., eq. 1 and 2); NaN stands for an image without a score.

    None where that is undefined: fewer than three images have a score, or all the same one.
    """
    x, y = (np.asarray(values, np.float64) for values in (index, scores))
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    if len(y) < SMALLEST_SERIES or is_constant(y) or np.ptp(x) == 0:
        return None
    steps = np.diff(y[np.argsort(x, kind="stable")])
    is_monotone = bool((steps > 0).all() or (steps < 0).all())
    return Correlation(_pearson(x, y), _pearson(rankdata(x), rankdata(y)), is_monotone)


def _pearson(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    cosine = float(x @ y) / float(np.sqrt((x @ x) * (y @ y)))
    return min(1.0, max(-1.0, cosine))


def correlate_all(series: pd.DataFrame) -> pd.DataFrame:
    """Correlate every series with every metric.

    Args:
        series: one row a metric and image: metric, configuration, sample, index, score (NaN
            without).

    Returns:
        One row a metric, configuration and sample: pcc, srcc (NaN where undefined), is_monotone,
        num_images, num_failed (images without a score), is_constant (three scores at least, all the
        same), in the order of first appearance.
    """
    keys = ["metric", "configuration", "sample"]
    rows = []
    for names, group in series.groupby(keys, sort=False):
        found = correlate(group["index"], group["score"])
        row = dict(zip(keys, names, strict=True))
        row |= {"num_images": len(group), "num_failed": int(group["score"].isna().sum())}
        row |= asdict(found or Correlation(np.nan, np.nan, False))
        scores = group["score"].dropna().to_numpy(np.float64)
        row["is_constant"] = len(scores) >= SMALLEST_SERIES and is_constant(scores)
        rows.append(row)
    return pd.DataFrame(rows)


def summarise(
    series: pd.DataFrame, higher_is_better: Mapping[str, bool], seed: int = 0
) -> pd.DataFrame:
    """Average the correlations over samples, in absolute value.

    Constant scores have no correlation. For cropping and rotating that is what a metric should
    have, so that it counts as 0 there; elsewhere such samples are left out.

    Args:
        series: as `correlate_all` takes it.
        higher_is_better: of each metric.
        seed: of the bootstrap.

    Returns:
        One row a metric and configuration: pcc and srcc (means of absolute values over the samples
        where they are defined), each with _std (over samples, ddof 1) and _low and _high (95%
        bootstrap interval over samples); srcc_quality, the mean of srcc with its sign, positive
        where the metric calls images better as the index rises; pcc_of_mean and srcc_of_mean
        (absolute correlation of the index with the mean score over samples, at those indices where
        every sample has one); monotone_share; num_samples, num_undefined (samples without a
        correlation), num_too_few (of those, samples with a score for fewer than three images),
        num_images and num_failed; num_constant (samples whose scores are all the same).
        Correlations are NaN where they are undefined, and means where fewer than two samples have
        one.
    """
    correlations = correlate_all(series)
    is_free = correlations["is_constant"] & correlations["configuration"].isin(ROBUST)
    correlations.loc[is_free, ["pcc", "srcc"]] = 0.0
    keys = ["metric", "configuration"]
    curves = dict(iter(series.groupby(keys, sort=False)))
    rows = []
    for names, group in correlations.groupby(keys, sort=False):
        metric, configuration = (str(name) for name in names)
        defined = group.dropna(subset=["srcc"])
        row: dict[str, Any] = {"metric": metric, "configuration": configuration}
        for name in ("pcc", "srcc"):
            row |= _average(name, defined[name].abs().to_numpy(np.float64), seed)
        enough = len(defined) >= SMALLEST_STUDY
        sign = 1 if higher_is_better[metric] else -1
        row["srcc_quality"] = sign * defined["srcc"].mean() if enough else np.nan
        row |= _correlate_mean(curves[names])
        row["monotone_share"] = defined["is_monotone"].mean() if enough else np.nan
        row["num_samples"] = len(defined)
        row["num_undefined"] = len(group) - len(defined)
        num_scores = group["num_images"] - group["num_failed"]
        row["num_too_few"] = int((num_scores < SMALLEST_SERIES).sum())
        row["num_images"] = int(group["num_images"].sum())
        row["num_failed"] = int(group["num_failed"].sum())
        row["num_constant"] = int(group["is_constant"].sum())
        rows.append(row)
    return pd.DataFrame(rows)


def _average_curve(series: pd.DataFrame) -> pd.Series[float]:
    """The mean score over samples at those indices where every sample has a score.

    `series` is of one metric and configuration: sample, index, score.
    """
    scores = series.pivot(index="index", columns="sample", values="score")
    return scores.dropna().mean(axis=1)


def _correlate_mean(series: pd.DataFrame) -> dict[str, float]:
    curve = _average_curve(series)
    found = correlate(curve.index.to_numpy(), curve) or Correlation(np.nan, np.nan, False)
    return {"pcc_of_mean": abs(found.pcc), "srcc_of_mean": abs(found.srcc)}


def _average(name: str, values: Floats, seed: int) -> dict[str, float]:
    mean = std = low = high = np.nan
    if len(values) >= SMALLEST_STUDY:
        mean, std = values.mean(), values.std(ddof=1)
        chosen = draw_resamples(len(values), seed)
        low, high = np.quantile(values[chosen].mean(axis=1), [0.025, 0.975])
    return {name: mean, f"{name}_std": std, f"{name}_low": low, f"{name}_high": high}


def draw_resamples(size: int, seed: int) -> NDArray[np.int64]:
    """(2000, size) places of bootstrap resamples of `size` values."""
    return np.random.default_rng(seed).integers(size, size=(_NUM_RESAMPLES, size))


def measure_agreement(scores: pd.DataFrame, higher_is_better: Mapping[str, bool]) -> pd.DataFrame:
    """How alike metrics rank images: Spearman's correlation of every two, of quality not of score.

    Args:
        scores: one row an image, one column a metric (NaN without a score).
        higher_is_better: of each metric.

    Returns:
        A square table of metrics; NaN where fewer than three images have both scores, or where
        one is constant.
    """
    signs = pd.Series({name: 1.0 if higher_is_better[name] else -1.0 for name in scores.columns})
    return (scores * signs).corr("spearman", min_periods=SMALLEST_SERIES)


@dataclass(frozen=True)
class Judgement:
    """What the study says of a metric. `rank` counts from 1 among the qualified."""

    verdict: Verdict
    reason: str
    rank: int | None = None


def judge_metrics(
    table: pd.DataFrame, agreement: pd.DataFrame, thresholds: Thresholds
) -> dict[str, Judgement]:
    """Judge and rank every metric of `table`.

    A metric qualifies if it follows every blurring and ignores every cropping and rotation that
    was studied. It ignores what its scores have a correlation with of at most `max_robust`, or an
    effect of at most `max_effect`. Judged by `srcc` only the first counts. Metrics are ranked by
    how far their correlation with blurring exceeds the mean effect (judged by `srcc`: correlation)
    of cropping and rotation; a copy of a better metric ranks behind all that are not.

    Args:
        table: what `summarise` returns, joined with what `summarise_effects` returns.
        agreement: what `measure_agreement` returns.
        thresholds: what qualifies a metric.
    """
    likeness: dict[Any, dict[Any, float]] = agreement.to_dict()
    rows: dict[str, Rows] = {}
    for row in table.to_dict("records"):
        rows.setdefault(row["metric"], {})[row["configuration"]] = row
    verdicts = {metric: _judge(group, thresholds) for metric, group in rows.items()}
    qualified = [metric for metric, (verdict, _) in verdicts.items() if verdict == "qualified"]
    qualified.sort(key=lambda metric: -_separate(rows[metric], thresholds.judge))
    originals: list[str] = []
    copies: dict[str, str] = {}
    for metric in qualified:
        alike = [name for name in originals if likeness[metric][name] > thresholds.max_agreement]
        if alike:
            copies[metric] = alike[0]
        else:
            originals.append(metric)
    ranks = {metric: rank for rank, metric in enumerate([*originals, *copies], start=1)}
    judgements = {}
    for metric, (verdict, reasons) in verdicts.items():
        if other := copies.get(metric):
            value = likeness[metric][other]
            reasons.append(f"ranks images as {other} does (SRCC {value:.2f}), so comes behind")
        judgements[metric] = Judgement(verdict, "; ".join(reasons), ranks.get(metric))
    return judgements


def choose_voters(judgements: Mapping[str, Judgement], keep: int) -> tuple[str, ...]:
    """The `keep` best-ranked of the qualified metrics."""
    ranked = {metric: entry.rank for metric, entry in judgements.items() if entry.rank is not None}
    return tuple(sorted(ranked, key=lambda metric: ranked[metric]))[:keep]


def _separate(rows: Rows, judge: Judge) -> float:
    """How much more a metric answers to what it should than to what it should not."""
    sensitive = [rows[name]["srcc"] for name in SENSITIVE if name in rows]
    robust = [_measure_answer(rows[name], judge) for name in ROBUST if name in rows]
    return float(np.mean(sensitive or [0.0]) - np.mean(robust or [0.0]))


def _measure_answer(row: Mapping[Any, Any], judge: Judge) -> float:
    """The effect; the correlation where there is none, as of samples that were not blurred."""
    return float(row["srcc"] if judge == "srcc" or np.isnan(row["effect"]) else row["effect"])


def _judge(rows: Rows, thresholds: Thresholds) -> tuple[Verdict, list[str]]:
    """A metric's verdict and the reasons, from its rows by configuration."""
    failed: list[str] = []
    passed: list[str] = []
    undefined: list[str] = []
    for name in (*SENSITIVE, *ROBUST):
        if name not in rows:
            (undefined if name in SENSITIVE else passed).append(f"{name} was not studied")
        elif np.isnan(rows[name]["srcc"]):
            undefined.append(_explain_undefined(name, rows[name]))
        else:
            reason, is_good = _compare(name, rows[name], thresholds)
            (passed if is_good else failed).append(reason)
    notes = [*_warn(rows, thresholds), *(note for name in rows for note in _note(name, rows[name]))]
    if failed:
        return "rejected", [*failed, *undefined, *notes]
    if undefined:
        return "undefined", [*undefined, *notes]
    return "qualified", [*passed, *notes]


def _compare(name: str, row: Mapping[Any, Any], thresholds: Thresholds) -> tuple[str, bool]:
    value, quality = row["srcc"], row["srcc_quality"]
    pcc = f", PCC {row['pcc']:.3f}" if thresholds.judge == "srcc" else ""
    if name in ROBUST:
        reason, is_good = _limit("SRCC", value, thresholds.max_robust)
        if thresholds.judge == "effect":
            effect, is_small = _limit("effect", row["effect"], thresholds.max_effect)
            return f"{name} {reason}, {effect}", is_good or is_small
        return f"{name} {reason}{pcc}", is_good
    limit = thresholds.min_sensitive
    is_good = value >= limit
    if is_good and -quality < limit:
        signed = f"{quality:+.2f} with its sign: quality does not fall throughout"
        return f"{name} SRCC {value:.3f}{pcc}, but {signed}", False
    return f"{name} SRCC {value:.3f} ({'≥' if is_good else 'below'} {limit:g}){pcc}", is_good


def _limit(name: str, value: float, limit: float) -> tuple[str, bool]:
    """A figure that is to be small, in words, and whether it is."""
    if np.isnan(value):
        return f"{name} undefined", False
    is_good = value <= limit
    shown = "∞" if np.isinf(value) else f"{value:.3f}"
    return f"{name} {shown} ({'≤' if is_good else 'above'} {limit:g})", is_good


def _explain_undefined(name: str, row: Mapping[Any, Any]) -> str:
    if row["num_failed"] == row["num_images"]:
        return f"no image of the {name} series has a score"
    reasons = {
        f"fewer than {SMALLEST_SERIES} images with a score": row["num_too_few"],
        "constant scores": row["num_constant"],
    }
    why = ", ".join(f"{num} of them for {reason}" for reason, num in reasons.items() if num)
    missing = f"; {row['num_failed']} of {row['num_images']} images have no score"
    return (
        f"the correlation with {name} is undefined for {row['num_undefined']} samples ({why}"
        f"{missing if row['num_failed'] else ''})"
    )


def _warn(rows: Rows, thresholds: Thresholds) -> Sequence[str]:
    """The damage that a metric takes for quality."""
    wrong = [
        f"{name} (SRCC {row['srcc_quality']:+.2f})"
        for name, row in rows.items()
        if name not in (*SENSITIVE, *ROBUST) and row["srcc_quality"] > thresholds.max_robust
    ]
    if not wrong:
        return []
    return [f"not to be trusted where these occur, since it rises with them: {', '.join(wrong)}"]


def _note(name: str, row: Mapping[Any, Any]) -> Sequence[str]:
    """What is missing of a metric's series under one configuration."""
    notes = []
    if not np.isnan(row["srcc"]) and row["num_undefined"]:
        notes.append(f"{name}: undefined for {row['num_undefined']} samples, left out")
    if not np.isnan(row["srcc"]) and row["num_failed"]:
        notes.append(f"{name}: {row['num_failed']} of {row['num_images']} images have no score")
    if name in ROBUST and row["num_constant"]:
        notes.append(f"{name}: constant scores of {row['num_constant']} samples, counted as 0")
    return notes
