"""The demo: the whole main job on synthetic images, in the order in which a user would run it."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
from pydantic import Field

from iqa_ray.cluster import connection
from iqa_ray.config import WorkspaceJob
from iqa_ray.errors import UsageError
from iqa_ray.predictions.jobs import PredictJob, run_predict
from iqa_ray.predictions.table import PREDICTIONS_FILE
from iqa_ray.progress import log
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.selection.jobs import (
    SELECTION_FILE,
    describe_cutoffs,
    describe_selection,
    run_cutoffs,
    run_select,
)
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.storage.files import locate
from iqa_ray.storage.workspace import Workspace
from iqa_ray.synthetic.jobs import MakeDataJob, run_make_data

TRAIN_SHARE = "0.4"
NUM_VOTERS = 3


class DemoJob(WorkspaceJob):
    """Make synthetic images, score them, train a small classifier on a part of them, and select.

    Everything is written to the workspace; the images go to WORKSPACE/data.
    """

    num_images: int = Field(default=700, ge=100, description="synthetic images")
    image_size: int = Field(default=256, ge=192, description="pixels a side")
    seed: int = Field(default=0, ge=0, description="seed of everything random")


def run_demo(job: DemoJob) -> dict[str, Any]:
    """Run the main job end to end and return what the jobs and the closing table say.

    Raises:
        UsageError: the workspace is not a local folder or holds something else.
        IncompleteError: a stage failed.
    """
    start_s = time.monotonic()
    location = locate(job.workspace)
    if not location.is_local:
        raise UsageError(f"--workspace {job.workspace}: the demo needs a local folder")
    workspace = Workspace(job.workspace)
    common: dict[str, Any] = {"workspace": job.workspace, "address": job.address}
    data = f"{location.path}/data"
    making = MakeDataJob(
        out=data, num_images=job.num_images, image_size=job.image_size, seed=job.seed
    )
    with connection.connect(job.address):
        log(f"1. making {job.num_images} synthetic photographs in {data}")
        run_make_data(making)
        log("2. scoring them with five metrics")
        scores = run_score(ScoreJob(images=data, **common))
        log(f"3. training a classifier on {float(TRAIN_SHARE):.0%} of them, predicting the rest")
        predictions = run_predict(_plan_prediction(job, common))
    log("4. learning cut-offs from right and wrong predictions")
    entries = run_cutoffs(CutoffsJob(seed=job.seed, **common))
    voters = choose_clearest(entries, NUM_VOTERS)
    log(f"5. voting with the {len(voters)} clearest: {', '.join(voters)}")
    selection = run_select(SelectJob(metrics=voters, **common))
    return {
        "scores": scores,
        "predictions": predictions,
        "cutoffs": entries,
        "selection": selection,
        "accuracy": measure_accuracy(workspace),
        "seconds": round(time.monotonic() - start_s, 1),
    }


def _plan_prediction(job: DemoJob, common: dict[str, Any]) -> PredictJob:
    return PredictJob(
        backbone="efficientnet_lite0",
        freeze_backbone=True,
        split=TRAIN_SHARE,
        epochs=40,
        lr=1e-2,
        image_size=192,
        seed=job.seed,
        **common,
    )


def choose_clearest(entries: dict[str, Any], num_voters: int) -> tuple[str, ...]:
    """The metrics whose cut-offs part right from wrong best (area under the ROC curve)."""
    usable = [name for name, entry in entries.items() if entry["value"] is not None]
    ranked = sorted(usable, key=lambda name: -entries[name]["separation"])
    return tuple(ranked[:num_voters])


def measure_accuracy(workspace: Workspace) -> dict[str, dict[str, float | int | None]]:
    """How often the classifier is right on kept, on rejected and on all predicted images."""
    selection = workspace.read_table(SELECTION_FILE, "select").to_pandas()
    predictions = workspace.read_table(PREDICTIONS_FILE, "predict").to_pandas()
    judged = predictions.dropna(subset=["correct"]).merge(
        selection[["image_id", "keep"]], on="image_id"
    )
    parts = {"kept": judged["keep"], "rejected": ~judged["keep"], "all": judged["keep"].notna()}
    return {name: _accuracy(judged.loc[chosen, "correct"]) for name, chosen in parts.items()}


def _accuracy(correct: pd.Series[bool]) -> dict[str, float | int | None]:
    mean = round(float(correct.astype(float).mean()), 4) if len(correct) else None
    return {"num_images": len(correct), "num_correct": int(correct.sum()), "accuracy": mean}


def describe_demo(summary: dict[str, Any]) -> str:
    """The closing tables for people."""
    lines = [describe_cutoffs(summary["cutoffs"]), "", describe_selection(summary["selection"]), ""]
    lines.append(f"{'predicted images':18} {'images':>6} {'right':>6} {'accuracy':>9}")
    for name, row in summary["accuracy"].items():
        accuracy = "–" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        lines.append(f"{name:18} {row['num_images']:>6} {row['num_correct']:>6} {accuracy:>9}")
    lines.append("")
    lines.append(
        f"{summary['seconds']:.0f} s in all; every table is in {summary['selection']['workspace']}"
    )
    return "\n".join(lines)
