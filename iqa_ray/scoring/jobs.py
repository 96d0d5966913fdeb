"""The job `score`: list the images, find out what lacks a score, have it scored by Ray actors.

CPU metrics are scored together, in one pool of actors; each deep metric has a pool of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from iqa_ray.cluster import connection
from iqa_ray.config import make_job
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.images.listing import IMAGES_FILE, Listing
from iqa_ray.images.source import ImageSource
from iqa_ray.metrics.spec import DEFAULT_METRICS
from iqa_ray.progress import log
from iqa_ray.scoring.cpu_scorer import MakeScorer, ScoringRun, ShardScorer
from iqa_ray.scoring.planning import (
    DeepSettings,
    Group,
    drop_former_contents,
    find_missing_scores,
    make_groups,
)
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.scoring.spreading import GroupWork, spread_groups, summarise_models
from iqa_ray.scoring.tables import (
    ListedScores,
    count_failures,
    open_parts,
    record_specs,
    scores_frame,
)
from iqa_ray.storage.files import locate
from iqa_ray.storage.workspace import Workspace


def run_score(
    job: ScoreJob,
    make_scorer: MakeScorer = ShardScorer,
    recorded: DeepSettings | None = None,
) -> dict[str, Any]:
    """List the images, score those that have no score yet, and return the run's summary.

    Several runs may score into one workspace at once. With different metrics they share the work;
    with the same ones they do it twice, and what they then have twice is removed at the end.

    Args:
        job: the settings.
        make_scorer: what an actor of the CPU metrics makes with a `ScoringRun`.
        recorded: of a night, which scores each deep metric as before whatever the job says, and
            leaves no record of a `score`.

    Raises:
        UsageError: unusable input, weights that are missing or damaged, or a workspace that holds
            something else.
        IncompleteError: some shards could not be scored; the next run scores them. Or rows of
            images that changed must go, and another run holds the workspace.
    """
    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    source = ImageSource(locate(job.images), job.max_pixels)
    listing = source.list(job.labels, exclude=[workspace.location])
    groups = make_groups(job, recorded or {})
    workspace.prepare()
    _record_images(workspace, job, listing, groups)
    if recorded is None:
        workspace.record_config("score", job)
    listed = ListedScores(workspace, listing.table)
    drop_former_contents(workspace, listed, source)
    missing = find_missing_scores(workspace, groups, listed)
    num_images = listing.table.num_rows
    num_to_score = int(np.column_stack(list(missing.values())).any(axis=1).sum()) if missing else 0
    works: list[GroupWork] = []
    if missing:
        log(f"scoring {num_to_score:,} of {num_images:,} images with {', '.join(job.metrics)}")
        run = ScoringRun(str(workspace), source)
        with connection.connect(job.address):
            works = spread_groups(job, run, listed, missing, make_scorer)
        _drop_repeated_scores(workspace, groups)
        _check_contents(listed)
    seconds = time.monotonic() - start_s
    num_failed, failures = count_failures(listed, job.metrics)
    return {
        "num_images": num_images,
        "num_scored": num_to_score,
        "num_reused": num_images - num_to_score,
        "num_failed": num_failed,
        "failures": failures,
        "metrics": list(job.metrics),
        "models": summarise_models(works),
        "seconds": round(seconds, 3),
        "images_per_s": round(num_to_score / seconds, 2),
        "workspace": str(workspace),
    }


def _record_images(
    workspace: Workspace, job: ScoreJob, listing: Listing, groups: Sequence[Group]
) -> None:
    """Write what later jobs need to know: the images, and the deep metrics' entries."""
    record = {
        "images": str(locate(job.images)),
        "root": str(listing.root),
        "labels": job.labels,
        "max_pixels": job.max_pixels,
    }
    _check_same_data(workspace, record)
    workspace.write_table(IMAGES_FILE, listing.table, record)
    deep = [spec for group in groups if group.weights for spec in group.specs]
    if deep:
        record_specs(workspace, deep)


