"""Figures of cut-offs and of what selection buys, as PNG bytes.

Colours are of Okabe and Ito's palette, which colour-blind readers tell apart; what matters differs
in shape or line as well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iqa_ray.report.figures import to_png
from iqa_ray.selection.confidence import Bin
from iqa_ray.selection.coverage import CONFIDENCE, RANDOM, VOTE
from iqa_ray.selection.significance import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_CORRECT, _INCORRECT, _LOW = "#0072B2", "#D55E00", "#e9e9e9"
_INTERVAL = "#9a9a9a"
_METRIC_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7a5c00")
_METRIC_LINES = ("-", "--", "-.")
_MAX_POINTS = 4000  # of all panels together
_MAX_COLUMNS = 4
_PANEL_INCHES = (3.5, 3.9)
_TITLE_CHARACTERS = 46


@dataclass(frozen=True)
class CutoffPanel:
    """What the figure shows of one metric. All scores are in the metric's own units.

    Attributes:
        metric: its name.
        higher_is_better: its direction.
        is_log: whether its scores are drawn on a logarithmic axis (all are above 0 then).
        scores, confidence, correct: (n,) of the judged images; confidence is NaN without one.
        grid, density_correct, density_incorrect: (m,) ascending scores, and the densities of both
            classes there; empty where there are none.
        bins: mean confidence along the score.
        value, interval: the cut-off and its 95% interval; None without.
        reason: why there is no cut-off.
    """

    metric: str
    higher_is_better: bool
    is_log: bool
    scores: Floats
    confidence: Floats
    correct: NDArray[np.bool_]
    grid: Floats
    density_correct: Floats
    density_incorrect: Floats
    bins: Sequence[Bin] = ()
    value: float | None = None
    interval: tuple[float, float] | None = None
    reason: str | None = None


def draw_cutoffs(panels: Sequence[CutoffPanel]) -> bytes:
    """Draw Figure 3 of Smith et al.: score and confidence of each image, and both densities.

    The side of each cut-off where images are low is grey. At most some thousands of images are
    drawn, chosen at random.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    rows = -(-len(panels) // _MAX_COLUMNS)
    columns = -(-len(panels) // rows)
    width, height = _PANEL_INCHES
    figure = Figure((max(width * columns, 6.4) + 0.3, height * rows + 0.6), layout="constrained")
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[1.5, 1] * rows)
    num_points = max(_MAX_POINTS // len(panels), 200)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        scatter = figure.add_subplot(grid[2 * row, column])
        curves = figure.add_subplot(grid[2 * row + 1, column], sharex=scatter)
        _draw_scatter(scatter, panel, num_points)
        _draw_densities(curves, panel)
        _set_scores(curves, panel)
        for axes in (scatter, curves):
            _mark_cutoff(axes, panel)
            axes.tick_params(labelsize=8)
        scatter.tick_params(labelbottom=False)
        if column == 0:
            scatter.set_ylabel("confidence", fontsize=9)
            curves.set_ylabel("density", fontsize=9)
    _add_legend(figure)
    return to_png(figure)


def _draw_scatter(axes: Axes, panel: CutoffPanel, num_points: int) -> None:
    axes.set_title(_title(panel), fontsize=8.5, loc="left")
    axes.set_ylim(-0.04, 1.04)
    known = np.flatnonzero(~np.isnan(panel.confidence))
    if not len(known):
        axes.text(0.5, 0.5, "no confidence given", ha="center", transform=axes.transAxes)
        axes.set_yticks([])
        return
    drawn = np.random.default_rng(0).permutation(known)[:num_points]
    size = 14 if len(drawn) <= 500 else 8
    for is_right, colour, marker in ((True, _CORRECT, "o"), (False, _INCORRECT, "x")):
        rows = drawn[panel.correct[drawn] == is_right]
        style: dict[str, Any] = {"linewidths": 0} if is_right else {"linewidths": 0.8}
        axes.scatter(
            panel.scores[rows], panel.confidence[rows], s=size, c=colour, marker=marker,
            alpha=0.45 if is_right else 0.65, **style,
        )  # fmt: skip
    middles = [part.score_median for part in panel.bins]
    means = [part.confidence for part in panel.bins]
    axes.plot(middles, means, color="white", linewidth=3.2)
    axes.plot(middles, means, color="black", linewidth=1.5, marker="o", markersize=3.5)


def _draw_densities(axes: Axes, panel: CutoffPanel) -> None:
    axes.set_yticks([])
    if not len(panel.grid):
        axes.text(0.5, 0.5, "no densities", ha="center", va="center", transform=axes.transAxes)
        return
    for density, colour, line in (
        (panel.density_correct, _CORRECT, "-"),
        (panel.density_incorrect, _INCORRECT, "--"),
    ):
        axes.plot(panel.grid, density, color=colour, linewidth=1.6, linestyle=line)
        axes.fill_between(panel.grid, density, color=colour, alpha=0.12, linewidth=0)
    axes.set_ylim(bottom=0)


def _set_scores(axes: Axes, panel: CutoffPanel) -> None:
    """The axis of scores: scale, ends, ticks and label."""
    from matplotlib import ticker

    low, high = _choose_ends(panel)
    num_outside = int(((panel.scores < low) | (panel.scores > high)).sum())
    outside = f"; {num_outside:,} images lie outside" if num_outside else ""
    better = "higher" if panel.higher_is_better else "lower"
    axes.set_xlabel(f"{panel.metric} ({better} is better{outside})", fontsize=9)
    if panel.is_log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        decades = np.log10(high / low)
        if decades < 0.7:
            axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        else:
            digits = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=digits))
    else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.set_xlim(low, high)


