"""How sure labels are by quality: what arms that keep every image make of the voters' scores."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iqa_ray.errors import UsageError
from iqa_ray.experiments.splits import SMOOTHED, WEIGHTED
from iqa_ray.progress import log
from iqa_ray.scoring.tables import ListedScores, find_spec
from iqa_ray.selection.calibration import fit_accuracy
from iqa_ray.selection.judged import read_folds, read_judged
from iqa_ray.storage.workspace import Workspace
from iqa_ray.training.rows import AS_THEY_ARE, RowPlan

if TYPE_CHECKING:  # its module imports this one
    from iqa_ray.experiments.arms import Candidates

CERTAINTY = "certainty"


def add_certainties(workspace: Workspace, candidates: Candidates) -> Candidates:
    """Candidates with the column `certainty`: how often a classifier is right at their quality.

    For each voting metric, the accuracy against its score is fitted by isotonic regression on the
    judged images, those that the cut-offs come from; the certainty is the mean over the metrics.
    NaN for an image that lacks a score.

    Raises:
        UsageError: there are no judged images, or of scores of another version of a metric.
    """
    origin = Workspace(read_folds(workspace)[1])
    scores = ListedScores(origin)
    judged = read_judged(origin, scores)
    frame, found = candidates.frame, []
    for name in candidates.metrics:
        spec = find_spec(workspace, name)
        if find_spec(origin, name).version != spec.version:
            raise UsageError(
                f"the {name} scores of {origin}, whose predictions say how often a classifier is "
                f"right, are of another version: score both with one version of {name}"
            )
        rows = scores.read(name).select(["image_id", "content_hash", "score"]).to_pandas()
        pairs = judged.merge(rows.dropna(), on=["image_id", "content_hash"])
        if pairs.empty:
            raise UsageError(
                f"{origin} has no judged image with a {name} score: run `iqa-ray predict "
                f"--workspace {origin}` again"
            )
        own = pairs["score"].to_numpy(np.float64)
        curve = fit_accuracy(own, pairs["correct"].to_numpy(bool), spec.higher_is_better)
        values = frame[name].to_numpy(np.float64)
        found.append(np.where(np.isnan(values), np.nan, curve(values)))
    certainties = np.mean(found, axis=0)
    known = certainties[~np.isnan(certainties)]
    log(
        f"certainty by quality: {known.min():.3f} to {known.max():.3f}, mean {known.mean():.3f}, "
        f"from {len(judged):,} judged images"
    )
    return replace(candidates, frame=frame.assign(**{CERTAINTY: certainties}))


def plan_arm(arm: str, pool: pd.DataFrame, train: NDArray[np.int64], num_classes: int) -> RowPlan:
    """How an arm treats its training images.

    Args:
        arm: its name. `smoothed` makes labels as sure as `certainty`, but at least as chance, and
            `weighted` multiplies losses by it, its mean over the arm being 1.
        pool: of all images, with the column `certainty`.
        train: places of the arm's training images in the pool.
        num_classes: of the comparison.
    """
    if arm not in (SMOOTHED, WEIGHTED):
        return AS_THEY_ARE
    # images that are only tested may lack scores; theirs are not used
    values = pool[CERTAINTY].fillna(1.0).to_numpy(np.float64)
    if arm == SMOOTHED:
        return RowPlan(certainties=np.maximum(values, 1 / num_classes).astype(np.float32))
    return RowPlan(weights=(values / values[train].mean()).astype(np.float32))
