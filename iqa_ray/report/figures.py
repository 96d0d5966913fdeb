"""Figures as PNG bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL_INCHES = (2.2, 1.6)
_DOTS_PER_INCH = 110
_SAMPLE_COLOUR, _MEAN_COLOUR = "#9db4cc", "#12355b"


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DOTS_PER_INCH)
    return stream.getvalue()


def draw_series(series: pd.DataFrame) -> bytes:
    """Draw score against index: a row a metric, a column a configuration, a line a sample.

    Args:
        series: one row a metric and image: metric, configuration, sample, index, score (NaN
            without). The thick line is the mean where every sample has a score.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    metrics = list(series["metric"].unique())
    configurations = list(series["configuration"].unique())
    width, height = _PANEL_INCHES
    figure = Figure(
        (0.6 + width * len(configurations), 0.4 + height * len(metrics)), layout="constrained"
    )
    panels = figure.subplots(len(metrics), len(configurations), squeeze=False)
    for row, metric in enumerate(metrics):
        for column, name in enumerate(configurations):
            panel = panels[row, column]
            chosen = (series["metric"] == metric) & (series["configuration"] == name)
            lines = series[chosen].pivot(index="index", columns="sample", values="score")
            panel.plot(lines.index, lines, color=_SAMPLE_COLOUR, linewidth=0.8)
            mean = lines.dropna().mean(axis=1)
            panel.plot(mean.index, mean, color=_MEAN_COLOUR, linewidth=2)
            if lines.isna().all(axis=None):
                panel.text(0.5, 0.5, "no scores", ha="center", transform=panel.transAxes)
            panel.tick_params(labelsize=7)
            panel.margins(x=0.03)
            if row == 0:
                panel.set_title(name, fontsize=10)
            if column == 0:
                panel.set_ylabel(metric, fontsize=10)
            if row == len(metrics) - 1:
                panel.set_xlabel("index", fontsize=8)
    return to_png(figure)


def draw_shares(summary: pd.DataFrame) -> bytes:
    """Draw accuracy and AUC against the share of removed images, with a band of one deviation.

    Args:
        summary: one row a share: removed_percent, accuracy_mean, accuracy_std, auc_mean, auc_std,
            all means and deviations as shares of 1.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure((8, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, name, title in zip(panels, ("accuracy", "auc"), ("accuracy", "AUC"), strict=True):
        mean, std = 100 * summary[f"{name}_mean"], 100 * summary[f"{name}_std"].fillna(0)
        shares = summary["removed_percent"]
        panel.fill_between(shares, mean - std, mean + std, color=_SAMPLE_COLOUR, alpha=0.4)
        panel.plot(shares, mean, color=_MEAN_COLOUR, linewidth=2, marker="o")
        panel.set_xlabel("lowest quality removed (%)")
        panel.set_ylabel(f"{title} (%)")
    return to_png(figure)
