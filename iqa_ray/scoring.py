"""Score images: one shard (pure), and all missing ones spread over Ray actors."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field, field_validator

from iqa_ray import cluster, metrics
from iqa_ray.config import WorkspaceJob, make_job, positional
from iqa_ray.decoding import (
    DEFAULT_MAX_PIXELS,
    LARGEST_MAX_PIXELS,
    ImageError,
    decode_image,
    hash_content,
    read_image_bytes,
)
from iqa_ray.errors import IncompleteError, UsageError
from iqa_ray.files import locate, one_line
from iqa_ray.images import LabelMode, list_images, locate_image
from iqa_ray.metrics.planes import Planes
from iqa_ray.metrics.spec import CPU_METRICS, MetricError, get_spec
from iqa_ray.progress import Progress, log
from iqa_ray.scores import SCORES_SCHEMA, count_failures, scores_folder, scores_frame
from iqa_ray.store import Fingerprints, Workspace, find_missing, make_fingerprints

# a part should be worth a file, and a lost shard not worth a tear
SMALLEST_SHARD, LARGEST_SHARD = 32, 512
_SHARDS_PER_ACTOR = 16
_NUM_NAMED = 5

Score = tuple[float | None, str, str]  # score, status, error


class ScoreJob(WorkspaceJob):
    """Score every image with no-reference quality metrics."""

    images: str = positional("folder, manifest (.csv, .parquet) or URI of the images", "IMAGES")
    metrics: tuple[str, ...] = Field(
        default=CPU_METRICS, description="metrics to score with, separated by commas"
    )
    labels: LabelMode = Field(
        default="parent",
        description="where labels come from if no manifest gives them: the name of an image's "
        "parent folder, of the top folder, or none",
    )
    max_pixels: int = Field(
        default=DEFAULT_MAX_PIXELS,
        ge=1,
        le=LARGEST_MAX_PIXELS,
        description="larger images are not decoded, but get the status too_large",
    )
    num_actors: int | None = Field(
        default=None, ge=1, description="scoring actors (default: one a CPU of the cluster)"
    )
    cpus_per_actor: float = Field(
        default=1.0, gt=0, description="CPUs that each actor asks of Ray; it computes on one thread"
    )
    shard_size: int | None = Field(
        default=None, ge=1, description="images a shard (default: by the number of images)"
    )

    @field_validator("metrics")
    @classmethod
    def _check_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one metric")
        for name in names:
            metrics.create(name)
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Shard:
    """Images to be scored together, with the metrics that they lack."""

    images: pa.Table  # image_id, path
    metrics: tuple[str, ...]
    fingerprints: Fingerprints


# --- one shard --------------------------------------------------------------------------------


def score_image(data: bytes, computed: Sequence[metrics.Metric], max_pixels: int) -> list[Score]:
    """Score the bytes of one image file with CPU metrics, decoding it once.

    Returns (score, status, error) a metric; the score is None unless the status is `ok`.
    """
    try:
        planes = Planes(decode_image(data, max_pixels))
    except ImageError as error:
        return [(None, error.status, str(error))] * len(computed)
    scores: list[Score] = []
    for metric in computed:
        try:
            scores.append((metric.measure(planes), "ok", ""))
        except MetricError as error:
            scores.append((None, error.status, str(error)))
        except MemoryError:
            scores.append((None, "too_large", f"not enough memory for {metric.name}"))
        except Exception as error:  # one odd image must not cost the others of its shard
            scores.append((None, "undefined", f"{type(error).__name__}: {one_line(error)}"))
    return scores


def score_shard(
    images: pa.Table, computed: Sequence[metrics.Metric], max_pixels: int, options: str = ""
) -> dict[str, pa.Table]:
    """Score the rows of `images` (image_id, path): one SCORES_SCHEMA table a metric.

    Every row comes back, in order; `options` are those of the data set's URI.
    """
    ids, paths = images.column("image_id").to_pylist(), images.column("path").to_pylist()
    hashes: list[str | None] = []
    scores: list[list[Score]] = []
    for path in paths:
        try:
            data = read_image_bytes(locate_image(path, options))
        except ImageError as error:
            hashes.append(None)
            scores.append([(None, error.status, str(error))] * len(computed))
            continue
        hashes.append(hash_content(data))
        scores.append(score_image(data, computed, max_pixels))
    tables = {}
    for place, metric in enumerate(computed):
        values, statuses, errors = zip(*(row[place] for row in scores), strict=True)
        columns = [ids, paths, hashes, values, statuses, errors]
        tables[metric.name] = pa.table(
            [
                pa.array(cells, kind)
                for cells, kind in zip(columns, SCORES_SCHEMA.types, strict=True)
            ],
            schema=SCORES_SCHEMA,
        )
    return tables


class ShardScorer:
    """Scores shards and writes their parts; knows nothing of who spreads them."""

    def __init__(self, workspace: str, max_pixels: int, options: str, settings: str) -> None:
        cv2.setNumThreads(1)
        _keep_freed_memory()
        self._workspace = Workspace(workspace)
        self._max_pixels, self._options, self._settings = max_pixels, options, settings

    def __call__(self, shard: Shard) -> dict[str, int]:
        """Returns the number of images, and of those without a score for some metric."""
        computed = [metrics.create(name) for name in shard.metrics]
        tables = score_shard(shard.images, computed, self._max_pixels, self._options)
        failed = np.zeros(shard.images.num_rows, bool)
        for metric in computed:
            table = tables[metric.name]
            status = table.column("status").to_numpy(zero_copy_only=False)
            failed |= status != "ok"
            parts = self._workspace.parts(scores_folder(metric.name, metric.version))
            parts.write(table, shard.fingerprints, self._settings)
        return {"num_images": len(failed), "num_failed": int(failed.sum())}


def _keep_freed_memory() -> None:
    """Let the allocator keep what a metric frees instead of handing it back to the system.

    glibc raises its thresholds for that to the size of the largest block that was freed. Without
    it every image faults its working memory in anew, which doubled the time of NIQE where
    measured.
    """
    np.empty(31 << 20, np.uint8)


# --- the run ----------------------------------------------------------------------------------


def run_score(
    job: ScoreJob, make_worker: Callable[..., Callable[[Shard], dict[str, int]]] = ShardScorer
) -> dict[str, Any]:
    """List the images, score those that have no score yet, and return the run's summary.

    Args:
        job: the settings.
        make_worker: what an actor makes with (workspace, max_pixels, options, settings).

    Raises:
        UsageError: unusable input, or a workspace that holds something else.
        IncompleteError: some shards could not be scored; the next run scores them.
    """
    start_s = time.monotonic()
    workspace = Workspace(job.workspace)
    listing = list_images(job.images, job.labels, exclude=[workspace.location])
    workspace.prepare()
    record = {
        "images": str(locate(job.images)),
        "root": str(listing.root),
        "labels": job.labels,
        "max_pixels": job.max_pixels,
    }
    _check_same_data(workspace, record)
    workspace.write_table("images.parquet", listing.table, record)
    workspace.record_config("score", job)

    settings = json.dumps({"max_pixels": job.max_pixels})
    fingerprints = make_fingerprints(listing.table, settings)
    missing = _find_missing_metrics(workspace, job.metrics, listing.table, fingerprints)
    num_to_score = int((missing > 0).sum())
    num_images = listing.table.num_rows
    if num_to_score:
        log(f"scoring {num_to_score:,} of {num_images:,} images with {', '.join(job.metrics)}")
        with cluster.connect(job.address):
            resources = cluster.Resources(num_cpus=job.cpus_per_actor)
            num_actors = cluster.count_actors(job.num_actors, resources, num_to_score)
            shards = _cut_shards(listing.table, fingerprints, missing, job, num_actors)
            make = partial(
                make_worker, str(workspace), job.max_pixels, listing.root.options, settings
            )
            _spread(make, shards, num_actors, resources, num_to_score)
    seconds = time.monotonic() - start_s
    failures = count_failures(workspace, job.metrics, listing.table)
    return {
        "num_images": num_images,
        "num_scored": num_to_score,
        "num_reused": num_images - num_to_score,
        "num_failed": failures.pop("images"),
        "failures": failures,
        "metrics": list(job.metrics),
        "seconds": round(seconds, 3),
        "images_per_s": round(num_to_score / seconds, 2),
        "workspace": str(workspace),
    }


def _check_same_data(workspace: Workspace, record: dict[str, Any]) -> None:
    """Refuse a run whose settings contradict those that made the workspace.

    Raises:
        UsageError: names the setting and says what to do.
    """
    before = workspace.read_record("images.parquet")
    for name, value in record.items():
        if before is not None and before.get(name, value) != value:
            raise UsageError(
                f"workspace {workspace} was made with {name} {before[name]}, now {value} is asked: "
                "use the same, or another --workspace"
            )


def _find_missing_metrics(
    workspace: Workspace, names: Sequence[str], images: pa.Table, fingerprints: Fingerprints
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A bit mask an image: bit m is set where the metric m has no valid row."""
    missing = np.zeros(images.num_rows, np.int64)
    ids = images.column("image_id").combine_chunks()
    for bit, name in enumerate(names):
        parts = workspace.parts(scores_folder(name, get_spec(name).version))
        num_dropped = parts.drop_stale(ids, fingerprints)
        if num_dropped:
            log(f"{num_dropped:,} {name} scores were of images that changed since; scoring again")
        missing |= find_missing(parts.done(), fingerprints).astype(np.int64) << bit
    return missing


