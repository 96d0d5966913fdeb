"""The figure of what a classifier's answers rest on, as PNG bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from iqa_ray.predictions.explanations import ExplainedPair, Explanation, OcclusionMap
from iqa_ray.report.figures import to_png
from iqa_ray.training.pixels import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# of Okabe and Ito's palette, which colour-blind readers tell apart
_FOR, _AGAINST = "#D55E00", "#0072B2"
_OPACITY = 0.8  # of the colour where a map is strongest
_MIN_STRENGTH = 0.25  # nats; a map that is weaker everywhere stays pale
# all in inches
_PANEL, _GAP, _GROUP_GAP = 2.1, 0.14, 0.4
_LEFT, _HEAD, _TITLE, _FOOT = 0.4, 0.4, 0.62, 0.5
_LEFT_EDGES = (
    _LEFT,
    _LEFT + _PANEL + _GAP,
    _LEFT + 2 * _PANEL + _GAP + _GROUP_GAP,
    _LEFT + 3 * _PANEL + 2 * _GAP + _GROUP_GAP,
    _LEFT + 4 * _PANEL + 3 * _GAP + _GROUP_GAP,
)
_TITLE_CHARACTERS = 36
_LABEL_CHARACTERS = 22


def draw_explanations(pairs: Sequence[ExplainedPair]) -> bytes:
    """Draw images of high and of low quality with their occlusion maps (Smith et al., Figure 4).

    A row is a class: the image that was kept and its map for the right answer, then the one that
    was rejected, with its maps for the wrong answer and for the right one.

    Returns:
        A PNG file.
    """
    from matplotlib.figure import Figure

    width = _LEFT_EDGES[-1] + _PANEL + _GAP
    height = _HEAD + (_TITLE + _PANEL) * len(pairs) + _FOOT
    figure = Figure((width, height))
    for row, pair in enumerate(pairs):
        bottom = height - _HEAD - (_TITLE + _PANEL) * (row + 1)
        axes = [
            figure.add_axes((left / width, bottom / height, _PANEL / width, _PANEL / height))
            for left in _LEFT_EDGES
        ]
        axes[0].set_ylabel(_cut(pair.label, _LABEL_CHARACTERS), fontsize=11, parse_math=False)
        _draw_image(axes[0], pair.high)
        _draw_image(axes[2], pair.low)
        for panel, explanation, drawn in (
            (axes[1], pair.high, pair.high.maps[0]),
            (axes[3], pair.low, pair.low.maps[0]),
            (axes[4], pair.low, pair.low.maps[1]),
        ):
            _draw_map(panel, explanation.pixels, drawn, pair.label)
    _add_heads(figure)
    _add_legend(figure)
    return to_png(figure)


def _draw_image(axes: Axes, explanation: Explanation) -> None:
    axes.imshow(explanation.pixels)
    answer = explanation.maps[0]
    scores = ", ".join(f"{name} {score:.4g}" for name, score in explanation.scores.items())
    lines = [
        _cut(os.path.basename(explanation.path), _TITLE_CHARACTERS),
        _cut(scores, _TITLE_CHARACTERS),
        f"answer {_cut(answer.name, _LABEL_CHARACTERS)}, {_percent(answer.probability)}",
    ]
    _finish(axes, lines)


def _draw_map(axes: Axes, pixels: Pixels, drawn: OcclusionMap, label: str) -> None:
    axes.imshow(blend(pixels, drawn.falls))
    kind = "right" if drawn.name == label else "wrong"
    lowest = drawn.log_odds - drawn.falls.max()
    lines = [
        f"for {_cut(drawn.name, _LABEL_CHARACTERS)} ({kind})",
        f"{_percent(drawn.probability)}, log-odds {_signed(drawn.log_odds)} → {_signed(lowest)}",
    ]
    _finish(axes, lines)


def blend(pixels: Pixels, falls: NDArray[np.float64]) -> NDArray[np.float64]:
    """A grey copy of an image, coloured where a class owes something to it or would rather not.

    Args:
        pixels: (S, S, 3) uint8 RGB.
        falls: (G, G), as in an `OcclusionMap`.

    Returns:
        (S, S, 3) RGB in [0, 1].
    """
    from matplotlib.colors import to_rgb

    size = pixels.shape[1::-1]
    strength = falls / max(np.abs(falls).max(), _MIN_STRENGTH)
    spread = Image.fromarray(strength.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    share = np.asarray(spread, np.float64)[..., None]
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)[..., None] / 255
    colour = np.where(share > 0, to_rgb(_FOR), to_rgb(_AGAINST))
    opacity = _OPACITY * np.abs(share)
    return np.asarray((1 - opacity) * grey + opacity * colour)


def _finish(axes: Axes, lines: Sequence[str]) -> None:
    axes.set_title("\n".join(lines), fontsize=8, loc="left", pad=4, parse_math=False)
    axes.set_xticks([])
    axes.set_yticks([])


def _add_heads(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    for left, text in (
        (_LEFT_EDGES[0], "High quality: kept, classified rightly"),
        (_LEFT_EDGES[2], "Low quality: rejected, classified wrongly"),
    ):
        figure.text(left / width, 1 - 0.12 / height, text, fontsize=12, weight="bold", va="top")


def _add_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    style: dict[str, Any] = {"fontsize": 9, "frameon": False, "handlelength": 1.2}
    handles = [
        Patch(color=_FOR, label="for the class: covered, its log-odds fall"),
        Patch(color=_AGAINST, label="against it: covered, they rise"),
        Patch(alpha=0, label="a → b: log-odds, and the least with a square covered"),
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, **style)


def _percent(share: float) -> str:
    """A probability, which is written as 0% or 100% only where it is that."""
    if 0 < share < 0.01:
        return "<1%"
    if 0.99 < share < 1:
        return ">99%"
    return f"{share:.0%}"


def _signed(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")


def _cut(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