def _check_same_data(workspace: Workspace, record: dict[str, Any]) -> None:
    """Refuse a run whose settings contradict those that made the workspace.

    Raises:
        UsageError: names the setting and says what to do.
    """
    before = workspace.read_record(IMAGES_FILE)
    for name, value in record.items():
        if before is not None and before.get(name, value) != value:
            raise UsageError(
                f"workspace {workspace} was made with {name} {before[name]}, now {value} is asked: "
                "use the same, or another --workspace"
            )


def _check_contents(listed: ListedScores) -> None:
    """Make sure that no image has scores of different contents.

    Raises:
        IncompleteError: some have.
    """
    is_mixed = listed.find_mixed()
    if is_mixed.any():
        example = listed.images.column("path")[int(np.flatnonzero(is_mixed)[0])].as_py()
        raise IncompleteError(
            f"{is_mixed.sum():,} images, such as {example!r}, were replaced by files of the same "
            "size and time after some of their scores: run the same command again to score them "
            "anew"
        )


def _drop_repeated_scores(workspace: Workspace, groups: Sequence[Group]) -> None:
    """Leave one row an image where another run has scored the same images meanwhile."""
    # that run may have listed the images later than this one
    fingerprints = ListedScores(workspace).fingerprints
    try:
        for spec in (spec for group in groups for spec in group.specs):
            open_parts(workspace, spec).drop_repeated(fingerprints)
    except IncompleteError as error:  # readers take one row an image in any case
        log(f"rows that two runs have written stay for now, for `iqa-ray compact`: {error}")


def score(
    images: str, workspace: str, metrics: Sequence[str] = DEFAULT_METRICS, **settings: Any
) -> pd.DataFrame:
    """Score `images` into `workspace` and return one row an image (see `scores_frame`).

    Args:
        images: folder, manifest (.csv, .parquet) or URI.
        workspace: folder or URI of the tables; what it holds already is not scored again.
        metrics: names of metrics (`iqa_ray.metrics.spec.SPECS`, or pyiqa's).
        settings: further settings of `ScoreJob`, such as `num_actors` or `weights`.

    Raises:
        ValueError: unusable input (an `iqa_ray.errors.UsageError`).
        IncompleteError: some images could not be scored; calling again completes them.
    """
    given = {"images": str(images), "workspace": str(workspace), "metrics": tuple(metrics)}
    job = make_job(ScoreJob, {**given, **settings})
    run_score(job)
    return scores_frame(Workspace(job.workspace), job.metrics)


def describe_scores(summary: dict[str, Any]) -> str:
    """The run's summary for people."""
    lines = [
        f"{summary['num_images']:,} images: {summary['num_scored']:,} scored, "
        f"{summary['num_reused']:,} reused, {summary['num_failed']:,} without a score for some "
        f"metric; {summary['seconds']:.1f} s ({summary['images_per_s']:,.1f} images/s)"
    ]
    for name, model in summary["models"].items():
        lines.append(
            f"  {name}: the model waited for images {model['waiting_share']:.1%} of its time"
        )
        if shift := model.get("shift"):
            lines.append(
                f"  {name}: beside fp32, the scores of {shift['num_images']} images moved by "
                f"{shift['mean']:.2g} in the mean and {shift['max']:.2g} at most"
            )
    lines += [f"  {line}" for line in describe_failures(summary["failures"])]
    lines.append(f"written: {summary['workspace']}/{IMAGES_FILE} and scores/")
    return "\n".join(lines)


def describe_failures(failures: Mapping[str, Any]) -> list[str]:
    """A line for people on each metric and status of the images without a score."""
    return [
        f"{name} {status}: {entry['num_images']:,}, such as {entry['example']!r} ({entry['error']})"
        for name, statuses in failures.items()
        for status, entry in statuses.items()
    ]
