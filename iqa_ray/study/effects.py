"""How far scores move along a series, beside how far they move along blurring.

A rank correlation knows no size: cropping a photograph moves most scores a little and steadily,
which makes it as high as that of blurring. The effect tells the two apart. It is our own measure;
Smith et al. (section 3.1.1) have the correlations alone. Pure: tables in, tables out.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from iqa_ray.study.settings import SMALLEST_STUDY
from iqa_ray.study.verdicts import (
    NOISE,
    SENSITIVE,
    SMALLEST_SERIES,
    draw_resamples,
    is_constant,
)


def measure_effects(series: pd.DataFrame, log_metrics: Collection[str]) -> pd.DataFrame:
    """Measure the effect of every configuration on every metric's scores of every sample.

    It is s(configuration) / s(blurring), where s is the standard deviation (ddof 1) of the scores
    that the images of one series have: 0.1 says that the score moves a tenth as far as along
    blurring. Scores of `log_metrics` are compared by their logarithms, since blurring divides them
    by orders of magnitude and its first step would otherwise be all of its spread.

    Exactly constant scores have the effect 0, whatever blurring does. Where blurring leaves the
    scores constant and the configuration does not, the effect is infinite.

    Args:
        series: one row a metric and image: metric, configuration, sample, index, score (NaN
            without).
        log_metrics: those of range (0, ∞). A score of 0 counts as the smallest one above 0.

    Returns:
        One row a metric, configuration and sample: effect in [0, ∞], NaN where the configuration
        or the blurring of the sample has fewer than three images with a score.
    """
    spreads = []
    for metric, group in series.groupby("metric", sort=False):
        scores = group["score"].astype(np.float64)
        if metric in log_metrics and not (scores < 0).any():
            scores = _take_log(scores)
        rescaled = group.assign(rescaled=scores)
        for (configuration, sample), images in rescaled.groupby(
            ["configuration", "sample"], sort=False
        ):
            spreads.append((metric, configuration, sample, _measure_spread(images)))
    columns = ["metric", "configuration", "sample"]
    table = pd.DataFrame(spreads, columns=[*columns, "spread"])
    (baseline,) = SENSITIVE
    blurred = table[table["configuration"] == baseline].set_index(["metric", "sample"])["spread"]
    beside = blurred.reindex(pd.MultiIndex.from_frame(table[["metric", "sample"]])).to_numpy()
    spread = table["spread"].to_numpy(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.where(spread == 0, 0.0, spread / beside)
    return table[columns].assign(effect=effect)


def summarise_effects(
    series: pd.DataFrame, log_metrics: Collection[str], seed: int = 0
) -> pd.DataFrame:
    """The median effect over samples.

    Args:
        series, log_metrics: as `measure_effects` takes them.
        seed: of the bootstrap.

    Returns:
        One row a metric and configuration: effect (median), effect_low and effect_high (95%
        bootstrap interval over samples), num_effects (samples that have one). NaN where fewer than
        two samples have one.
    """
    keys = ["metric", "configuration"]
    rows = []
    for names, group in measure_effects(series, log_metrics).groupby(keys, sort=False):
        values = group["effect"].dropna().to_numpy(np.float64)
        middle = low = high = np.nan
        if len(values) >= SMALLEST_STUDY:
            medians = np.median(values[draw_resamples(len(values), seed)], axis=1)
            # one of the medians each: between a number and infinity there is nothing
            low, high = np.quantile(medians, [0.025, 0.975], method="inverted_cdf")
            middle = np.median(values)
        row = dict(zip(keys, names, strict=True))
        rows.append(
            {
                **row,
                "effect": middle,
                "effect_low": low,
                "effect_high": high,
                "num_effects": len(values),
            }
        )
    return pd.DataFrame(rows)


def _take_log(scores: pd.Series[float]) -> pd.Series[float]:
    """The logarithm of (n,) scores of one metric, NaN without; what is next to 0 is raised."""
    above = scores[scores > NOISE * scores.max()]
    return scores.clip(lower=above.min() if len(above) else 1.0).map(np.log)


def _measure_spread(images: pd.DataFrame) -> float:
    """Of one series: NaN where there are too few scores, 0 exactly where they are constant."""
    scores = images["score"].dropna().to_numpy(np.float64)
    if len(scores) < SMALLEST_SERIES:
        return float("nan")
    return 0.0 if is_constant(scores) else float(images["rescaled"].std(ddof=1))
