"""Figures of label smoothing as PNG bytes: Figures 3 and 4 of Chen et al., reliability diagrams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iqa_ray.report.figures import to_png

_LEVELS = ("pristine", "level 1", "level 2", "level 3")
_KINDS = {"blur": "MIX_blur", "noise": "MIX_noise", "jpeg": "MIX_JPEG"}
_METHOD_COLOURS = {
    "Original": "#2b6cb0",
    "IQA-LS": "#c0392b",
    "uniform": "#7f8c8d",
    "shuffled": "#b7950b",
}
_KIND_LINES = {"blur": "-", "noise": "--", "jpeg": ":"}
_BASE_COLOUR = "black"


def draw_accuracies(table: pd.DataFrame) -> bytes:
    """Draw accuracy against level, as Figure 3: a panel for each kind alone, one for MIX_all3.

    Args:
        table: strategy, method, training_set, test_set, accuracy_mean; strategy 1 is in each panel
            of a kind, dashed.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure((13, 3.4), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    for panel, (kind, training_set) in zip(panels, _KINDS.items(), strict=False):
        for key, group in _select(table, ("Pristine", training_set)):
            is_base = key[2] == "Pristine"
            panel.plot(
                _LEVELS, _read_levels(group, kind), label=f"S. {key[0]} {key[1]}", marker="o",
                markersize=3, **_style(key[1], is_base),
            )  # fmt: skip
        panel.set_title(f"trained on {training_set}, tested on {kind}", fontsize=9)
    for key, group in _select(table, ("MIX_all3",)):
        for kind, line in _KIND_LINES.items():
            panels[3].plot(
                _LEVELS, _read_levels(group, kind), linestyle=line, marker="o", markersize=3,
                color=_colour(key[1]), label=f"S. {key[0]} {key[1]} - {kind}",
            )  # fmt: skip
    panels[3].set_title("trained on MIX_all3", fontsize=9)
    for panel in panels:
        panel.tick_params(labelsize=7)
        if panel.lines:
            panel.legend(fontsize=6)
    panels[0].set_ylabel("accuracy")
    return to_png(figure)


def draw_confidences(confidence: pd.DataFrame, pixels: NDArray[np.uint8]) -> bytes:
    """Draw the probability of the true class against the level of a few images, as Figure 4.

    A row an image, a column a kind, with strategy 1 and those trained on that kind's mix.

    Args:
        confidence: image_id, label, strategy, method, training_set, test_set, confidence.
        pixels: (m, V, H, W, 3) uint8 RGB of the m images, in the order of their appearance.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    images = list(confidence.groupby("image_id", sort=False))
    figure = Figure((12, 2.1 * len(images)), layout="constrained")
    panels = figure.subplots(len(images), 6, squeeze=False, width_ratios=[1, 1.4] * 3)
    for row, (_, of_image) in enumerate(images):
        for column, (kind, training_set) in enumerate(_KINDS.items()):
            shown, panel = panels[row, 2 * column], panels[row, 2 * column + 1]
            places = [0, *range(1 + 3 * column, 4 + 3 * column)]
            shown.imshow(_tile([pixels[row, place] for place in places]))
            shown.set_axis_off()
            shown.set_title(f"{of_image['label'].iloc[0]}, {kind}", fontsize=8)
            for key, group in _select(of_image, ("Pristine", training_set)):
                is_base = key[2] == "Pristine"
                panel.plot(
                    range(4), _read_levels(group, kind, "confidence"), marker="o", markersize=3,
                    label=f"S. {key[0]} {key[1]}", **_style(key[1], is_base),
                )  # fmt: skip
            panel.set_ylim(0, 1.02)
            panel.set_xticks(range(4))
            panel.tick_params(labelsize=7)
            if row == 0:
                panel.set_title("probability of the true class", fontsize=8)
                if panel.lines:
                    panel.legend(fontsize=6)
            if row == len(images) - 1:
                panel.set_xlabel("level", fontsize=8)
    return to_png(figure)


def draw_reliability(reliability: pd.DataFrame) -> bytes:
    """Draw accuracy against confidence: a panel a strategy, pristine and distorted test sets.

    Args:
        reliability: strategy, method, training_set, test_set, bin, num_images, confidence,
            accuracy.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    groups = list(reliability.groupby(["strategy", "method", "training_set"], sort=False))
    num_columns = min(5, len(groups))
    num_rows = -(-len(groups) // num_columns)
    figure = Figure((2.6 * num_columns, 2.7 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    for panel in panels.ravel()[len(groups) :]:
        panel.set_axis_off()
    for panel, (key, group) in zip(panels.ravel(), groups, strict=False):
        panel.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
        is_pristine = group["test_set"] == "pristine"
        for rows, name, colour in (
            (group[is_pristine], "pristine", "#2b6cb0"),
            (group[~is_pristine], "distorted", "#c0392b"),
        ):
            points = _pool_bins(rows)
            panel.plot(
                points["confidence"], points["accuracy"], marker="o", markersize=3, color=colour,
                label=name,
            )  # fmt: skip
        panel.set_title(f"S. {key[0]} {key[1]}\n{key[2]}", fontsize=8)
        panel.tick_params(labelsize=7)
    panels[0, 0].legend(fontsize=7)
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    return to_png(figure)


def _pool_bins(rows: pd.DataFrame) -> pd.DataFrame:
    """The bins of several test sets as one: means over their images."""
    weighted = rows[["confidence", "accuracy"]].mul(rows["num_images"], axis=0)
    sums = weighted.assign(num_images=rows["num_images"], bin=rows["bin"]).groupby("bin").sum()
    return sums[["confidence", "accuracy"]].div(sums["num_images"], axis=0)


def _select(table: pd.DataFrame, training_sets: Sequence[str]) -> list[tuple[Any, pd.DataFrame]]:
    chosen = table[table["training_set"].isin(training_sets)]
    return list(chosen.groupby(["strategy", "method", "training_set"], sort=False))


def _read_levels(group: pd.DataFrame, kind: str, column: str = "accuracy_mean") -> list[float]:
    """The values of the pristine test set and of the three levels of a kind."""
    values = group.set_index("test_set")[column]
    return [float(values[name]) for name in ("pristine", *(f"{kind}-{n}" for n in (1, 2, 3)))]


def _colour(method: str) -> str:
    return _METHOD_COLOURS[method.partition(" ")[0]]


def _style(method: str, is_base: bool) -> dict[str, str]:
    """Strategy 1 is dashed, and what follows another score than SSIM dotted."""
    if is_base:
        return {"color": _BASE_COLOUR, "linestyle": "--"}
    follows_ssim = method.endswith((" ssim", "Original"))
    return {"color": _colour(method), "linestyle": "-" if follows_ssim else ":"}


def _tile(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Four images as a square."""
    first, second = np.hstack(images[:2]), np.hstack(images[2:])
    return np.vstack([first, second])
