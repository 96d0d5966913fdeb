"""The heat map of distances in a network's layers, as PNG bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from iqa_ray.layers.tables import ALL
from iqa_ray.report.figures import to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_INCHES, _LAYER_INCHES = 1.7, 0.115
_MIN_HEIGHT_INCHES = 1.6
_MAX_NAMES = 70  # more would overlap
_MIN_TOP = 1e-3  # of a scale, for distances that are all 0
_COLOURS = "viridis"  # one that colour-blind readers, and grey prints, keep in order
_MEASURES = {"distance": "L2 distance / norm", "dissimilarity": "1 − CKA"}


def draw_layers(table: pd.DataFrame) -> bytes:
    """Draw layer by level with dropout inactive: a row a measure, a panel a distortion.

    The first layer is at the top. All panels of a row share a scale.

    Args:
        table: the rows of LAYERS_SCHEMA.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    rows = table[~table["dropout"] & (table["distortion"] != ALL)]
    rows = rows.assign(dissimilarity=1 - rows["cka"])
    distortions = list(rows["distortion"].unique())
    layers = list(rows["layer"].unique())
    height = max(_LAYER_INCHES * len(layers), _MIN_HEIGHT_INCHES)
    figure = Figure(
        (2.6 + _PANEL_INCHES * len(distortions), 2 * height + 1.2), layout="constrained"
    )
    panels = figure.subplots(2, len(distortions), squeeze=False, sharex=True, sharey=True)
    for line, (measure, title) in zip(panels, _MEASURES.items(), strict=True):
        _draw_line(figure, list(line), rows, measure, title)
        line[0].set_ylabel("layer, in the order in which they run", fontsize=8)
    for panel, name in zip(panels[0], distortions, strict=True):
        panel.set_title(name, fontsize=9)
    for panel in panels[1]:
        panel.set_xlabel("level", fontsize=8)
    step = -(-len(layers) // _MAX_NAMES)
    names = [_cut(name) for name in layers[::step]]
    for panel in panels[:, 0]:
        panel.set_yticks(range(0, len(layers), step), names, fontsize=5.5)
    return to_png(figure)


def _draw_line(
    figure: Figure, panels: list[Axes], rows: pd.DataFrame, measure: str, title: str
) -> None:
    from matplotlib.colors import PowerNorm

    # square roots: else the strongest distortion would leave all others in one colour
    norm = PowerNorm(0.5, 0, np.nanmax([*rows[measure], _MIN_TOP]), clip=True)
    for panel, (_, group) in zip(panels, rows.groupby("distortion", sort=False), strict=True):
        cells = group.pivot(index="depth", columns="level", values=measure)
        image = panel.imshow(
            cells.to_numpy(np.float64), aspect="auto", cmap=_COLOURS, norm=norm,
            interpolation="nearest",
        )  # fmt: skip
        panel.set_xticks(range(cells.shape[1]), [str(level) for level in cells.columns])
        panel.tick_params(labelsize=7)
    bar = figure.colorbar(image, ax=panels, fraction=0.05)
    bar.set_label(title, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def _cut(name: str, width: int = 34) -> str:
    """The end of a long name, which says more than its beginning."""
    return name if len(name) <= width else "…" + name[1 - width :]
