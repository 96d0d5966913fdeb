"""What cut-offs and selection rest on, as tables and figures beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from iqa_ray.images.source import ImageSource
from iqa_ray.predictions.explanations import explain_pairs
from iqa_ray.predictions.predictor import model_file
from iqa_ray.predictions.table import PREDICTIONS_FILE
from iqa_ray.progress import log
from iqa_ray.report.explanation_figures import draw_explanations
from iqa_ray.report.selection_figures import CutoffPanel, draw_coverage, draw_cutoffs
from iqa_ray.scoring.tables import ListedScores, find_spec, scored_metrics
from iqa_ray.selection.confidence import Relation, relate_confidence
from iqa_ray.selection.coverage import (
    CONFIDENCE,
    RISK_COVERAGE_SCHEMA,
    VOTE,
    order_by_votes,
    trace_coverage,
)
from iqa_ray.selection.cutoffs import Cutoff, tabulate_densities
from iqa_ray.selection.fitting import FittedCutoffs
from iqa_ray.selection.settings import Weighting
from iqa_ray.selection.significance import Floats
from iqa_ray.storage.files import delete_file, write_bytes
from iqa_ray.storage.workspace import Workspace

CONFIDENCE_FILE = "confidence.json"
CUTOFFS_FIGURE = "cutoffs.png"
RISK_COVERAGE_FILE = "risk_coverage.parquet"
RISK_COVERAGE_FIGURE = "risk_coverage.png"
EXPLANATIONS_FIGURE = "explanations.png"


def write_confidence(
    workspace: Workspace, fitted: FittedCutoffs, weighting: Weighting = "equal"
) -> dict[str, Relation]:
    """Write `confidence.json` and `cutoffs.png`: how scores, confidence and mistakes go together.

    They are of the metrics with scores and of the judged images that cut-offs were fitted on.
    Without such images there is neither file, and those of before are removed. With the weighting
    `prior` densities are drawn as high as their classes are large, as they were compared.

    Returns:
        The relation of scores and confidence of each metric, as the file has it.
    """
    relations, panels = {}, []
    scored = [name for name in scored_metrics(workspace) if name in fitted.cutoffs]
    scores = ListedScores(workspace) if scored and not fitted.judged.empty else None
    for name in scored if scores else ():
        assert scores is not None
        rows = scores.read(name).select(["image_id", "content_hash", "score"]).to_pandas()
        judged = fitted.judged[["image_id", "content_hash", "correct", "confidence"]].merge(
            rows.dropna(), on=["image_id", "content_hash"]
        )
        if judged.empty:
            continue
        values, confidence = (judged[column].to_numpy(float) for column in ("score", "confidence"))
        correct = judged["correct"].to_numpy(bool)
        spec = find_spec(workspace, name)
        relations[name] = relate_confidence(values, confidence, correct, spec.higher_is_better)
        cutoff = fitted.cutoffs[name]
        densities = _tabulate(values, correct, cutoff, spec.range, weighting)
        panels.append(_make_panel(name, cutoff, judged, densities, relations[name]))
    if not panels:
        _remove(workspace, CONFIDENCE_FILE, CUTOFFS_FIGURE)
        return {}
    content = {name: asdict(relation) for name, relation in relations.items()}
    workspace.write_json(CONFIDENCE_FILE, content)
    write_bytes(workspace.location / CUTOFFS_FIGURE, draw_cutoffs(panels))
    return relations


def _tabulate(
    scores: Floats,
    correct: NDArray[np.bool_],
    cutoff: Cutoff,
    value_range: tuple[float, float],
    weighting: Weighting,
) -> tuple[Floats, Floats, Floats]:
    """Scores, and the two densities there; empty for a cut-off that no densities gave."""
    if cutoff.bandwidths is None:
        return np.empty(0), np.empty(0), np.empty(0)
    grid, right, wrong = tabulate_densities(scores, correct, cutoff, value_range)
    if weighting == "prior":
        return grid, right * correct.mean(), wrong * (1 - correct.mean())
    return grid, right, wrong


def _make_panel(
    name: str,
    cutoff: Cutoff,
    judged: pd.DataFrame,
    densities: tuple[Floats, Floats, Floats],
    relation: Relation,
) -> CutoffPanel:
    scores = judged["score"].to_numpy(float)
    is_log = cutoff.scale == "log"
    if is_log:  # 0 has no place on such an axis
        scores = np.maximum(scores, scores[scores > 0].min())
    grid, density_correct, density_incorrect = densities
    return CutoffPanel(
        metric=name,
        higher_is_better=cutoff.higher_is_better,
        is_log=is_log,
        scores=scores,
        confidence=judged["confidence"].to_numpy(float),
        correct=judged["correct"].to_numpy(bool),
        grid=grid,
        density_correct=density_correct,
        density_incorrect=density_incorrect,
        bins=relation.bins,
        value=cutoff.value,
        interval=cutoff.ci,
        reason=cutoff.reason,
    )


def write_coverage(
    workspace: Workspace, scores: ListedScores, judged: pd.DataFrame, ranks: Floats
) -> dict[str, float]:
    """Write `risk_coverage.parquet` and `.png`: accuracy against the share of images kept.

    There is a curve of each metric with scores, of the vote (see `order_by_votes`), of the
    confidence if there is any, and of an order at random. Without judged images there are none,
    and those of before are removed.

    Args:
        scores: of the listed images.
        judged: the judged images of their present content: correct, confidence, num_low, keep, and
            row, the place of each among the listed ones.
        ranks: of the listed images, as `rank_images` gives them.

    Returns:
        AUGRC by voter; empty without judged images.
    """
    if judged.empty:
        _remove(workspace, RISK_COVERAGE_FILE, RISK_COVERAGE_FIGURE)
        return {}
    places, correct = judged["row"].to_numpy(), judged["correct"].to_numpy(bool)
    qualities = {}
    for name in scored_metrics(workspace):
        sign = 1.0 if find_spec(workspace, name).higher_is_better else -1.0
        qualities[name] = sign * scores.read(name).column("score").to_numpy()[places]
    qualities[VOTE] = order_by_votes(judged["num_low"].to_numpy(), ranks[places], len(ranks))
    if judged["confidence"].notna().any():
        qualities[CONFIDENCE] = judged["confidence"].to_numpy(float)
    curves, areas = trace_coverage(qualities, correct)
    keep = judged["keep"].to_numpy(bool)
    kept = (float(keep.mean()), float(correct[keep].mean())) if keep.any() else None
    workspace.write_frame(RISK_COVERAGE_FILE, curves, RISK_COVERAGE_SCHEMA)
    write_bytes(workspace.location / RISK_COVERAGE_FIGURE, draw_coverage(curves, areas, kept))
    return areas


def write_explanations(
    workspace: Workspace,
    scores: ListedScores,
    judged: pd.DataFrame,
    ranks: Floats,
    voters: Sequence[str],
) -> int:
    """Write `explanations.png`: what answers rest on, at high and at low quality.

    Where there is nothing to show, a note says why.

    Args:
        scores, judged, ranks: as `write_coverage` takes them; judged with the selection's columns.
        voters: metrics whose scores are shown.

    Returns:
        The number of classes that it shows.
    """
    key = (workspace.read_record(PREDICTIONS_FILE) or {}).get("model")
    if key is None or not workspace.has(model_file(key)):
        log(
            f"no {EXPLANATIONS_FIGURE}: it needs predictions of a classifier that this workspace "
            f"keeps: run `iqa-ray predict --workspace {workspace} --backbone NAME`"
        )
        return 0
    source = ImageSource.from_record(scores.record)
    images = judged.assign(quality=ranks[judged["row"].to_numpy(int)])
    pairs = explain_pairs(workspace, key, source, images, voters)
    if not pairs:
        log(
            f"no {EXPLANATIONS_FIGURE}: no class has both a kept image that is classified rightly "
            "and a rejected one that is classified wrongly"
        )
        return 0
    write_bytes(workspace.location / EXPLANATIONS_FIGURE, draw_explanations(pairs))
    return len(pairs)


def remove_explanations(workspace: Workspace) -> None:
    """Remove `explanations.png`, which is of another selection."""
    _remove(workspace, EXPLANATIONS_FIGURE)


def _remove(workspace: Workspace, *names: str) -> None:
    for name in names:
        delete_file(workspace.location / name)