def _cut_shards(
    images: pa.Table,
    fingerprints: Fingerprints,
    missing: np.ndarray[Any, np.dtype[np.int64]],
    job: ScoreJob,
    num_actors: int,
) -> list[Shard]:
    """Shards of images that lack the same metrics, so that each is decoded once for all of them."""
    num_missing = int((missing > 0).sum())
    fair = -(-num_missing // (num_actors * _SHARDS_PER_ACTOR))
    size = job.shard_size or min(max(fair, SMALLEST_SHARD), LARGEST_SHARD)
    columns = images.select(["image_id", "path"])
    shards = []
    for mask in np.unique(missing[missing > 0]):
        lacking = tuple(name for bit, name in enumerate(job.metrics) if mask >> bit & 1)
        rows = np.flatnonzero(missing == mask)
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            shards.append(Shard(columns.take(chosen), lacking, fingerprints[chosen]))
    return shards


def _spread(
    make: Callable[[], Callable[[Shard], dict[str, int]]],
    shards: list[Shard],
    num_actors: int,
    resources: cluster.Resources,
    num_images: int,
) -> None:
    with Progress(num_images, "score") as progress:
        failures = cluster.run_shards(
            make,
            shards,
            min(num_actors, len(shards)),
            resources,
            lambda _, done: progress.update(done["num_images"], done["num_failed"]),
        )
    if failures:
        num_left = sum(shards[failure.index].images.num_rows for failure in failures)
        named = "; ".join(
            f"shard {failure.index} ({_first_path(shards[failure.index])!r} and "
            f"{shards[failure.index].images.num_rows - 1} more): {failure.reason}"
            for failure in itertools.islice(failures, _NUM_NAMED)
        )
        rest = len(failures) - _NUM_NAMED
        raise IncompleteError(
            f"{num_left:,} images could not be scored: {named}"
            + (f"; and {rest} more shards" if rest > 0 else "")
            + "; the other scores are kept, run the same command again to complete them"
        )


def _first_path(shard: Shard) -> str:
    return str(shard.images.column("path")[0])


def score(
    images: str, workspace: str, metrics: Sequence[str] = CPU_METRICS, **settings: Any
) -> pd.DataFrame:
    """Score `images` into `workspace` and return one row an image (see `scores_frame`).

    Args:
        images: folder, manifest (.csv, .parquet) or URI.
        workspace: folder or URI of the tables; what it holds already is not scored again.
        metrics: names of metrics (`iqa_ray.metrics.spec.SPECS`).
        settings: further settings of `ScoreJob`, such as `num_actors`.

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
    for name, statuses in summary["failures"].items():
        for status, entry in statuses.items():
            lines.append(
                f"  {name} {status}: {entry['num_images']:,}, such as {entry['example']!r} "
                f"({entry['error']})"
            )
    lines.append(f"written: {summary['workspace']}/images.parquet and scores/")
    return "\n".join(lines)