def _choose_ends(panel: CutoffPanel) -> tuple[float, float]:
    """From the least score to the greatest, less outliers that would squeeze all others."""
    scores = np.log(panel.scores) if panel.is_log else panel.scores
    first, last = np.quantile(scores, [0.005, 0.995])
    reach = 0.3 * (last - first)
    low, high = max(scores.min(), first - reach), min(scores.max(), last + reach)
    for mark in (panel.value, *(panel.interval or ())):
        if mark is not None:
            place = np.log(mark) if panel.is_log else mark
            low, high = min(low, place), max(high, place)
    margin = 0.06 * (high - low) or 0.5
    ends = np.array([low - margin, high + margin])
    low, high = np.exp(ends) if panel.is_log else ends
    return float(low), float(high)


def _mark_cutoff(axes: Axes, panel: CutoffPanel) -> None:
    if panel.value is None:
        return
    low, high = axes.get_xlim()
    worst = low if panel.higher_is_better else high
    axes.axvspan(worst, panel.value, color=_LOW, linewidth=0, zorder=-2)
    if panel.interval:
        axes.axvspan(*panel.interval, color=_INTERVAL, alpha=0.45, linewidth=0, zorder=-1)
    axes.axvline(panel.value, color="black", linewidth=1.3, linestyle=(0, (4, 2)))
    axes.set_xlim(low, high)


def _title(panel: CutoffPanel) -> str:
    if panel.value is None:
        text = f"{panel.metric}: no cut-off" + (f": {panel.reason}" if panel.reason else "")
    else:
        text = f"{panel.metric}: cut-off {panel.value:.4g}"
        if panel.interval:
            text += " ({:.4g} … {:.4g})".format(*panel.interval)
    return textwrap.fill(text, _TITLE_CHARACTERS, max_lines=2, placeholder=" …")


def _add_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=_CORRECT, marker="o", markersize=5, label="correct"),
        Line2D([], [], color=_INCORRECT, marker="x", linestyle="--", label="incorrect"),
        Line2D([], [], color="black", marker="o", markersize=4, label="mean confidence"),
        Line2D([], [], color="black", linestyle=(0, (4, 2)), label="cut-off"),
        Patch(color=_INTERVAL, alpha=0.45, label="its 95% interval"),
        Patch(color=_LOW, label="called low"),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False,
        columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip


def draw_coverage(
    curves: pd.DataFrame, areas: Mapping[str, float], kept: tuple[float, float] | None = None
) -> bytes:
    """Draw accuracy against the share of images that is kept, a line a voter.

    Args:
        curves: the rows of `risk_coverage.parquet`.
        areas: AUGRC by voter.
        kept: share and accuracy of the images that the selection keeps, marked as a point.

    Returns:
        A PNG file. The legend names the voters from the smallest area, the best, to the largest.
    """
    from matplotlib.figure import Figure

    figure = Figure((7.6, 4.2), layout="constrained")
    axes = figure.subplots()
    metrics = [voter for voter in areas if voter not in (VOTE, CONFIDENCE, RANDOM)]
    for voter in sorted(areas, key=lambda name: areas[name]):
        rows = curves[curves["voter"] == voter]
        share = 100 * rows["coverage"]
        style = _style_voter(voter, metrics)
        axes.plot(share, 100 * rows["accuracy"], label=f"{voter}  {areas[voter]:.4f}", **style)
        if voter == VOTE:
            low, high = 100 * rows["accuracy_low"], 100 * rows["accuracy_high"]
            axes.fill_between(share, low, high, color="black", alpha=0.12, linewidth=0)
    if kept is not None:
        axes.plot(
            100 * kept[0], 100 * kept[1], color="black", marker="D", markersize=8, linestyle="",
            markeredgecolor="white", zorder=5, label="the selection",
        )  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_ylim(*_choose_accuracies(curves, kept))
    axes.set_xlabel("share of images kept, best first (%)")
    axes.set_ylabel("accuracy on kept images (%)")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        loc="outside right upper", fontsize=9, frameon=False, title="AUGRC (lower is better)",
        title_fontsize=9, alignment="left",
    )  # fmt: skip
    return to_png(figure)


def _style_voter(voter: str, metrics: Sequence[str]) -> dict[str, Any]:
    if voter == VOTE:
        return {"color": "black", "linewidth": 2.6, "zorder": 4}
    if voter == CONFIDENCE:
        return {"color": "#555555", "linewidth": 1.6, "linestyle": (0, (5, 1.5))}
    if voter == RANDOM:
        return {"color": "#888888", "linewidth": 1.6, "linestyle": ":"}
    place = metrics.index(voter)
    line = _METRIC_LINES[place // len(_METRIC_COLOURS) % len(_METRIC_LINES)]
    colour = _METRIC_COLOURS[place % len(_METRIC_COLOURS)]
    return {"color": colour, "linewidth": 1.6, "linestyle": line}


def _choose_accuracies(
    curves: pd.DataFrame, kept: tuple[float, float] | None
) -> tuple[float, float]:
    """Ends of the axis: the first few images of a curve are right or wrong by chance."""
    steady = curves.loc[curves["coverage"] >= 0.05, "accuracy"].tolist()
    steady += [kept[1]] if kept else []
    low, high = 100 * min(steady), 100 * max(steady)
    margin = max(0.08 * (high - low), 1.0)
    return max(low - margin, 0.0), min(high + margin, 100.5)
