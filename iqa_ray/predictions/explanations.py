"""Which parts of an image a classifier's answer rests on, at high and at low quality.

Smith et al. (Figure 4) show explanations of answers on images of low and of high quality. Ours are
occlusion maps (Zeiler and Fergus 2014, section 4.2): a square is covered, and the fall of a class's
log-odds says how much the class owes to what was there. Occlusion needs no layer of a certain kind
and no gradients, so it is the same for every backbone, frozen or not. Grad-CAM (Selvaraju et al.
2017) is quicker, but as coarse as the last layer: 7x7 places for a ResNet at 224 pixels, one at 32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from iqa_ray.images.source import ImageSource
from iqa_ray.predictions.predictor import load_model
from iqa_ray.progress import Progress, log
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.evaluation import compute_log_odds
from iqa_ray.training.pixels import Pixels, load_pixels

if TYPE_CHECKING:
    from iqa_ray.training.backbones import Classifier

Floats = NDArray[np.float64]
Row = Mapping[Any, Any]
Read = TypeVar("Read")

GRID = 10  # squares a side
_SQUARE_CELLS = 2  # side of a square in cells of the grid: it covers half of its neighbours as well
_MAX_PAIRS = 3
_MAX_TRIES = 5  # images that are read for a place in a pair


@dataclass(frozen=True)
class OcclusionMap:
    """What one class owes to the parts of an image.

    Attributes:
        name: of the class.
        log_odds: of the class against all others, in nats, with nothing covered.
        falls: (GRID, GRID) by how much they fall when the square around a place is covered;
            negative where they rise.
    """

    name: str
    log_odds: float
    falls: Floats

    @property
    def probability(self) -> float:
        """That of the class, with nothing covered."""
        return float(special.expit(self.log_odds))


@dataclass(frozen=True)
class Explanation:
    """An image and what the answer owes to its parts.

    Attributes:
        path: of the image.
        scores: by voter.
        pixels: (S, S, 3) uint8 RGB, as the classifier gets them.
        maps: of the answer, and then of the label if it is another class.
    """

    path: str
    scores: Mapping[str, float]
    pixels: Pixels
    maps: Sequence[OcclusionMap]


@dataclass(frozen=True)
class ExplainedPair:
    """Two images of the class `label`: `high` is kept and right, `low` is rejected and wrong."""

    label: str
    high: Explanation
    low: Explanation


def choose_pairs(
    images: pd.DataFrame, read: Callable[[Row], Read | None]
) -> list[tuple[str, Read, Read]]:
    """Choose an image of high and one of low quality for each of a few classes.

    The classes are those with the most images that were rejected and are classified wrongly. Of a
    class the kept and right image of the highest quality is chosen, and the rejected and wrong one
    of the lowest; an image of the same quality with a lower id comes first.

    Args:
        images: one row an image with image_id, label, correct, keep, and quality, higher is better
            (NaN for an unscored image, which is not chosen).
        read: what to return for a row, or None for an image that cannot be used; then the next in
            order is tried, five in all.

    Returns:
        Label, high and low of at most three classes, and of none without both images.
    """
    correct, keep = images["correct"].to_numpy(bool), images["keep"].to_numpy(bool)
    highs = images[keep & correct].sort_values(["quality", "image_id"], ascending=[False, True])
    lows = images[~keep & ~correct & images["quality"].notna().to_numpy()]
    lows = lows.sort_values(["quality", "image_id"])
    counts = lows["label"].value_counts()
    chosen: list[tuple[str, Read, Read]] = []
    for label in sorted(counts.index, key=lambda name: (-counts[name], name)):
        sides = [_read_first(side[side["label"] == label], read) for side in (highs, lows)]
        if sides[0] is not None and sides[1] is not None:
            chosen.append((label, sides[0], sides[1]))
        if len(chosen) == _MAX_PAIRS:
            break
    return chosen


def _read_first(rows: pd.DataFrame, read: Callable[[Row], Read | None]) -> Read | None:
    candidates = rows.head(_MAX_TRIES).to_dict("records")
    return next((found for row in candidates if (found := read(row)) is not None), None)


def explain_pairs(
    workspace: Workspace,
    key: str,
    source: ImageSource,
    images: pd.DataFrame,
    voters: Sequence[str],
) -> list[ExplainedPair]:
    """Explain the answers of the classifier `key` on pairs of images of high and low quality.

    An image that changed since it was predicted, or that cannot be read, is passed over with a
    note.

    Args:
        workspace: keeps the classifier.
        key: of the classifier.
        source: where the images lie.
        images: as `choose_pairs` takes them, with path, predicted, content_hash (of what was
            predicted) and a column of scores for each voter.
        voters: metrics whose scores are shown.

    Raises:
        UnansweredError: the images' object store failed on every try.
    """
    model, classes, image_size = load_model(workspace, key)
    passed_over: list[str] = []

    def read(row: Row) -> tuple[Row, Pixels] | None:
        pixels, hashes = load_pixels(source, [row["path"]], image_size, 1)
        if hashes[0] is not None and hashes[0] == row["content_hash"]:
            return row, pixels[0]
        passed_over.append(row["path"])
        return None

    chosen = choose_pairs(images, read)
    if passed_over:
        log(
            f"explanations: {len(passed_over)} images changed since they were predicted or cannot "
            f"be read, such as {passed_over[0]!r}: others are shown"
        )
    pairs = []
    with Progress(2 * len(chosen), "explain") as progress:
        for label, *sides in chosen:
            explained = []
            for row, pixels in sides:
                names = list(dict.fromkeys([row["predicted"], label]))
                maps = map_occlusion(model, classes, pixels, names)
                scores = {name: row[name] for name in voters}
                explained.append(Explanation(row["path"], scores, pixels, maps))
                progress.update(1)
            pairs.append(ExplainedPair(label, *explained))
    return pairs


def map_occlusion(
    model: Classifier, classes: Sequence[str], pixels: Pixels, names: Sequence[str]
) -> list[OcclusionMap]:
    """Cover each part of an image in turn, and see what that does to some classes.

    The squares are as wide as two of GRID cells, lie around the cells' centres, end at the image's
    border, and have the image's mean colour.

    Args:
        model: the classifier, with an output for each of `classes`.
        classes: the names of its outputs.
        pixels: (S, S, 3) uint8 RGB.
        names: the classes that are asked about.
    """
    from iqa_ray.training.loop import predict_logits

    whole = compute_log_odds(predict_logits(model, pixels[None]))[0]
    cell = len(pixels) / GRID
    margin = (_SQUARE_CELLS - 1) / 2
    starts = np.round((np.arange(GRID) - margin) * cell).astype(int).clip(min=0)
    ends = np.round((np.arange(GRID) + 1 + margin) * cell).astype(int)
    colour = pixels.mean(axis=(0, 1)).round()
    covered = np.empty((GRID, GRID, len(classes)))
    for row in range(GRID):
        copies = np.repeat(pixels[None], GRID, axis=0)
        for column, copy in enumerate(copies):
            copy[starts[row] : ends[row], starts[column] : ends[column]] = colour
        covered[row] = compute_log_odds(predict_logits(model, copies))
    maps = []
    for name in names:
        place = classes.index(name)
        falls = whole[place] - covered[..., place]
        maps.append(OcclusionMap(name, float(whole[place]), falls))
    return maps
