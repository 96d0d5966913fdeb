"""The demo: the whole main job on synthetic images, in the order in which a user would run it."""

from __future__ import annotations

import time
from typing import Any

from iqa_ray.cluster import connection
from iqa_ray.errors import UsageError
from iqa_ray.predictions.jobs import run_predict
from iqa_ray.predictions.settings import PredictJob
from iqa_ray.progress import log
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.selection.crossfit import PARTS
from iqa_ray.selection.jobs import (
    describe_cutoffs,
    describe_selection,
    run_cutoffs,
    run_select,
)
from iqa_ray.selection.settings import CutoffsJob, SelectJob
from iqa_ray.storage.files import locate
from iqa_ray.synthetic.jobs import run_make_data
from iqa_ray.synthetic.settings import DemoJob, MakeDataJob

TRAIN_SHARE = "0.4"
NUM_VOTERS = 3


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
        "accuracy": _list_accuracies(selection["cross_fitted"]),
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


def _list_accuracies(measured: dict[str, Any]) -> dict[str, dict[str, float | int | None]]:
    """How often the classifier is right on images that did not choose the cut-offs."""
    found = {}
    for part in PARTS:
        accuracy, total = measured[f"accuracy_{part}"], measured[f"num_{part}"]
        num_correct = round(total * (accuracy or 0))
        found[part] = {"num_images": total, "num_correct": num_correct, "accuracy": accuracy}
    return found


def describe_demo(summary: dict[str, Any]) -> str:
    """The closing tables for people."""
    lines = [describe_cutoffs(summary["cutoffs"]), "", describe_selection(summary["selection"]), ""]
    lines.append(
        f"{summary['seconds']:.0f} s in all; every table is in {summary['selection']['workspace']}"
    )
    return "\n".join(lines)
