"""Runs of the scorer that several benchmarks time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from iqa_ray.images.listing import list_images
from iqa_ray.images.source import ImageSource
from iqa_ray.scoring.cpu_scorer import ScoringRun, Shard, ShardScorer
from iqa_ray.scoring.jobs import run_score
from iqa_ray.scoring.planning import LARGEST_SHARD
from iqa_ray.scoring.settings import ScoreJob
from iqa_ray.storage.files import locate
from iqa_ray.storage.parts import make_fingerprints

METRICS = ("lapv", "lapm", "wavs")
SHARD_SIZE = LARGEST_SHARD


def time_run(images: Path, metrics: tuple[str, ...], num_actors: int) -> float:
    """Seconds of `run_score` into an empty workspace: listing, actors, parts.

    Starting and ending Ray are among them unless it is up already.
    """
    with tempfile.TemporaryDirectory() as workspace:
        job = ScoreJob(
            images=str(images), workspace=workspace, metrics=metrics, num_actors=num_actors
        )
        start = perf_counter()
        summary = run_score(job)
        seconds = perf_counter() - start
    assert summary["num_scored"] == summary["num_images"]
    assert summary["num_failed"] == 0
    return seconds


def make_scorer(workspace: str) -> ShardScorer:
    """What an actor of `run_score` makes; here in whichever process calls."""
    return ShardScorer(ScoringRun(workspace, ImageSource(locate("."))))


def cut_shards(images: Path) -> list[Shard]:
    """The images below a folder in shards of SHARD_SIZE, to be scored with METRICS."""
    table = list_images(str(images)).table
    prints = make_fingerprints(table, "")
    columns = table.select(["image_id", "path"])
    rows = np.arange(table.num_rows)
    shards = [rows[start : start + SHARD_SIZE] for start in range(0, len(rows), SHARD_SIZE)]
    # a slice would be pickled with the whole table that it is of
    return [Shard(columns.take(chosen), METRICS, prints[chosen]) for chosen in shards]
