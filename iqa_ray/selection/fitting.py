"""Fitting the cut-offs of a workspace's metrics, and the files that hold them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.progress import log
from iqa_ray.scoring.tables import ListedScores, find_spec, scored_metrics
from iqa_ray.selection.crossfit import NUM_FOLDS
from iqa_ray.selection.cutoffs import Cutoff, fit_cutoff, name_direction
from iqa_ray.selection.guarantee import certify
from iqa_ray.selection.judged import FOLDS_SCHEMA, deal_folds, read_judged, write_folds
from iqa_ray.selection.settings import CutoffsJob
from iqa_ray.selection.votes import votes_to_reject
from iqa_ray.storage.workspace import Workspace
from iqa_ray.study.verdicts import VERDICTS_FILE

CUTOFFS_FILE = "cutoffs.json"


@dataclass(frozen=True)
class FittedCutoffs:
    """Cut-offs by metric, and the judged images that they were fitted on.

    `judged` has the columns of FOLDS_SCHEMA and, from a fit, those of `read_judged`.
    """

    cutoffs: dict[str, Cutoff]
    judged: pd.DataFrame = field(default_factory=FOLDS_SCHEMA.empty_table().to_pandas)


def find_study_voters(workspace: Workspace) -> tuple[str, ...] | None:
    """The metrics that `study` chose; None where it did not run.

    Raises:
        UsageError: it found none.
    """
    if not workspace.has(VERDICTS_FILE):
        return None
    voters = tuple(workspace.read_json(VERDICTS_FILE, "study IMAGES")["voters"])
    if not voters:
        raise UsageError(
            f"no metric qualified in {workspace}/{VERDICTS_FILE}: name voters with --metrics"
        )
    return voters


def certify_cutoffs(workspace: Workspace, job: CutoffsJob) -> FittedCutoffs:
    """The cut-offs of the loosest vote with a guarantee, without writing any.

    The voters are those of the job, else the study's, else all metrics that have scores: who has a
    fitted cut-off would depend on who is right. Of images that belong together one counts, drawn
    at random, since a guarantee needs independent ones.

    Raises:
        UsageError: no scores or predictions, groups that cannot be had, cut-offs set by hand, or a
            rule that the voters cannot meet.
        IncompleteError: nothing could be certified.
    """
    assert job.target_accuracy is not None
    if job.cutoff:
        raise UsageError("--cutoff sets one by hand, and --target-accuracy certifies all: give one")
    names = job.metrics or find_study_voters(workspace) or tuple(scored_metrics(workspace))
    needed = votes_to_reject(job.rule, len(names))
    scores = ListedScores(workspace)
    judged = read_judged(workspace, scores)
    deal_folds(judged, scores, job.group, job.seed)
    for name, rows in scores.read_all(names).items():
        columns = rows.select(["image_id", "content_hash", "score"]).to_pandas()
        columns = columns.rename(columns={"score": name})
        judged = judged.merge(columns, "left", ["image_id", "content_hash"])
    ordered = judged.sort_values("image_id")
    alone = ordered.sample(frac=1, random_state=job.seed).drop_duplicates("unit")
    specs = {name: find_spec(workspace, name) for name in names}
    certificate = certify(
        {name: alone[name].to_numpy(np.float64) for name in names},
        alone["correct"].to_numpy(bool),
        {name: spec.higher_is_better for name, spec in specs.items()},
        needed,
        job.target_accuracy,
        job.confidence,
        job.seed,
    )
    if certificate.cutoffs is None:
        more = certificate.num_more
        hint = f"; about {more:,} more judged images would be needed" if more else ""
        raise IncompleteError(f"nothing could be certified: {certificate.reason}{hint}")
    certified = certificate.describe() | {"voters": list(names), "rule": job.rule}
    cutoffs = {
        name: Cutoff(
            certificate.cutoffs[name],
            name_direction(spec.higher_is_better),
            source="certified",
            version=spec.version,
            certified=certified,
        )
        for name, spec in specs.items()
    }
    return FittedCutoffs(cutoffs, alone)


def fit_cutoffs(workspace: Workspace, job: CutoffsJob) -> FittedCutoffs:
    """The cut-off of each metric that the job names, without writing any.

    With a target accuracy they are certified (see `certify_cutoffs`). A score and a prediction
    count together only if they are of the same content of an image.

    Raises:
        UsageError: no scores or no predictions, or groups that cannot be had.
        IncompleteError: a target accuracy for which nothing could be certified.
    """
    if job.target_accuracy is not None:
        return certify_cutoffs(workspace, job)
    fitted = [name for name in job.metrics or scored_metrics(workspace) if name not in job.cutoff]
    if not fitted and not job.cutoff:
        raise UsageError(
            f"{workspace} has no scores: run `iqa-ray score IMAGES --workspace {workspace}` first"
        )
    found = FittedCutoffs({})
    if fitted:
        scores = ListedScores(workspace)
        judged = read_judged(workspace, scores)
        deal_folds(judged, scores, job.group, job.seed)
        for name in fitted:
            found.cutoffs[name] = _fit(workspace, name, scores.read(name), judged, job)
        found = replace(found, judged=judged)
    for name, value in job.cutoff.items():
        spec = find_spec(workspace, name)
        direction = name_direction(spec.higher_is_better)
        cutoff = Cutoff(value, direction, source="manual", version=spec.version)
        found.cutoffs[name] = cutoff
    return found


def write_cutoffs(
    workspace: Workspace, fitted: FittedCutoffs, origin: str | None = None
) -> dict[str, Any]:
    """Write `cutoffs.json` and `folds.parquet`, and return what the former holds.

    `origin` is the workspace where they were fitted, if that is another one.
    """
    entries = {name: cutoff.to_json() for name, cutoff in fitted.cutoffs.items()}
    workspace.prepare()
    write_folds(workspace, fitted.judged, origin or str(workspace))
    workspace.write_json(CUTOFFS_FILE, entries)
    return entries


def read_cutoffs(workspace: Workspace) -> dict[str, Cutoff]:
    """The cut-offs of `cutoffs.json`.

    Raises:
        UsageError: there are none.
    """
    entries = workspace.read_json(CUTOFFS_FILE, "cutoffs")
    return {name: Cutoff.from_json(entry) for name, entry in entries.items()}


def _fit(
    workspace: Workspace, name: str, rows: pa.Table, judged: pd.DataFrame, job: CutoffsJob
) -> Cutoff:
    scores = rows.select(["image_id", "content_hash", "score"]).to_pandas().dropna()
    joined = judged.merge(scores, on=["image_id", "content_hash"])
    num_other = int(judged["image_id"].isin(scores["image_id"]).sum()) - len(joined)
    if num_other:
        log(
            f"{name}: {num_other:,} predictions are of other contents than the scores, and do not "
            "count: run `iqa-ray predict` again"
        )
    spec = find_spec(workspace, name)

    def fit(images: pd.DataFrame, min_wrong: int, **settings: int) -> Cutoff:
        return fit_cutoff(
            images["score"].to_numpy(np.float64),
            images["correct"].to_numpy(bool),
            spec.higher_is_better,
            value_range=spec.range,
            scale=job.scale,
            bandwidth=job.bandwidth,
            weighting=job.weighting,
            min_wrong=min_wrong,
            seed=job.seed,
            **settings,
        )

    cutoff = replace(fit(joined, job.min_wrong), version=spec.version)
    if cutoff.value is None:
        return cutoff
    without = (joined[joined["fold"] != fold] for fold in range(NUM_FOLDS))
    values = (fit(images, 2, num_resamples=0, num_permutations=0).value for images in without)
    return replace(cutoff, fold_values=tuple(values))
