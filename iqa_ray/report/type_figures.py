"""The figure of a training on distortion types, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from iqa_ray.report.figures import to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRAINING, _VALIDATION = "#D55E00", "#0072B2"


def draw_training(runs: Sequence[Mapping[str, Any]], best: int) -> bytes:
    """Draw accuracies and losses along the epochs, and the confusions of one run on test images.

    Args:
        runs: a row a seed as in `training.json`: seed, best_epoch, history, test.
        best: the place of the run whose model is kept; its confusions are drawn.

    Returns:
        A PNG file: Figures 4 to 7 of Elaraby et al.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
    for axes, name in ((left, "accuracy"), (middle, "loss")):
        _draw_curves(axes, runs, name)
    _draw_confusions(right, runs[best])
    return to_png(figure)


def _draw_curves(axes: Axes, runs: Sequence[Mapping[str, Any]], name: str) -> None:
    for place, run in enumerate(runs):
        epochs = [row["epoch"] for row in run["history"]]
        for key, label, colour, style in (
            (name, "training", _TRAINING, "--"),
            (f"validation_{name}", "validation", _VALIDATION, "-"),
        ):
            values = [row[key] for row in run["history"]]
            axes.plot(epochs, values, style, color=colour, label=None if place else label)
    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    if name == "accuracy":
        axes.set_ylim(0, 1)
    axes.set_title(f"{name}, {len(runs)} seeds" if len(runs) > 1 else name)
    axes.legend(frameon=False)


def _draw_confusions(axes: Axes, run: Mapping[str, Any]) -> None:
    """Shares of each true class, by row, with the numbers of images in the cells."""
    counts = np.array(run["test"]["confusion"])
    names = [entry["name"] for entry in run["test"]["classes"]]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("named")
    axes.set_ylabel("true")
    axes.set_title(f"test images, seed {run['seed']}: accuracy {run['test']['accuracy']:.1%}")
